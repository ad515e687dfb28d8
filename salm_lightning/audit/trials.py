"""One victim of an audit: what its result depends on, how it is trained, and the file that keeps the result."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from salm_lightning.audit.results import NONE, TrainedOn
from salm_lightning.countermeasures import Countermeasure
from salm_lightning.data import ImageDataModule
from salm_lightning.errors import ConfigurationError
from salm_lightning.files import checksums_of, replacing, write_json
from salm_lightning.models import Architecture
from salm_lightning.modules import VictimModule
from salm_lightning.modules.schedule import default_optimizer
from salm_lightning.runs.effort import Precision
from salm_lightning.runs.results import victim_results
from salm_lightning.runs.trainers import facts_of, single_device_trainer

_RESULTS_VERSION = 2
"""Part of every identity; count it up when the code changes results, so that no earlier one is taken for a new one."""


@dataclass(frozen=True)
class Length:
    """How long and wide every victim of an audit is; only such victims are compared with each other.

    Args:
        width: Width factor.
        steps: Training steps.
        batch_size: Images per step.
        precision: Numerical precision.

    Raises:
        ConfigurationError: A number is out of range.
    """

    width: float
    steps: int
    batch_size: int
    precision: Precision = "32-true"

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ConfigurationError(f"width={self.width} is out of range; give a factor above 0, such as 0.25 or 1.")
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)} is out of range; give 1 or more.")


@dataclass(frozen=True)
class Record:
    """What became of a victim that has finished.

    Attributes:
        identity: All that it depends on.
        title: Its countermeasure with settings, for people.
        seconds: Time that it took.
        results: As in a victim's ``results.json``; what is not defined, such as the AUC of a single class, is None.
        curve: ``steps``, and ``test_acc`` after each of them.
    """

    identity: dict[str, Any]
    title: str
    seconds: float
    results: dict[str, Any]
    curve: dict[str, list[float]]


@dataclass(frozen=True, eq=False)
class Trial:
    """A victim: one combination of images, countermeasure, architecture and seed.

    Attributes:
        trained_on: ``protected`` for the release, ``clean`` for the originals: the clean twin.
        images: What identifies the images: checksum, task, and how labels are read.
        countermeasure: What is done against the noise.
        arch: Architecture.
        seed: Settles weights, the order of the images and every draw.
        length: Width, steps and batch size.
    """

    trained_on: TrainedOn
    images: Mapping[str, Any]
    countermeasure: Countermeasure
    arch: str
    seed: int
    length: Length

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that the result depends on, as JSON values."""
        values = {
            "version": _RESULTS_VERSION,
            "trained_on": self.trained_on,
            "images": dict(self.images),
            "countermeasure": settings_of(self.countermeasure),
            "arch": self.arch,
            "optimizer": optimizer_options(self.arch, self.countermeasure),
            "files": checksums_of({key: value for key, value in settings_of(self.countermeasure).items() if key != "name"}),
            "seed": self.seed,
            **asdict(self.length),
        }
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        return f"{self.trained_on}, {title_of(self.countermeasure)}, {self.arch}, seed {self.seed}"

    def train(
        self, images: ImageDataModule, logs: Path, callbacks: Sequence[Callback], accelerator: str
    ) -> tuple[Record, VictimModule]:
        """Train the victim and measure it on the clean test split.

        Args:
            images: What it trains on, loaded; a victim's seed settles their order.
            logs: Folder of TensorBoard's logs.
            callbacks: Further callbacks of the Trainer.
            accelerator: Lightning's accelerator.

        Returns:
            What was measured, and the victim.

        Raises:
            DivergedError: The loss or the weights are no longer finite.
        """
        begin = time.monotonic()
        images = images.variant(seed=self.seed)
        module = VictimModule(
            **facts_of(images),
            arch=self.arch,
            width=self.length.width,
            countermeasure=self.countermeasure,
            optimizer=optimizer_of(self.arch, self.countermeasure),
            seed=self.seed,
        )
        curve, name = LearningCurve(), name_of(self.identity)
        trainer = single_device_trainer(logs, name, self.length.steps, [curve, *callbacks], accelerator, self.length.precision)
        trainer.fit(module, datamodule=images)
        trainer.test(module, datamodule=images, verbose=False)
        results = _finite(victim_results(module, images))
        return Record(self.identity, title_of(self.countermeasure), time.monotonic() - begin, results, curve.values), module


class LearningCurve(Callback):
    """Keeps the accuracy on the clean test split at every validation."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {"steps": [], "test_acc": []}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the accuracy that the validation has just logged."""
        self.values["steps"].append(trainer.global_step)
        self.values["test_acc"].append(float(trainer.callback_metrics["test_curve/acc"]))


class Store:
    """A folder of finished victims, one JSON file each; a file appears in one rename or not at all.

    Args:
        folder: The folder.
        keeps_weights: Whether the networks of victims without countermeasure are kept too.
    """

    def __init__(self, folder: Path, keeps_weights: bool = False) -> None:
        self.folder = folder
        self._keeps_weights = keeps_weights

    def path(self, identity: Mapping[str, Any]) -> Path:
        """Return the file of a victim."""
        return self.folder / f"{name_of(identity)}.json"

    def read(self, identity: Mapping[str, Any]) -> Record | None:
        """Return what became of a victim, or ``None`` unless it has finished."""
        record = _read(self.path(identity))
        return record if record is not None and record.identity == identity else None

    def all(self) -> list[Record]:
        """Return every finished victim in the order of the files' names."""
        records = (_read(path) for path in sorted(self.folder.glob("*.json")))
        return [record for record in records if record is not None]

    def write(self, record: Record, module: VictimModule) -> None:
        """Keep what became of a victim; its weights first, so that a finished one has them."""
        if self._keeps_weights and is_plain(module.countermeasure):
            with replacing(self._weights(record.identity)) as temporary:
                torch.save(module.network.state_dict(), temporary)
        write_json(self.path(record.identity), asdict(record))

    def network(self, identity: Mapping[str, Any], images: ImageDataModule) -> nn.Module | None:
        """Return the network of a finished victim without countermeasure, or ``None`` where it was not kept."""
        path = self._weights(identity)
        if not path.is_file():
            return None
        facts = facts_of(images)
        facts.pop("task")
        network = Architecture.parse(identity["arch"]).build(**facts, width=identity["width"])
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return network.eval()

    def _weights(self, identity: Mapping[str, Any]) -> Path:
        return self.path(identity).with_suffix(".pt")


def name_of(identity: Mapping[str, Any]) -> str:
    """Return a victim's name: readable, and unique by the first digits of its identity's SHA-256."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    parts = (identity["trained_on"], identity["countermeasure"]["name"], identity["arch"], identity["seed"], digest[:16])
    return "-".join(map(str, parts))


def is_plain(countermeasure: Countermeasure) -> bool:
    """Return whether a countermeasure is none at all: the base class as it stands."""
    return type(countermeasure) is Countermeasure


def settings_of(countermeasure: Countermeasure) -> dict[str, Any]:
    """Return a countermeasure's name and settings as JSON values."""
    return {"name": NONE} if is_plain(countermeasure) else countermeasure.settings()


def title_of(countermeasure: Countermeasure) -> str:
    """Return a countermeasure's name with its settings, as tables show it; a switch that is off is left out."""
    settings = settings_of(countermeasure)
    words = [settings["name"]]
    for key, value in settings.items():
        if key != "name" and value not in (None, False):
            number = isinstance(value, int | float) and value is not True
            words += [key.replace("_", " "), *([f"{value:g}"] if number else [] if value is True else [str(value)])]
    return " ".join(words)


def optimizer_options(arch: str, countermeasure: Countermeasure) -> Mapping[str, Any] | None:
    """Return class and arguments of what trains a victim; ``None`` stands for the paper's SGD."""
    return Architecture.parse(arch).optimizer or countermeasure.optimizer


def optimizer_of(arch: str, countermeasure: Countermeasure) -> OptimizerCallable:
    """Return the builder of what trains a victim."""
    return default_optimizer(Architecture.parse(arch), countermeasure)


def _read(path: Path) -> Record | None:
    """Return a finished victim, or ``None`` where there is no such file or one that another program has written."""
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _finite(value: Any) -> Any:
    """Return JSON values with None for numbers that JSON does not know, such as the recall of a class without images."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
