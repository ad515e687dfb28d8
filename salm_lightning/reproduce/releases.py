"""Numbers of releases beside their originals: similarity (Table 5) and segmentation (Fig. 3); no victim is trained."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from salm_lightning.audit.pairs import Pairs
from salm_lightning.audit.segmentation import Otsu, Segmenter, Vessels, compare_masks
from salm_lightning.audit.similarity import Similarity
from salm_lightning.console import say
from salm_lightning.errors import SalmError
from salm_lightning.files import write_json
from salm_lightning.reproduce.cells import SKIPPED, Cell, Result
from salm_lightning.reproduce.experiment import Setup
from salm_lightning.reproduce.settings import Dataset
from salm_lightning.reproduce.victims import Victims, worst
from salm_lightning.sweep.job import DONE, FAILED, Job
from salm_lightning.sweep.plan import Row
from salm_lightning.sweep.run import all_jobs, make_releases
from salm_lightning.sweep.runners import Local

MEASURES = ("ssim", "ahash", "phash", "dhash", "nmi")
"""Columns of Table 5."""
_SEGMENTERS: Mapping[str, type[Otsu] | type[Vessels]] = {"retinamnist": Vessels}
"""What is segmented: the vessels of a fundus, else what is darker than the background."""


class Releases(Victims):
    """Cells whose numbers are measured on the bytes of releases; each comparison is made once and kept."""

    name: str
    """Of the comparison, for its files."""

    def __init__(self, cells: Sequence[Cell], lab: Setup) -> None:
        super().__init__(cells, lab)
        self._errors: dict[str, str] = {}

    @abstractmethod
    def compare(self, pairs: Pairs, dataset: Dataset) -> dict[str, float]:
        """Return what is measured, by name, as means over the images."""

    @staticmethod
    def jobs(rows: Sequence[Row]) -> list[Job]:
        """Return the releases of some victims."""
        return [job for job in all_jobs(rows) if job.makes_release]

    def run(self) -> int:
        """Make the releases and compare them with their originals."""
        rows = self._all_rows()
        code = make_releases(rows, Local(self.lab.workers), self.lab.out) if rows else 0
        if code <= 1:
            for cell, rows_of_cell in zip(self.cells, self.rows, strict=True):
                for job in self.jobs(rows_of_cell):
                    self._compare(job, cell.dataset)
        return code

    def _file(self, job: Job) -> Path:
        return self.lab.out / self.name / f"{job.name}.json"

    def _compare(self, job: Job, dataset: Dataset) -> None:
        path = self._file(job)
        if path.is_file() or job.state().status != DONE:
            return
        say(f"Comparing {job.release} with its originals: {self.name}")
        data = self.lab.settings.data(dataset)
        try:
            write_json(path, {"found": self.compare(Pairs(job.release, data), dataset)})
        except SalmError as error:
            self._errors[job.name] = str(error)

    def _result(self, cell: Cell, rows: Sequence[Row]) -> Result:
        if not rows:
            return Result(cell, status=SKIPPED, reason=self.lab.missing(cell.dataset))
        jobs = self.jobs(rows)
        found = [json.loads(path.read_text(encoding="utf-8"))["found"] for path in map(self._file, jobs) if path.is_file()]
        records = [{"status": job.state().status, "error": job.state().error} for job in jobs]
        status, reason = worst(records)
        if status == DONE and len(found) < len(jobs):
            status, reason = (
                FAILED,
                next((self._errors[job.name] for job in jobs if job.name in self._errors), "not compared yet"),
            )
        return Result(cell, tuple(map(cell.measure, found)), len(rows), status, reason)


class Similar(Releases):
    """Similarity in percent: SSIM, and hashes and mutual information of the grey images."""

    name = "similarity"

    def compare(self, pairs: Pairs, dataset: Dataset) -> dict[str, float]:
        """Return the means over all training images."""
        similarity = Similarity()
        for original, protected in pairs.chunks():
            similarity.update(original, protected)
        measured = similarity.per_image()
        return {name: 100 * float(np.mean(measured[name])) for name in MEASURES}


class Segmented(Releases):
    """Share of pixels in percent that a segmenter takes for something else."""

    name = "segmentation"

    def compare(self, pairs: Pairs, dataset: Dataset) -> dict[str, float]:
        """Return the means over all training images."""
        segment: Segmenter = _SEGMENTERS.get(dataset.name, Otsu)()
        chunks = [compare_masks(segment(original), segment(protected)) for original, protected in pairs.chunks()]
        return {name: 100 * float(np.mean(np.concatenate([chunk[name] for chunk in chunks]))) for name in chunks[0]}
