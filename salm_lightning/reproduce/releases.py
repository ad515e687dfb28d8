"""Numbers of releases beside their originals: similarity (Table 5) and segmentation (Fig. 3); no victim is trained."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np

from salm_lightning.audit.pairs import Pairs
from salm_lightning.audit.segmentation import Otsu, Segmenter, Vessels, compare_masks
from salm_lightning.audit.similarity import Similarity
from salm_lightning.console import say
from salm_lightning.errors import SalmError
from salm_lightning.reproduce.cells import Cell
from salm_lightning.reproduce.settings import Dataset
from salm_lightning.reproduce.victims import Victims
from salm_lightning.runs.record import DONE, FAILED, Run, read_run
from salm_lightning.sweep.job import Job
from salm_lightning.sweep.run import run_all
from salm_lightning.sweep.runners import Local

MEASURES = ("ssim", "ahash", "phash", "dhash", "nmi")
"""Columns of Table 5."""


class Releases(Victims):
    """Cells whose numbers are measured on the bytes of releases; each comparison is made once and kept."""

    name: str
    """Of the comparison, for its files."""

    @abstractmethod
    def compare(self, pairs: Pairs, dataset: Dataset) -> dict[str, float]:
        """Return what is measured, by name, in percent, as means over all training images."""

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


class Similar(Releases):
    """Similarity: SSIM, and hashes and mutual information of the grey images."""

    name = "similarity"

    def compare(self, pairs: Pairs, dataset: Dataset) -> dict[str, float]:
        """Return the means of :data:`MEASURES`."""
        similarity = Similarity()
        for original, protected in pairs.chunks():
            similarity.update(original, protected)
        measured = similarity.per_image()
        return {name: 100 * float(np.mean(measured[name])) for name in MEASURES}


class Segmented(Releases):
    """Share of pixels that a segmenter takes for something else."""

    name = "segmentation"

    def compare(self, pairs: Pairs, dataset: Dataset) -> dict[str, float]:
        """Return the means by the vessels of a fundus, else by what is darker than the background."""
        segment: Segmenter = Vessels() if dataset.name == "retinamnist" else Otsu()
        chunks = [compare_masks(segment(original), segment(protected)) for original, protected in pairs.chunks()]
        return {name: 100 * float(np.mean(np.concatenate([chunk[name] for chunk in chunks]))) for name in chunks[0]}
