"""What all experiments share: where they run, which datasets are there, and how results come of what was found."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from salm_lightning.errors import DataError
from salm_lightning.reproduce.cells import SKIPPED, Cell, Result, accuracy
from salm_lightning.reproduce.settings import Dataset, Settings
from salm_lightning.runs.record import Run


@dataclass(frozen=True)
class Setup:
    """Where and how cells are measured.

    Attributes:
        settings: How generators and victims are trained.
        out: Folder of all runs; tables and figures share them.
        workers: Runs at a time.
        general: Folder with one subfolder of general images per class, for support classes.
        download: Whether missing datasets are downloaded; if not, nothing needs them, as in a dry run.
    """

    settings: Settings
    out: Path
    workers: int = 1
    general: Path | None = None
    download: bool = True
    _reasons: dict[Dataset, str] = field(default_factory=dict)

    def missing(self, dataset: Dataset) -> str:
        """Return why a dataset cannot be used, or an empty string; it is downloaded if need be."""
        if self.download and dataset not in self._reasons:
            self._reasons[dataset] = ""
            try:
                self.settings.data(dataset).prepare_data()
            except DataError as error:
                self._reasons[dataset] = str(error)
        return self._reasons.get(dataset, "")


def tested(run: Run, path: Path) -> Run:
    """Return a victim's run that is done with what its test found, by its results file."""
    results = json.loads(path.read_text(encoding="utf-8"))
    return replace(run, results=results["test"] | {"majority": results["majority"]})


class Experiment(ABC):
    """Turns cells into results; settings that cannot work are refused when it is built."""

    def __init__(self, cells: Sequence[Cell], setup: Setup) -> None:
        self.cells, self.setup = cells, setup

    @abstractmethod
    def show_plan(self) -> None:
        """Print what there is to run, with an estimate of time and disk."""

    @abstractmethod
    def run(self) -> int:
        """Run what is not done yet; return the exit code, above 1 after a stop."""

    @abstractmethod
    def found(self, cell: Cell) -> list[Run]:
        """Return what became of a cell's runs, one for each seed; the results are what its measure takes."""

    def missing(self, cell: Cell) -> str:
        """Return why a cell cannot be measured here, or an empty string."""
        return self.setup.missing(cell.dataset)

    def result(self, cell: Cell) -> Result:
        """Return what came out for a cell."""
        if reason := self.missing(cell):
            return Result(cell, status=SKIPPED, reason=reason)
        runs = self.found(cell)
        done = [run.results for run in runs if run.is_done]
        worst = next((run for run in runs if not run.is_done), runs[0])
        majority = 100 * done[0]["majority"] if done and cell.measure is accuracy else None
        return Result(cell, tuple(map(cell.measure, done)), len(runs), worst.status, worst.why, majority)
