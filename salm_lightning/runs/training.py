"""What the commands that protect have in common: training a noise generator, making its release, training victims as proof."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from salm_lightning.callbacks import NoisePictures, Throughput, progress_bar
from salm_lightning.callbacks.checkpoint import RunCheckpoint, latest_checkpoint
from salm_lightning.console import metrics_table, say
from salm_lightning.data import ImageDataModule, Task
from salm_lightning.data.original import Original
from salm_lightning.errors import ConfigurationError, OutputExistsError, look_up
from salm_lightning.files import write_json
from salm_lightning.models import ARCHITECTURES
from salm_lightning.modules import NoiseGeneratorModule
from salm_lightning.noise.methods import Method
from salm_lightning.release import PoisonedDataModule, check_destination
from salm_lightning.runs.generation import generate
from salm_lightning.runs.results import RESULTS
from salm_lightning.runs.trainers import Precision, facts_of, sgd, single_device_trainer
from salm_lightning.runs.victims import VictimSettings, train_victim

VICTIMS = ("clean", "protected")
"""What the victims of a proof are trained on."""
GENERATOR, PROTECTED = "generator", "protected"
"""Folders of the noise generator's run and of the release in that of a result."""


@dataclass(frozen=True)
class Training:
    """How noise generators and victims are trained, on one device; ``salm-cli fit`` takes several.

    Args:
        source: Architecture of the source model.
        width: Width factor of the source model and the victims.
        steps: Training steps of the noise generator, M.
        loop: ``persistent`` keeps each image's noise between visits; ``fresh``, the paper's way, starts anew at each step.
        updates_per_visit: PGD steps per visit of an image, or ``auto``.
        victim: Architecture of the victims.
        victim_steps: Training steps of each victim.
        source_learning_rate: First learning rate of the source model; a smaller one leaves the noise more time to get ahead of what
            the source model learns of the images.
        learning_rate: First learning rate of the victims.
        accelerator: Lightning's accelerator: ``auto``, ``cpu`` or ``gpu``.
        precision: Numerical precision.
        seed: Settles everything random.

    Raises:
        ConfigurationError: A value is unknown or out of range.
    """

    source: str = "resnet18"
    width: float = 1.0
    steps: int = 5000
    loop: Literal["persistent", "fresh"] = "persistent"
    updates_per_visit: int | Literal["auto"] = "auto"
    victim: str = "resnet18"
    victim_steps: int = 20000
    source_learning_rate: float = 0.1
    learning_rate: float = 0.1
    accelerator: str = "auto"
    precision: Precision = "32-true"
    seed: int = 0

    def __post_init__(self) -> None:
        look_up("source", self.source, ARCHITECTURES)
        if not self.source_learning_rate > 0:
            raise ConfigurationError(
                f"source_learning_rate={self.source_learning_rate} is out of range; give more than 0, such as 0.1."
            )
        for name in ("steps", "updates_per_visit"):
            if getattr(self, name) != "auto" and getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} is out of range; give 1 or more.")
        _ = self._victim  # refuses what is wrong about it

    def release(self, method: Method, images: ImageDataModule, folder: Path, overwrite: bool) -> Path:
        """Train a noise generator in ``folder/generator`` and write the protected dataset to ``folder/protected``.

        A training that was interrupted there goes on.

        Returns:
            The folder of the release.
        """
        module = NoiseGeneratorModule(
            method,
            **facts_of(images),
            source=self.source,
            width=self.width,
            loop=self.loop,
            updates_per_visit=self.updates_per_visit,
            optimizer=sgd(self.source_learning_rate),
            seed=self.seed,
        )
        callbacks = [Throughput(), progress_bar(), RunCheckpoint(max(1, self.steps // 10)), NoisePictures()]
        trainer = single_device_trainer(folder, GENERATOR, self.steps, callbacks, self.accelerator, self.precision)
        saved = folder / GENERATOR / "checkpoints"
        if method.trains_source_on is not None:
            trainer.fit(module, datamodule=images, ckpt_path=latest_checkpoint(saved), weights_only=True)
        return generate(trainer, module, images, folder / PROTECTED, latest_checkpoint(saved), overwrite)

    def compare(
        self, images: ImageDataModule, release: Path, folder: Path, prefixes: tuple[str, str] = ("", "")
    ) -> dict[str, dict[str, Any]]:
        """Train a victim on the clean images and one on their release, each in ``folder/victim-<name>``.

        A victim whose results are there is not trained again.

        Args:
            images: The clean images.
            release: Folder of the release.
            folder: Folder of the result.
            prefixes: What stands before the line that announces each training.

        Returns:
            Results on the clean test split under ``clean`` and ``protected``.
        """
        poisoned = PoisonedDataModule(release, batch_size=images.batch_size, seed=images.seed)
        results = {}
        for prefix, (name, data) in zip(prefixes, zip(VICTIMS, (images, poisoned), strict=True), strict=True):
            path = results_file(folder, name)
            if path.is_file():
                say(f"{prefix}a victim on the {name} images: done before")
                results[name] = json.loads(path.read_text(encoding="utf-8"))
                continue
            say(f"{prefix}training a victim on the {name} images: {self.victim}, {self.victim_steps} steps")
            callbacks = [Throughput(), progress_bar()]
            results[name] = train_victim(self._victim, data, folder, f"victim-{name}", callbacks, self.accelerator).results
            write_json(path, results[name])
        return results

    @property
    def _victim(self) -> VictimSettings:
        return VictimSettings(
            self.victim, self.width, self.victim_steps, self.precision, learning_rate=self.learning_rate, seed=self.seed
        )


def settings_of(method: Method, training: Training, images: ImageDataModule) -> dict[str, Any]:
    """Return all that a result depends on, as JSON values: an unfinished one only goes on with the same."""
    file = Original(images).file
    data = {"dataset": images.describe(), "source": None if file is None else file.sha256, "batch_size": images.batch_size}
    return {"method": method.settings(), **asdict(training), **data}


def results_file(folder: Path, name: str) -> Path:
    """Return where :meth:`Training.compare` puts the results of a victim."""
    return folder / f"victim-{name}" / RESULTS


def check_result(folder: Path, overwrite: bool) -> None:
    """Refuse the folder of a result in which no release may be written.

    Raises:
        OutputExistsError: A release stands there, and ``overwrite`` is off, or it is none that may be replaced.
    """
    try:
        check_destination(folder / PROTECTED, overwrite)
    except OutputExistsError as error:
        raise OutputExistsError(f"out={folder}: {error}") from error


def proof_table(results: dict[str, dict[str, Any]], images: ImageDataModule) -> Table:
    """Return a table of victims' results by what they were trained on, with the majority-class line."""
    rows = {f"{name} images": result["test"] for name, result in results.items()}
    blind = 0.5 if images.task is Task.MULTI_LABEL else 1 / images.num_classes
    majority = next(iter(results.values()))["majority"]
    rows["majority class (no model)"] = {"acc": majority, "auc": 0.5, "balanced_acc": blind, "kappa": 0.0}
    title = f"A model trained on it, measured on the clean test split of {images.info.name}"
    return metrics_table(title, "trained on", rows, digits=1)
