"""Victims: assembling, training and measuring one, its results and its predictions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from numpy.typing import NDArray
from torch import Tensor

from salm_lightning.callbacks.checkpoint import RunCheckpoint
from salm_lightning.callbacks.saved import clear_checkpoints, latest_checkpoint, remove_empty
from salm_lightning.console import say
from salm_lightning.countermeasures import Countermeasure, Shallow
from salm_lightning.data import ImageDataModule
from salm_lightning.data.arrays import labels_to_tensor
from salm_lightning.files import replacing
from salm_lightning.interruption import Interrupted
from salm_lightning.metrics import ClassificationMetrics, majority_baseline
from salm_lightning.models import Architecture, NetworkFactory
from salm_lightning.modules import VictimModule
from salm_lightning.modules.schedule import default_optimizer
from salm_lightning.runs.effort import Precision, check_seed, require_positive
from salm_lightning.runs.trainers import facts_of, single_device_trainer

RESULTS = "results.json"
"""File name of a victim's results in its run folder."""
_FEWEST = 50
"""Training steps between two checkpoints of a victim, at least: short ones are soon trained again."""
_TESTED = 4096
"""Images that a model which is no network is tested on at a time."""
_PREDICTED = ("indices", "labels", "probabilities")


@dataclass(frozen=True)
class VictimSettings:
    """What shapes a victim beside its images.

    Args:
        arch: Architecture, as :class:`~salm_lightning.modules.VictimModule` takes it.
        width: Factor on its width.
        steps: Training steps; ``victim_steps`` on the command line.
        precision: Numerical precision.
        countermeasure: What is done against the noise.
        learning_rate: First learning rate; ``None`` is that of the architecture's or the countermeasure's optimiser.
        seed: Settles the weights and every draw.

    Raises:
        ConfigurationError: A value is unknown or out of range.
    """

    arch: Architecture | str | NetworkFactory = "resnet18"
    width: float = 1.0
    steps: int = 20000
    precision: Precision = "32-true"
    countermeasure: Countermeasure = field(default_factory=Countermeasure)
    learning_rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self.architecture
        require_positive(width=self.width, victim_steps=self.steps, learning_rate=self.learning_rate)
        check_seed(self.seed)

    @property
    def architecture(self) -> Architecture:
        """Its architecture, parsed."""
        return Architecture.parse(self.arch, "victim")

    def module(self, data: ImageDataModule) -> VictimModule:
        """Return the victim, untrained, for images such as ``data``."""
        return VictimModule(
            **facts_of(data),
            arch=self.arch,
            width=self.width,
            countermeasure=self.countermeasure,
            optimizer=default_optimizer(self.architecture, self.countermeasure, self.learning_rate),
            seed=self.seed,
        )


class TrainedVictim(NamedTuple):
    """A trained victim, what ``results.json`` holds of it, ``steps`` and ``test_acc`` after each of them, and the seconds that it took."""

    module: VictimModule
    results: dict[str, Any]
    curve: dict[str, list[float]]
    seconds: float


class LearningCurve(Callback):
    """Keeps the accuracy on the clean test split at every validation, and the seconds, also of a training that goes on."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {"steps": [], "test_acc": []}
        self._begin = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since it was made, and before the checkpoint that it goes on from."""
        return time.monotonic() - self._begin

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the accuracy that the validation has just logged."""
        self.values["steps"].append(trainer.global_step)
        self.values["test_acc"].append(float(trainer.callback_metrics["test_curve/acc"]))

    def state_dict(self) -> dict[str, Any]:
        """Return the curve and the seconds so far, for the checkpoint."""
        return {"curve": self.values, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a curve."""
        self.values = state_dict["curve"]
        self._begin -= state_dict["seconds"]


def train_victim(
    settings: VictimSettings,
    data: ImageDataModule,
    folder: Path,
    name: str,
    run: Path,
    callbacks: Sequence[Callback] = (),
    accelerator: str = "auto",
) -> TrainedVictim:
    """Train a victim on one device and measure it on the clean test split.

    The data are loaded, and their own seed settles the order of the images; ``folder/name`` gets TensorBoard's log. The
    state is kept in ``run``, which is the victim's alone: one that was interrupted goes on from there, to the same results.

    Raises:
        DivergedError: The loss or the weights are no longer finite.
        ConfigurationError: The accelerator is unknown, or the victim does not fit the images.
        Interrupted: SIGTERM or Ctrl-C; the state is saved.
    """
    curve, module = LearningCurve(), settings.module(data)
    keeps = [curve, *callbacks, RunCheckpoint(max(_FEWEST, settings.steps // 10))]
    trainer = single_device_trainer(folder, name, settings.steps, keeps, accelerator, settings.precision, run)
    saved = run / "checkpoints"
    try:
        trainer.fit(module, datamodule=data, ckpt_path=latest_checkpoint(saved), weights_only=True)
    except SIGTERMException as stop:
        raise Interrupted(int(stop.code or 0) - 128) from stop
    trainer.test(module, datamodule=data, verbose=False)
    clear_checkpoints(saved)
    remove_empty(run)
    return TrainedVictim(module, victim_results(module, data), curve.values, curve.seconds)


def train_shallow(model: Shallow, data: ImageDataModule, seed: int) -> dict[str, Any]:
    """Train a model that is no network, and return as JSON values what :func:`victim_results` has of one, with a curve of no points.

    Raises:
        ConfigurationError: The training images are all of one class.
    """
    test, meter = data.split("test"), ClassificationMetrics(data.task, data.num_classes)
    scores = model.fit(data.split("train"), data.info, seed)
    for start in range(0, len(test), _TESTED):
        rows = slice(start, start + _TESTED)
        meter.update_scores(scores(np.asarray(test.images[rows])), labels_to_tensor(test.labels[rows], data.task))
    result = {name: value.tolist() for name, value in meter.compute().items()}
    reached = {"step": 0.0, **{name: result[name] for name in meter.scalars}}
    return {
        "curve": {"steps": [], "test_acc": []},
        "data": data.describe(),
        "majority": majority_baseline(test.labels, data.task, data.num_classes),
        "test": result,
        "history": dict.fromkeys(("last", "best_on_val", "peak"), reached),
    }


def victim_results(module: VictimModule, data: ImageDataModule) -> dict[str, Any]:
    """Return a tested victim's results as JSON values.

    They are ``test`` (after the last step, with recall per class and the confusion matrix), ``history`` (``last``, ``best_on_val``,
    ``peak``), the test split's ``majority`` line, and the victim's settings; of a test that left images out, how many it ``tested``.
    """
    majority = majority_baseline(data.split("test").labels, data.task, data.num_classes)
    tested = min(len(data.split("test")), sum(int(count) for count in module.trainer.num_test_batches) * data.batch_size)
    return {
        **({} if tested == len(data.split("test")) else {"tested": tested}),
        "data": data.describe(),
        "victim": module.settings(),
        "steps": int(module.history.get("last", {}).get("step", 0)),
        "majority": majority,
        "test": module.result,
        "history": module.history,
    }


def gather_predictions(batches: list[dict[str, Tensor]]) -> dict[str, NDArray[Any]]:
    """Return ``indices`` int64 ``[N]``, in their order, ``labels`` and ``probabilities`` of all ranks' ``VictimModule.predict_step``.

    All ranks have to call it together.
    """
    parts = [{name: torch.cat([batch[name] for batch in batches]).cpu().numpy() for name in _PREDICTED}] if batches else []
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        found: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, parts)
        parts = [part for of_rank in found for part in of_rank]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in _PREDICTED}
    order = np.argsort(joined["indices"])
    return {name: array[order] for name, array in joined.items()}


def save_predictions(arrays: dict[str, NDArray[Any]], path: Path, images: int) -> None:
    """Write a victim's predictions on the clean test split as ``.npz`` with probabilities, labels and indices."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
    say(f"Predictions on {part_of(len(arrays['indices']), images)}the test split: {path}")


def part_of(count: int, images: int) -> str:
    """Return in words which part of a split was looked at; nothing for all of it."""
    return "" if count == images else f"{count} of {images} images of "
