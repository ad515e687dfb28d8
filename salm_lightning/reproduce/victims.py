"""Numbers of the sweep behind a table: of its victims, or of its releases beside their originals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from salm_lightning.audit.pairs import Pairs
from salm_lightning.audit.segmentation import Otsu, Segmenter, Vessels, compare_masks
from salm_lightning.audit.similarity import Similarity
from salm_lightning.console import say
from salm_lightning.errors import SalmError
from salm_lightning.reproduce.cells import CLEAN, Cell, Experiment, tested
from salm_lightning.reproduce.settings import Dataset, Settings
from salm_lightning.runs.record import DONE, FAILED, Run, read_run
from salm_lightning.sweep.job import Job
from salm_lightning.sweep.plan import Planner
from salm_lightning.sweep.results import record
from salm_lightning.sweep.run import all_jobs, run_all, run_sweep, show_plan
from salm_lightning.sweep.runners import Local

MEASURES = ("ssim", "ahash", "phash", "dhash", "nmi")
"""Columns of Table 5."""
Comparison = Callable[[Pairs, Dataset], dict[str, float]]
"""Returns what is measured, by name, in percent, as means over all training images."""
_DEFAULTS = {"victim.model.arch": "resnet18", "victim.data.part": "all"}
"""Values of options that a cell does not name and another one does; of all others ``None``."""


class Victims(Experiment):
    """Cells whose numbers are those of ``victims``: of each cell one for each seed, or none if its dataset is missing."""

    def __init__(self, cells: Sequence[Cell], settings: Settings) -> None:
        super().__init__(cells, settings)
        self._keys = sorted({key for cell in cells for key in cell.recipe.options})
        self._planners: dict[Dataset, Planner] = {}
        self.victims = [[] if self.missing(cell) else self._plan(cell) for cell in cells]

    def _plan(self, cell: Cell) -> list[Job]:
        settings, dataset, recipe = self.settings, cell.dataset, cell.recipe
        if dataset not in self._planners:
            sections = (settings.generator(dataset), settings.victim())
            self._planners[dataset] = Planner(*sections, settings.out, settings.download)
        # Size, which the name of a dataset lacks, and every option that varies in the table: its cells have the same columns.
        grid = {"generator.data.size": [dataset.size], "generator.model.method": [recipe.method]}
        grid |= {key: [recipe.options.get(key, _DEFAULTS.get(key))] for key in self._keys}
        victims = self._planners[dataset].victims(grid | {"seed": list(settings.seeds)}, recipe.clean)
        return [victim for victim in victims if (victim.values["trained_on"] == CLEAN) is recipe.clean]

    def jobs(self, victims: Iterable[Job]) -> list[Job]:
        """Return what has to run for some victims, each once."""
        return all_jobs(list(victims))

    def show_plan(self) -> None:
        """Print releases and victims in the order in which they run."""
        show_plan(self.jobs(chain(*self.victims)), self.settings.workers)

    def run(self) -> int:
        """Run the sweep."""
        victims = list({victim.name: victim for victim in chain(*self.victims)}.values())
        return run_sweep(victims, Local(self.settings.workers), self.settings.out) if victims else 0

    def found(self, cell: Cell) -> list[Run]:
        """Return what became of a cell's victims, with what their test found."""
        victims = self.victims[self.cells.index(cell)]
        found = [(record(victim), victim.product) for victim in victims]
        return [tested(Run({}, values["status"], values["error"]), results) for values, results in found]


class Releases(Victims):
    """Cells whose numbers are measured on the bytes of releases; each comparison is made once and kept, and no victim is trained.

    ``name`` is the comparison's, for its files, and ``compare`` makes it.
    """

    def __init__(self, cells: Sequence[Cell], settings: Settings, name: str, compare: Comparison) -> None:
        super().__init__(cells, settings)
        self.name, self.compare = name, compare

    def jobs(self, victims: Iterable[Job]) -> list[Job]:
        """Return the releases of some victims, each once."""
        return [job for job in super().jobs(victims) if job.makes_release]

    def run(self) -> int:
        """Make the releases and compare them with their originals."""
        jobs = self.jobs(chain(*self.victims))
        stopped = run_all(jobs, Local(self.settings.workers), self.settings.out) if jobs else 0
        if not stopped:
            for cell, of_cell in zip(self.cells, self.victims, strict=True):
                for job in self.jobs(of_cell):
                    self._compare(job, cell.dataset)
        return stopped

    def found(self, cell: Cell) -> list[Run]:
        """Return what became of a cell's comparisons."""
        jobs = self.jobs(self.victims[self.cells.index(cell)])
        return [self._comparison(job) if job.state().is_done else job.state() for job in jobs]

    def _record(self, job: Job) -> Path:
        return self.settings.out / self.name / f"{job.name}.json"

    def _comparison(self, job: Job) -> Run:
        new = Run({"release": job.name, "compared": self.name}, why="not compared yet")
        found = read_run(self._record(job))
        return found if found and found.identity == new.identity else new

    def _compare(self, job: Job, dataset: Dataset) -> None:
        run, begin = self._comparison(job), time.monotonic()
        if run.is_done or not job.state().is_done:
            return
        say(f"Comparing {job.release} with its originals: {self.name}")
        try:
            found = self.compare(Pairs(job.release, self.settings.data(dataset)), dataset)
            run = run.ended(DONE, time.monotonic() - begin, found)
        except SalmError as error:
            run = run.ended(FAILED, time.monotonic() - begin, why=str(error))
        run.write(self._record(job))


def similarity(pairs: Pairs, dataset: Dataset) -> dict[str, float]:
    """Return the means of :data:`MEASURES` (Table 5): SSIM, and hashes and mutual information of the grey images."""
    images = Similarity()
    for original, protected in pairs.chunks():
        images.update(original, protected)
    measured = images.per_image()
    return {name: 100 * float(np.mean(measured[name])) for name in MEASURES}


def segmentation(pairs: Pairs, dataset: Dataset) -> dict[str, float]:
    """Return the means of what changes (Fig. 3) for the vessels of a fundus, else for what is darker than the background."""
    segment: Segmenter = Vessels() if dataset.name == "retinamnist" else Otsu()
    chunks = [compare_masks(segment(original), segment(protected)) for original, protected in pairs.chunks()]
    return {name: 100 * float(np.mean(np.concatenate([chunk[name] for chunk in chunks]))) for name in chunks[0]}
