"""What the commands that protect have in common: training a noise generator, making its release, training victims as proof."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.loggers import TensorBoardLogger
from rich.table import Table
from torch.optim import SGD

from salm_lightning.callbacks import NoisePictures, Throughput, progress_bar
from salm_lightning.callbacks.checkpoint import RunCheckpoint
from salm_lightning.data import MEDMNIST, ImageDataModule, MedMNISTDataModule, NpzDataModule, SyntheticDataModule, Task
from salm_lightning.errors import ConfigurationError, DataError, OutputExistsError, did_you_mean, look_up
from salm_lightning.generation import generate
from salm_lightning.models import ARCHITECTURES
from salm_lightning.modules import NoiseGeneratorModule, VictimModule
from salm_lightning.noise.methods import Method
from salm_lightning.release import PoisonedDataModule, check_destination
from salm_lightning.summary import RESULTS, metrics_table, say, victim_results, write_json

SYNTHETIC = "synthetic"
"""Name of the embedded data."""
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


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
        for name in ("source_learning_rate", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"{name}={getattr(self, name)} is out of range; give more than 0, such as 0.1.")
        for name in ("steps", "victim_steps"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} is out of range; give 1 or more.")
        for name in ("source", "victim"):
            look_up(name, getattr(self, name), ARCHITECTURES)

    def release(self, method: Method, images: ImageDataModule, folder: Path, overwrite: bool) -> Path:
        """Train a noise generator in ``folder/generator`` and write the protected dataset to ``folder/protected``.

        Returns:
            The folder of the release.
        """
        module = NoiseGeneratorModule(
            method,
            **_facts(images),
            source=self.source,
            width=self.width,
            loop=self.loop,
            updates_per_visit=self.updates_per_visit,
            optimizer=_sgd(self.source_learning_rate),
            seed=self.seed,
        )
        trainer = self._trainer(folder, "generator", self.steps, [RunCheckpoint(max(1, self.steps // 10)), NoisePictures()])
        if method.trains_source_on is not None:
            trainer.fit(module, datamodule=images)
        return generate(trainer, module, images, folder / "protected", overwrite=overwrite)

    def compare(
        self, images: ImageDataModule, release: Path, folder: Path, prefixes: tuple[str, str] = ("", "")
    ) -> dict[str, dict[str, Any]]:
        """Train a victim on the clean images and one on their release, each in ``folder/victim-<name>``.

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
        for prefix, (name, data) in zip(prefixes, (("clean", images), ("protected", poisoned)), strict=True):
            say(f"{prefix}training a victim on the {name} images: {self.victim}, {self.victim_steps} steps")
            results[name] = self._prove(data, folder, name)
        return results

    def _prove(self, images: ImageDataModule, folder: Path, name: str) -> dict[str, Any]:
        sgd = _sgd(self.learning_rate)
        model = VictimModule(**_facts(images), arch=self.victim, width=self.width, optimizer=sgd, seed=self.seed)
        trainer = self._trainer(folder, f"victim-{name}", self.victim_steps, [])
        trainer.fit(model, datamodule=images)
        trainer.test(model, datamodule=images, verbose=False)
        results = victim_results(model, images)
        write_json(Path(str(trainer.log_dir)) / RESULTS, results)
        return results

    def _trainer(self, folder: Path, name: str, steps: int, callbacks: list[Callback]) -> Trainer:
        try:
            return Trainer(
                accelerator=self.accelerator,
                devices=1,
                precision=self.precision,
                use_distributed_sampler=False,
                max_epochs=-1,
                max_steps=steps,
                check_val_every_n_epoch=None,
                val_check_interval=check_interval(steps),
                num_sanity_val_steps=0,
                enable_model_summary=False,
                logger=TensorBoardLogger(folder, name="", version=name),
                callbacks=[Throughput(), progress_bar(), *callbacks],
                enable_checkpointing=any(isinstance(callback, RunCheckpoint) for callback in callbacks),
            )
        except ValueError as error:  # such as an accelerator that is not known
            raise ConfigurationError(str(error)) from error


def check_interval(steps: int) -> int:
    """Return the steps between two looks at the clean images in a training of so many steps."""
    return min(250, max(1, steps // 5))


def open_data(data: str, size: int | None, root: Path | None, **options: Any) -> ImageDataModule:
    """Return the DataModule for what a user names as data, loaded.

    Args:
        data: A MedMNIST name, an ``.npz`` file in MedMNIST's layout, or ``synthetic``.
        size: Height and width for a name; ``None`` is 28.
        root: Folder of MedMNIST's files.
        **options: Further options of the DataModule.

    Raises:
        SalmError: It is neither a MedMNIST name, nor an ``.npz`` file, nor ``synthetic``; or it cannot be read.
    """
    images = _choose_data(data, size, root, **options)
    images.prepare_data()
    images.setup("fit")
    return images


def result_folder(out: Path | None, name: str, overwrite: bool) -> Path:
    """Return the folder of a result, ``out`` or one named after it, in which a release may be written.

    Raises:
        OutputExistsError: A release stands there, and ``overwrite`` is off, or it is none that may be replaced.
    """
    folder = out or Path("lightning_logs") / name
    try:
        check_destination(folder / "protected", overwrite)
    except OutputExistsError as error:
        raise OutputExistsError(f"out={folder}: {error}") from error
    return folder


def proof_table(results: dict[str, dict[str, Any]], images: ImageDataModule) -> Table:
    """Return a table of victims' results by what they were trained on, with the majority-class line."""
    rows = {f"{name} images": result["test"] for name, result in results.items()}
    blind = 0.5 if images.task is Task.MULTI_LABEL else 1 / images.num_classes
    majority = next(iter(results.values()))["majority"]
    rows["majority class (no model)"] = {"acc": majority, "auc": 0.5, "balanced_acc": blind, "kappa": 0.0}
    title = f"A model trained on it, measured on the clean test split of {images.info.name}"
    return metrics_table(title, "trained on", rows, digits=1)


def _choose_data(data: str, size: int | None, root: Path | None, **options: Any) -> ImageDataModule:
    if data == SYNTHETIC:
        return SyntheticDataModule(size=size or 28, **options)
    if data in MEDMNIST:
        return MedMNISTDataModule(data, size=size or 28, root=root, **options)
    if Path(data).exists() or data.endswith(".npz"):
        if size is not None:
            raise ConfigurationError(
                f"size={size} is for MedMNIST names; the images of {data} have the size that they have. Leave it out."
            )
        return NpzDataModule(data, **options)
    raise DataError(
        f"data={data!r} is neither a MedMNIST name, nor an .npz file in MedMNIST's layout, nor {SYNTHETIC!r}"
        f"{did_you_mean(data, [*MEDMNIST, SYNTHETIC]) or '.'} Names: {', '.join(MEDMNIST)}."
    )


def _sgd(learning_rate: float) -> OptimizerCallable:
    return partial(SGD, lr=learning_rate, momentum=0.9, weight_decay=5e-4)


def _facts(images: ImageDataModule) -> dict[str, Any]:
    return {
        "num_classes": images.num_classes,
        "channels": images.channels,
        "image_size": images.image_size,
        "task": images.task,
    }
