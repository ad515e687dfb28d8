"""One victim of an audit: what its result depends on, and the file that keeps the result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn

from salm_lightning.audit.results import NONE, TrainedOn
from salm_lightning.countermeasures import Countermeasure
from salm_lightning.data import ImageDataModule
from salm_lightning.files import checksums_of, replacing
from salm_lightning.modules import VictimModule
from salm_lightning.runs.record import DONE, Run, plain, read_run
from salm_lightning.runs.victims import VictimSettings, train_victim

_RESULTS_VERSION = 3
"""Part of every identity; count it up when the code changes results, so that no earlier one is taken for a new one."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A victim: one combination of images, countermeasure, architecture and seed.

    Attributes:
        trained_on: ``protected`` for the release, ``clean`` for the originals: the clean twin.
        images: What identifies the images: checksum, task, and how labels are read.
        batch_size: Images per step.
    """

    trained_on: TrainedOn
    images: Mapping[str, Any]
    victim: VictimSettings
    batch_size: int

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that the result depends on, as JSON values; ``arch`` is short, ``network`` is all of it."""
        victim, countermeasure = self.victim, settings_of(self.victim.countermeasure)
        arch = victim.architecture
        files = checksums_of({**arch.init_args, **countermeasure, "name": None})
        return plain(
            {
                "version": _RESULTS_VERSION,
                **{"trained_on": self.trained_on, "images": self.images, "countermeasure": countermeasure, "files": files},
                **{"arch": arch.name, "network": arch.settings(), "optimizer": arch.optimizer or victim.countermeasure.optimizer},
                **{"seed": victim.seed, **self.length},
            }
        )

    @property
    def name(self) -> str:
        """Name of its record."""
        return name_of(self.identity)

    @property
    def length(self) -> dict[str, Any]:
        """How long and wide it is, as settings by name; only victims that share them are compared with each other."""
        victim = self.victim
        return {"width": victim.width, "steps": victim.steps, "batch_size": self.batch_size, "precision": victim.precision}

    @property
    def kind(self) -> tuple[str, str]:
        """Architecture and countermeasure, which settle how long a step takes."""
        return self.victim.architecture.name, title_of(self.victim.countermeasure)

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        arch, countermeasure = self.kind
        return f"{self.trained_on}, {countermeasure}, {arch}, seed {self.victim.seed}"

    @property
    def log(self) -> str:
        """Name of its run in TensorBoard: the title without spaces, and how long it trains."""
        return f"{self.title}, {self.victim.steps} steps".replace(", ", "_").replace(" ", "-").replace("/", "-")

    def train(
        self, images: ImageDataModule, logs: Path, callbacks: Sequence[Callback], accelerator: str
    ) -> tuple[Run, VictimModule]:
        """Train the victim, whose seed settles the order of the images, and measure it on the clean test split.

        Returns:
            What was measured (what is not defined, such as the AUC of a single class, is None), and the victim.

        Raises:
            DivergedError: The loss or the weights are no longer finite.
        """
        data = images.variant(seed=self.victim.seed)
        trained = train_victim(self.victim, data, logs, self.log, callbacks, accelerator)
        results = {"title": title_of(self.victim.countermeasure), "curve": trained.curve, **trained.results}
        return Run(self.identity).ended(DONE, trained.seconds, _finite(results)), trained.module


class Store:
    """A folder of finished victims, one record each, and if it ``keeps_weights`` the networks of those without countermeasure."""

    def __init__(self, folder: Path, keeps_weights: bool = False) -> None:
        self.folder = folder
        self._keeps_weights = keeps_weights

    def path(self, identity: Mapping[str, Any]) -> Path:
        """Return the file of a victim."""
        return self.folder / f"{name_of(identity)}.json"

    def read(self, identity: Mapping[str, Any]) -> Run | None:
        """Return the record of a victim, or ``None`` unless it has finished."""
        run = read_run(self.path(identity))
        return run if run is not None and run.is_done and run.identity == identity else None

    def all(self) -> list[Run]:
        """Return finished victims in the order of the files' names; a file that is not what its name says is passed over."""
        runs = {path: read_run(path) for path in sorted(self.folder.glob("*.json"))}
        return [run for path, run in runs.items() if run is not None and run.is_done and path.stem.endswith(run.key[:16])]

    def write(self, run: Run, module: VictimModule) -> None:
        """Keep what became of a victim; its weights first, so that a finished one has them."""
        path = self.path(run.identity)
        if self._keeps_weights and is_plain(module.countermeasure):
            with replacing(path.with_suffix(".pt")) as temporary:
                torch.save(module.network.state_dict(), temporary)
        run.write(path)

    def network(self, trial: Trial, images: ImageDataModule) -> nn.Module | None:
        """Return the network of a finished victim without countermeasure, or ``None`` where it was not kept."""
        path = self.path(trial.identity).with_suffix(".pt")
        if not path.is_file():
            return None
        network = trial.victim.module(images).network.eval()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return network


def name_of(identity: Mapping[str, Any]) -> str:
    """Return a victim's name: readable, and unique by the first digits of its identity's SHA-256."""
    parts = (identity["trained_on"], identity["countermeasure"]["name"], identity["arch"], identity["seed"])
    return "-".join(map(str, (*parts, Run(dict(identity)).key[:16])))


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


def _finite(value: Any) -> Any:
    """Return JSON values with None for numbers that JSON does not know, such as the recall of a class without images."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
