"""Numbers of victims: the sweep behind a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from salm_lightning.reproduce.cells import CLEAN, SKIPPED, Cell, Recipe, Result, accuracy
from salm_lightning.reproduce.experiment import Run, Setup
from salm_lightning.reproduce.settings import Dataset
from salm_lightning.reproduce.work import generator_work, victim_work
from salm_lightning.runs.results import RESULTS
from salm_lightning.sweep.job import DONE, Job
from salm_lightning.sweep.plan import Planner, Row
from salm_lightning.sweep.results import record
from salm_lightning.sweep.run import all_jobs, run_sweep
from salm_lightning.sweep.runners import Local

_DEFAULTS = {"victim.model.arch": "resnet18", "victim.data.part": "all"}
"""Values of options that a cell does not name and another one does; of all others ``None``."""


class Victims:
    """Cells whose numbers are those of victims.

    Args:
        cells: The cells.
        lab: Where and how.

    Attributes:
        rows: The victims of each cell, one for each seed; none if its dataset is missing.
    """

    def __init__(self, cells: Sequence[Cell], lab: Setup) -> None:
        self.cells, self.lab = cells, lab
        self._keys = sorted({key for cell in cells for key in _recipe(cell).options})
        self._planners: dict[Dataset, Planner] = {}
        self.rows = [[] if lab.missing(cell.dataset) else self._plan(cell) for cell in cells]

    def _plan(self, cell: Cell) -> list[Row]:
        settings, dataset, recipe = self.lab.settings, cell.dataset, _recipe(cell)
        if dataset not in self._planners:
            sections = (settings.generator(dataset), settings.victim())
            self._planners[dataset] = Planner(*sections, self.lab.out, self.lab.download)
        # Size, which the name of a dataset lacks, and every option that varies in the table: its cells have the same columns.
        grid = {"generator.data.size": [dataset.size], "generator.model.method": [recipe.method]}
        grid |= {key: [recipe.options.get(key, _DEFAULTS.get(key))] for key in self._keys}
        rows = self._planners[dataset].rows(grid | {"seed": list(settings.seeds)}, recipe.clean)
        return [row for row in rows if (row.values["trained_on"] == CLEAN) is recipe.clean]

    def runs(self) -> list[Run]:
        """Return releases and victims in the order in which they run."""
        datasets = {job.name: cell.dataset for cell, rows in zip(self.cells, self.rows, strict=True) for job in self.jobs(rows)}
        return [_run_of(job, datasets[job.name]) for job in self.jobs(self._all_rows())]

    def run(self) -> int:
        """Run the sweep."""
        rows = self._all_rows()
        return run_sweep(rows, Local(self.lab.workers), self.lab.out) if rows else 0

    def results(self) -> list[Result]:
        """Return a result for each cell."""
        return [self._result(cell, rows) for cell, rows in zip(self.cells, self.rows, strict=True)]

    @staticmethod
    def jobs(rows: Sequence[Row]) -> list[Job]:
        """Return what has to run for some victims."""
        return all_jobs(rows)

    def _all_rows(self) -> list[Row]:
        return list({row.job.name: row for rows in self.rows for row in rows}.values())

    def _result(self, cell: Cell, rows: Sequence[Row]) -> Result:
        if not rows:
            return Result(cell, status=SKIPPED, reason=self.lab.missing(cell.dataset))
        records = [record(row) for row in rows]
        done = [values for values in records if values["status"] == DONE]
        found = [json.loads((values["run"] / RESULTS).read_text(encoding="utf-8"))["test"] for values in done]
        majority = 100 * done[0]["majority"] if done and cell.measure is accuracy else None
        return Result(cell, tuple(map(cell.measure, found)), len(rows), *worst(records), majority)


def worst(records: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Return ``status`` and ``error`` of the first record that is not done, or of the first one."""
    chosen = next((values for values in records if values["status"] != DONE), records[0])
    return chosen["status"], chosen["error"]


def _recipe(cell: Cell) -> Recipe:
    assert isinstance(cell.recipe, Recipe)
    return cell.recipe


def _run_of(job: Job, dataset: Dataset) -> Run:
    work = generator_work if job.makes_release else victim_work
    return Run(job.name, job.state().status, (work(job.settings, dataset),))
