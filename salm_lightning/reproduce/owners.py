"""Numbers of datasets that owners protect class by class, each among support classes (Section 7.1, Appendix D.2)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from salm_lightning.console import say
from salm_lightning.data import MEDMNIST
from salm_lightning.errors import ConfigurationError, SalmError
from salm_lightning.files import address, locked
from salm_lightning.reproduce.cells import SKIPPED, Cell, ClassOwners, Result, accuracy
from salm_lightning.reproduce.experiment import Run, Setup
from salm_lightning.reproduce.settings import Dataset
from salm_lightning.reproduce.work import Work, classwise_works
from salm_lightning.runs.training import Training, results_file
from salm_lightning.scenarios.classwise import classwise
from salm_lightning.sweep.job import DONE, FAILED, OPEN

_GENERAL = "no folder of general images is given: name one with --general FOLDER, with one subfolder of images per class"


class ClassByClass:
    """Cells whose numbers are those of victims on a class-wise release.

    Args:
        cells: The cells.
        lab: Where and how.

    Raises:
        ConfigurationError: ``general`` is no folder.
    """

    def __init__(self, cells: Sequence[Cell], lab: Setup) -> None:
        if lab.general is not None and not lab.general.is_dir():
            raise ConfigurationError(f"general={lab.general} is no folder; give one with a subfolder of images per class.")
        self.cells, self.lab = cells, lab
        self._errors: dict[Path, str] = {}

    def runs(self) -> list[Run]:
        """Return one run for each support and seed."""
        found = {}
        for cell in self.cells:
            for seed in self.lab.settings.seeds:
                folder, reason = self._folder(cell, seed), self._missing(cell)
                works = () if reason else self._works(cell, seed)
                found[folder] = Run(folder.name, SKIPPED if reason else self._status(folder), works)
        return list(found.values())

    def run(self) -> int:
        """Protect and train what is not done yet, one after another in this process."""
        with locked(self.lab.out, "sweep"):
            for cell in self.cells:
                for seed in self.lab.settings.seeds:
                    self._protect(cell, seed)
        return int(any(result.status != DONE for result in self.results()))

    def _protect(self, cell: Cell, seed: int) -> None:
        folder = self._folder(cell, seed)
        if self._missing(cell) or folder in self._errors or self._status(folder) == DONE:
            return
        say(f"Protecting {cell.dataset} class by class among {_recipe(cell).support or self.lab.general}, seed {seed}")
        try:
            # A release without its victims is made anew of the finished classes, which takes seconds.
            classwise(**self._arguments(cell), training=self._training(cell, seed), out=folder, overwrite=True)
        except (SalmError, RuntimeError) as error:  # diverged, or out of memory
            self._errors[folder] = str(error)
            say(f"FAILED: {error}")

    def results(self) -> list[Result]:
        """Return a result for each cell."""
        return [self._result(cell) for cell in self.cells]

    def _result(self, cell: Cell) -> Result:
        if reason := self._missing(cell):
            return Result(cell, status=SKIPPED, reason=reason)
        folders = [self._folder(cell, seed) for seed in self.lab.settings.seeds]
        trained_on = "clean" if _recipe(cell).clean else "protected"
        done = [folder for folder in folders if self._status(folder) == DONE]
        found = [json.loads(results_file(folder, trained_on).read_text(encoding="utf-8")) for folder in done]
        status = next((self._status(folder) for folder in folders if folder not in done), DONE)
        reason = next((self._errors[folder] for folder in folders if folder in self._errors), "")
        majority = 100 * found[0]["majority"] if found and cell.measure is accuracy else None
        return Result(cell, tuple(cell.measure(results["test"]) for results in found), len(folders), status, reason, majority)

    def _status(self, folder: Path) -> str:
        if folder in self._errors:
            return FAILED
        # The protected victim is the last one.
        return DONE if results_file(folder, "protected").is_file() else OPEN

    def _missing(self, cell: Cell) -> str:
        support = _recipe(cell).support
        if support is None and self.lab.general is None:
            return _GENERAL
        return self.lab.missing(cell.dataset) or (self.lab.missing(Dataset(support)) if support else "")

    def _works(self, cell: Cell, seed: int) -> tuple[Work, ...]:
        recipe, training = _recipe(cell), self._training(cell, seed)
        classes = len(recipe.classes or MEDMNIST[cell.dataset.name].class_names)
        return classwise_works(cell.dataset, recipe.support, self._num_support(recipe), classes, training)

    def _num_support(self, recipe: ClassOwners) -> int:
        """Return how many support classes there are, at most as many as are wanted."""
        available = len(MEDMNIST[recipe.support].class_names) if recipe.support else _subfolders(self.lab.general)
        return min(recipe.num_support or available, available)

    def _arguments(self, cell: Cell) -> dict[str, Any]:
        """Return the arguments of ``classwise`` that say what is protected, and among what."""
        recipe, lab = _recipe(cell), self.lab
        return {
            "data": cell.dataset.name,
            "support": recipe.support or str(lab.general),
            "classes": None if recipe.classes is None else list(recipe.classes),
            "num_support": self._num_support(recipe),
            "size": cell.dataset.size,
            "root": lab.settings.root,
        }

    def _training(self, cell: Cell, seed: int) -> Training:
        settings = self.lab.settings
        return Training(
            width=settings.width,
            steps=settings.steps(cell.dataset.size),
            loop="fresh",
            victim_steps=settings.victim_steps,
            accelerator=settings.accelerator,
            precision=settings.precision,
            seed=seed,
        )

    def _folder(self, cell: Cell, seed: int) -> Path:
        """Return the folder that belongs to all settings, as those of a sweep do."""
        settings = {**self._arguments(cell), **asdict(self._training(cell, seed))}
        support = _recipe(cell).support or "general"
        return self.lab.out / f"{cell.dataset}-classwise-{support}-{address({**settings, 'root': None})[:12]}"


def _subfolders(folder: Path | None) -> int:
    return 0 if folder is None else sum(path.is_dir() for path in folder.iterdir())


def _recipe(cell: Cell) -> ClassOwners:
    assert isinstance(cell.recipe, ClassOwners)
    return cell.recipe
