"""A cell of a table: what is trained for it, what is measured, what the paper says, and what came out."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from salm_lightning.console import deviation
from salm_lightning.reproduce.settings import Dataset, Settings
from salm_lightning.runs.record import DONE, Run

CLEAN = "clean"
SKIPPED = "skipped"
"""Status of a cell that cannot be measured here."""
Measure = Callable[[Mapping[str, Any]], float]
"""Takes what was found, such as the ``test`` part of a victim's results, and returns percent."""


def accuracy(test: Mapping[str, Any]) -> float:
    """Return the accuracy on the clean test split in percent."""
    return 100 * float(test["acc"])


@dataclass(frozen=True)
class AccuracyOn:
    """The measure of the accuracy on the clean test images of some classes, in percent."""

    classes: tuple[int, ...]

    def __call__(self, test: Mapping[str, Any]) -> float:
        """Return the share of their images that are recognised."""
        confusion = np.asarray(test["confusion"])
        return 100 * float(confusion[self.classes, self.classes].sum() / confusion[list(self.classes)].sum())

    def constant(self, test: Mapping[str, Any]) -> float:
        """Return what always saying the most frequent of them reaches."""
        counts = np.asarray(test["confusion"])[list(self.classes)].sum(axis=1)
        return 100 * float(counts.max() / counts.sum())


@dataclass(frozen=True)
class Recipe:
    """The runs behind a cell: a method's, or a victim on the clean images.

    ``options`` are those of ``fit`` beside the paper's settings, by dotted name, such as ``victim.model.arch``.
    """

    method: Any = "SALM"
    clean: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassOwners:
    """Owners who each hold one class, and support classes from elsewhere (Section 7.1, Appendix D.2).

    Attributes:
        support: A MedMNIST name; ``None`` is the folder of general images.
        classes: The classes to protect; ``None`` is each of them.
        num_support: Most support classes.
        clean: Whether the number is that of the victim on the clean images.
    """

    support: str | None
    classes: tuple[str, ...] | None = None
    num_support: int | None = None
    clean: bool = False


@dataclass(frozen=True)
class Cell:
    """One number of the paper, or one that belongs beside it.

    Attributes:
        method: ``clean``, or one of ``METHODS``; of the row, in a table that has the clean accuracy in each row.
        what: What else tells it from the others.
        paper: The paper's number; ``None`` where it has none.
        recipe: What is run for it, a :class:`Recipe` or :class:`ClassOwners` as its experiment takes; ``None`` if it is derived from
            other cells.
        measure: What is taken from what the run found.
        unit: Name of the number, which is in percent.
    """

    dataset: Dataset
    method: str
    what: str = ""
    paper: float | None = None
    recipe: Any = None
    measure: Measure = accuracy
    unit: str = "accuracy"


def trained(method: str, percent: int = 10, **options: Any) -> Recipe:
    """Return the recipe of a victim that is trained on the ``clean`` images, or on those that one of ``METHODS`` protects.

    ``percent`` is SALM's K; ``__`` stands for a dot in the names of further options.
    """
    salm = {"class_path": "SALM", "init_args": {"percent": percent}}
    noise = salm if method in (CLEAN, "salm") else method.upper()
    return Recipe(noise, method == CLEAN, {name.replace("__", "."): value for name, value in options.items()})


@dataclass(frozen=True)
class Result:
    """What came out for a cell.

    Attributes:
        values: One number for each seed that has finished, as the paper's.
        seeds: Seeds asked for.
        status: ``done``, ``failed``, ``skipped``, or what became of the runs.
        reason: Why it is not done.
        majority: Accuracy of a model that always says the most frequent class, in percent.
    """

    cell: Cell
    values: tuple[float, ...] = ()
    seeds: int = 1
    status: str = DONE
    reason: str = ""
    majority: float | None = None

    @property
    def ours(self) -> float | None:
        """The mean over the seeds."""
        return mean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """The sample standard deviation over the seeds."""
        return deviation(self.values)

    @property
    def difference(self) -> float | None:
        """Ours less the paper's number."""
        return None if self.ours is None or self.cell.paper is None else self.ours - self.cell.paper


class Experiment(ABC):
    """Turns cells into results; settings that cannot work are refused when it is built."""

    def __init__(self, cells: Sequence[Cell], settings: Settings) -> None:
        self.cells, self.settings = cells, settings

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
        return self.settings.missing(cell.dataset)

    def result(self, cell: Cell) -> Result:
        """Return what came out for a cell."""
        if reason := self.missing(cell):
            return Result(cell, status=SKIPPED, reason=reason)
        runs = self.found(cell)
        done = [run.results for run in runs if run.is_done]
        worst = next((run for run in runs if not run.is_done), runs[0])
        majority = 100 * done[0]["majority"] if done and cell.measure is accuracy else None
        return Result(cell, tuple(map(cell.measure, done)), len(runs), worst.status, worst.why, majority)


def tested(run: Run, path: Path) -> Run:
    """Return a victim's run with what its test found, by its results file, if it is done."""
    if not run.is_done:
        return run
    results = json.loads(path.read_text(encoding="utf-8"))
    return replace(run, results=results["test"] | {"majority": results["majority"]})
