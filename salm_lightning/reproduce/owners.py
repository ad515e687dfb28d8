"""Numbers of datasets that owners protect class by class, each among support classes (Section 7.1, Appendix D.2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from lightning.pytorch import seed_everything

from salm_lightning.console import say
from salm_lightning.data import MEDMNIST, SPLITS
from salm_lightning.data.catalogue import INFO
from salm_lightning.data.combined import MAX_PER_CLASS
from salm_lightning.data.original import named_images
from salm_lightning.errors import ConfigurationError, SalmError
from salm_lightning.files import address, locked
from salm_lightning.noise.methods import SALM
from salm_lightning.reproduce.cells import SKIPPED, Cell, ClassOwners, Experiment, tested
from salm_lightning.reproduce.settings import Dataset, Settings
from salm_lightning.runs.effort import Training
from salm_lightning.runs.plan import generator_work, victim_work
from salm_lightning.runs.protection import results_file
from salm_lightning.runs.record import FAILED, Run, read_run
from salm_lightning.scenarios.classwise import ClassWise, Support, numbers_of
from salm_lightning.sweep.job import Cost
from salm_lightning.sweep.run import PlannedRun, show_runs

_GENERAL = "no folder of general images is given: name one with --general FOLDER, with one subfolder of images per class"


class ClassByClass(Experiment):
    """Cells whose numbers are those of victims on a class-wise release.

    Raises:
        ConfigurationError: ``general`` is no folder.
    """

    def __init__(self, cells: Sequence[Cell], settings: Settings) -> None:
        super().__init__(cells, settings)
        if settings.general is not None and not settings.general.is_dir():
            raise ConfigurationError(f"general={settings.general} is no folder; give one with a subfolder of images per class.")
        self._runs = list(product(cells, settings.seeds))
        self._failed: dict[Path, Run] = {}

    def run(self) -> int:
        """Protect and train what is not done yet, one after another in this process."""
        with locked(self.settings.out, f"out={self.settings.out}"):
            for cell, seed in self._runs:
                folder = self._folder(cell, seed)
                if not (self.missing(cell) or folder in self._failed or self._state(folder).is_done):
                    self._protect(cell, seed, folder)
        return 0

    def _protect(self, cell: Cell, seed: int, folder: Path) -> None:
        recipe, root = cell.recipe, self.settings.root
        say(f"Protecting {cell.dataset} class by class among {self._among(recipe)}, seed {seed}")
        try:
            seed_everything(seed, verbose=False)
            images = named_images(cell.dataset.name, cell.dataset.size, root, seed=seed).load()
            support = Support.named(self._among(recipe), images, root, self._num_support(recipe), seed)
            numbers, training = numbers_of(recipe.classes, images), self._training(cell, seed)
            result = ClassWise(images, folder, SALM(), training, numbers=numbers, support=support)
            result.run(yes=True, overwrite=True)
        except (SalmError, RuntimeError) as error:  # diverged, or out of memory
            self._failed[folder] = Run({}, FAILED, str(error))
            say(f"FAILED: {error}")

    def found(self, cell: Cell) -> list[Run]:
        """Return what became of a cell's releases, with what the victim of its number found."""
        folders = [self._folder(cell, seed) for seed in self.settings.seeds]
        victim = "clean" if cell.recipe.clean else "protected"
        return [tested(self._state(folder), results_file(folder, victim)) for folder in folders]

    def _state(self, folder: Path) -> Run:
        """Return what became of a release and its victims, in this command or before."""
        return self._failed.get(folder) or read_run(folder / ClassWise.record) or Run({})

    def missing(self, cell: Cell) -> str:
        """Return why a cell cannot be measured here: its data, or those of its support classes."""
        support = cell.recipe.support
        if support is None and self.settings.general is None:
            return _GENERAL
        return super().missing(cell) or (self.settings.missing(Dataset(support)) if support else "")

    def show_plan(self) -> None:
        """Print a run for each support and seed."""
        planned = {}
        for cell, seed in self._runs:
            folder, skipped = self._folder(cell, seed), self.missing(cell)
            cost = None if skipped else self._cost(cell, seed)
            planned[folder] = PlannedRun(folder.name, SKIPPED if skipped else self._state(folder).status, cost)
        show_runs(list(planned.values()), 1)

    def _cost(self, cell: Cell, seed: int) -> Cost:
        """Return the cost of protecting a dataset class by class, and of two victims."""
        recipe, training, data = cell.recipe, self._training(cell, seed), self.settings.data(cell.dataset)
        sizes, names = INFO[cell.dataset.name]["n_samples"], MEDMNIST[cell.dataset.name].class_names
        beside = dict.fromkeys(SPLITS, MAX_PER_CLASS)
        if recipe.support is not None:
            classes = len(MEDMNIST[recipe.support].class_names)
            beside = {split: size // classes for split, size in INFO[recipe.support]["n_samples"].items()}
        combined = {split: size // len(names) + self._num_support(recipe) * beside[split] for split, size in sizes.items()}
        part, victim = generator_work(training, SALM(), data, combined), victim_work(training, data, sizes)
        works = (part,) * len(recipe.classes or names) + (victim,) * 2
        return Cost(works, training.accelerator, training.precision)

    def _num_support(self, recipe: ClassOwners) -> int:
        """Return how many support classes there are, at most as many as are wanted."""
        if recipe.support is not None:
            available = len(MEDMNIST[recipe.support].class_names)
        else:
            available = sum(path.is_dir() for path in self.settings.general.iterdir()) if self.settings.general else 0
        return min(recipe.num_support or available, available)

    def _among(self, recipe: ClassOwners) -> str:
        """Return the word for the support classes' origin."""
        return recipe.support or str(self.settings.general)

    def _training(self, cell: Cell, seed: int) -> Training:
        settings = self.settings
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
        recipe, training = cell.recipe, self._training(cell, seed).settings()
        identity = address(str(cell.dataset), self._among(recipe), recipe.classes, self._num_support(recipe), training)
        return self.settings.out / f"{cell.dataset}-classwise-{recipe.support or 'general'}-{identity[:12]}"
