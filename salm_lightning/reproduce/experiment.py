"""What all experiments share: where they run, which datasets are there, and how a planned run is described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from salm_lightning.errors import DataError
from salm_lightning.reproduce.cells import Cell, Result
from salm_lightning.reproduce.settings import Dataset, Settings
from salm_lightning.reproduce.work import Work


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
        if not self.download:
            return ""
        if dataset not in self._reasons:
            try:
                self.settings.data(dataset).prepare_data()
                self._reasons[dataset] = ""
            except DataError as error:
                self._reasons[dataset] = str(error)
        return self._reasons[dataset]


@dataclass(frozen=True)
class Run:
    """One run of a plan.

    Attributes:
        name: Its folder.
        status: What has become of it.
        works: Its parts; empty if it cannot run.
    """

    name: str
    status: str
    works: tuple[Work, ...] = ()


class Experiment(Protocol):
    """Turns cells into results; settings that cannot work are refused when it is built."""

    def __init__(self, cells: Sequence[Cell], lab: Setup) -> None:
        """Plan."""

    def runs(self) -> list[Run]:
        """Return what there is to run, done or not."""

    def run(self) -> int:
        """Run what is not done yet; return the exit code, above 1 after a stop."""

    def results(self) -> list[Result]:
        """Return a result for each cell."""
