"""The victims of an audit: what the result of each depends on, the files that keep results, and training one after another in a time."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from salm_lightning.audit.results import NONE, TrainedOn, viewed
from salm_lightning.callbacks.saved import checkpoints
from salm_lightning.console import duration
from salm_lightning.countermeasures import Countermeasure, Shallow
from salm_lightning.data import ImageDataModule
from salm_lightning.errors import ConfigurationError, SalmError
from salm_lightning.files import address, cache_root, checksums_of, replacing
from salm_lightning.models import Architecture
from salm_lightning.modules import VictimModule
from salm_lightning.runs.folder import clear_run
from salm_lightning.runs.record import DONE, FAILED, OPEN, Run, plain, read_run
from salm_lightning.runs.victims import VictimSettings, train_shallow, train_victim

_RESULTS_VERSION = 3
"""Part of every identity; count it up when the code changes results, so that no earlier one is taken for a new one."""
SKIPPED = "skipped"
"""What became of a victim for which no time was left."""
NO_NETWORK = "no network"
"""The architecture of a :class:`~salm_lightning.countermeasures.Shallow` model."""
_MEASURED_STEPS = 10
"""Steps of a victim after which its speed is known."""
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}


@dataclass(frozen=True, eq=False)
class Trial:
    """A victim: one combination of images, countermeasure, architecture and seed; trained on clean images it is a clean twin.

    ``images`` are what identifies the images: checksum, task, how labels are read, and if there are several ways to see them, in words
    which one it is (``view``).
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
                **{"arch": self.kind[0], "network": NO_NETWORK if self.is_shallow else arch.settings()},
                "optimizer": arch.optimizer or victim.countermeasure.optimizer,
                **{"seed": victim.seed, **self.length},
            }
        )

    @property
    def name(self) -> str:
        """Name of its record."""
        return name_of(self.identity)

    @property
    def view(self) -> str:
        """How it sees the images, in words, if there are several ways."""
        return view_of({"images": self.images})

    @property
    def length(self) -> dict[str, Any]:
        """How long and wide it is, as settings by name; only victims that share them are compared with each other."""
        victim = self.victim
        return {"width": victim.width, "steps": victim.steps, "batch_size": self.batch_size, "precision": victim.precision}

    @property
    def is_shallow(self) -> bool:
        """Whether no network is trained."""
        return isinstance(self.victim.countermeasure, Shallow)

    @property
    def kind(self) -> tuple[str, str]:
        """Architecture, and countermeasure with the view, which settle how long a step takes."""
        title = viewed(title_of(self.victim.countermeasure), self.view)
        return NO_NETWORK if self.is_shallow else self.victim.architecture.name, title

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
    ) -> tuple[Run, VictimModule | None]:
        """Train the victim, whose seed settles the order of the images, and measure it on the clean test split.

        One that was interrupted on the way to the same logs goes on.

        Returns:
            What was measured (what is not defined, such as the AUC of a single class, is None), and the victim if it is a network.

        Raises:
            DivergedError: The loss or the weights are no longer finite.
        """
        if isinstance(self.victim.countermeasure, Shallow):
            begin, results = time.monotonic(), train_shallow(self.victim.countermeasure, images, self.victim.seed)
            return self._ended(time.monotonic() - begin, results), None
        data = images.variant(seed=self.victim.seed)
        # Not beside a release, whose maker could put weights there.
        run = cache_root() / "unfinished" / address(str(logs.resolve()), self.name)[:32]
        if not checkpoints(run / "checkpoints"):
            clear_run(logs / self.log)
        trained = train_victim(self.victim, data, logs, self.log, run, callbacks, accelerator)
        return self._ended(trained.seconds, {"curve": trained.curve, **trained.results}), trained.module

    def _ended(self, seconds: float, results: Mapping[str, Any]) -> Run:
        results = {"title": title_of(self.victim.countermeasure), **results}
        finite = json.loads(json.dumps(results), parse_constant=lambda name: None)  # JSON has no NaN
        return Run(self.identity).ended(DONE, seconds, finite)


class Store:
    """A folder of finished victims, one record each, and if it ``keeps_weights`` the networks of those without countermeasure."""

    def __init__(self, folder: Path, keeps_weights: bool = False) -> None:
        self.folder = folder
        self._keeps_weights = keeps_weights

    def path(self, identity: Mapping[str, Any]) -> Path:
        """Return the file of a victim."""
        return self.folder / f"{name_of(identity)}.json"

    def read(self, identity: Mapping[str, Any]) -> Run | None:
        """Return the record of a victim, or ``None`` unless it has finished, on this installation."""
        run = read_run(self.path(identity), ours=True)
        return run if run is not None and run.is_done and run.identity == identity else None

    def all(self) -> list[Run]:
        """Return finished victims in the order of the files' names; what is not ours, or not what its name says, is passed over."""
        runs = {path: read_run(path, ours=True) for path in sorted(self.folder.glob("*.json"))}
        return [run for path, run in runs.items() if run is not None and run.is_done and path.stem.endswith(run.key[:16])]

    def write(self, run: Run, module: VictimModule | None) -> None:
        """Keep what became of a victim; its weights first, so that a finished one has them."""
        path = self.path(run.identity)
        if self._keeps_weights and module is not None and is_plain(module.countermeasure):
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


class OutOfTimeError(Exception):
    """A victim would not be finished in time: ``expected`` is the seconds that it would take in all."""

    def __init__(self, expected: float) -> None:
        super().__init__(expected)
        self.expected = expected


class Deadline(Callback):
    """Ends a victim of unknown cost as soon as its speed shows that it would take more than the seconds that are left."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._begin = clock()
        self._first_step = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Compare the expected end with the time that is left, once; the first step, which is slower, counts as it was.

        Raises:
            OutOfTimeError: It would end too late.
        """
        if trainer.global_step == 1:
            self._first_step = self._clock()
        elif trainer.global_step == 1 + _MEASURED_STEPS:
            now = self._clock()
            rest = trainer.max_steps - trainer.global_step
            expected = now - self._begin + (now - self._first_step) / _MEASURED_STEPS * rest
            if expected > self._seconds:
                raise OutOfTimeError(expected)


@dataclass
class Battery:
    """Victims, in the order in which they are trained, what they train on, where finished ones are kept, and what has become of them.

    Attributes:
        logs: Folder of TensorBoard's logs.
        estimate: Returns the seconds that a victim takes of whose kind none has been trained yet.
        records: Finished victims by name.
        reasons: Why others have not finished, by name: status and reason.
    """

    trials: Sequence[Trial]
    images: Mapping[tuple[str, TrainedOn], ImageDataModule]
    stores: Mapping[TrainedOn, Store]
    logs: Path
    estimate: Callable[[Trial], float]
    accelerator: str = "auto"
    records: dict[str, Run] = field(default_factory=dict)
    reasons: dict[str, tuple[str, str]] = field(default_factory=dict)
    _given_up: dict[tuple[str, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kept = {trial.name: self.stores[trial.trained_on].read(trial.identity) for trial in self.trials}
        self.records |= {name: record for name, record in kept.items() if record is not None}

    @property
    def pending(self) -> list[Trial]:
        """Victims that have not finished and were not given up."""
        return [trial for trial in self.trials if self.status(trial)[0] == OPEN]

    def status(self, trial: Trial) -> tuple[str, str]:
        """Return what became of a victim, and why."""
        return (DONE, "") if trial.name in self.records else self.reasons.get(trial.name, (OPEN, "not trained yet"))

    def run(self, budget: float | None, bars: Callable[[], list[Callback]] = list) -> Iterator[Trial]:
        """Train what is pending and yield each that was not left out once it has ended; one that fails does not stop the others.

        The last victim has to end within ``budget`` seconds, if that is given; ``bars`` returns the display of one victim's training.
        """
        deadline = None if budget is None else time.monotonic() + budget
        for trial in self.pending:
            left = None if deadline is None else deadline - time.monotonic()
            expected = self._measured.get(trial.kind)
            if left is not None and (left <= 0 or (expected is not None and expected > left)):
                self._skip(trial, expected)
                continue
            self._train(trial, bars() + ([] if left is None else [Deadline(left)]))
            yield trial

    def remaining(self) -> float:
        """Return the seconds that all pending victims will take, judged by those of the same kind."""
        return sum(self._measured.get(trial.kind) or self.estimate(trial) for trial in self.pending)

    @property
    def _measured(self) -> dict[tuple[str, str], float]:
        """Seconds by architecture and countermeasure: of finished victims, and what those given up would have taken."""
        finished = {
            (run.identity["arch"], viewed(run.results["title"], view_of(run.identity))): run.seconds
            for run in self.records.values()
        }
        return finished | self._given_up

    def _train(self, trial: Trial, callbacks: Sequence[Callback]) -> None:
        try:
            record, module = trial.train(self.images[trial.view, trial.trained_on], self.logs, callbacks, self.accelerator)
        except OutOfTimeError as error:
            self._given_up[trial.kind] = error.expected
            self._skip(trial, error.expected)
        except (SalmError, RuntimeError) as error:  # diverged, or out of memory
            self.reasons[trial.name] = (FAILED, str(error))
        else:
            self.stores[trial.trained_on].write(record, module)
            self.records[trial.name] = record

    def _skip(self, trial: Trial, expected: float | None) -> None:
        takes = "" if expected is None else f": it takes about {duration(expected)}"
        self.reasons[trial.name] = (SKIPPED, f"no time left within the budget{takes}")


def plan(
    images: Mapping[TrainedOn, Mapping[str, Any]],
    victim: VictimSettings,
    batch_size: int,
    countermeasures: Sequence[Countermeasure],
    archs: Sequence[Architecture],
    seeds: Sequence[int],
    cross: bool,
    further: Sequence[Mapping[TrainedOn, Mapping[str, Any]]] = (),
) -> list[Trial]:
    """Return the victims of a battery, the most telling ones first, so that a battery that is cut short has a verdict.

    For each seed: victims without countermeasure and their clean twins, then those with countermeasures on the release, then their twins.
    ``images`` are identities, ``protected`` and where the originals are known ``clean``; ``further`` are those of other ways to see them,
    in which only the first architecture is tried, without countermeasure. ``victim`` is what all have in common, ``cross`` that of a
    :class:`~salm_lightning.audit.choices.Preset`.
    """
    kinds = [
        (images, arch, countermeasure)
        for arch in archs
        for countermeasure in countermeasures
        if arch == archs[0] or is_plain(countermeasure) or (cross and not isinstance(countermeasure, Shallow))
    ]
    kinds += [(other, archs[0], Countermeasure()) for other in further]
    trials = [
        Trial(trained_on, identity, replace(victim, arch=arch, countermeasure=countermeasure, seed=seed), batch_size)
        for seen, arch, countermeasure in kinds
        for trained_on, identity in seen.items()
        for seed in seeds
    ]

    def stage(trial: Trial) -> tuple[int, int]:
        plain = is_plain(trial.victim.countermeasure)
        return seeds.index(trial.victim.seed), 0 if plain else 1 if trial.trained_on == "protected" else 2

    return sorted(trials, key=stage)


def parse_budget(text: str) -> float:
    """Return the seconds that a time such as ``30m``, ``2h`` or ``1h30m`` says.

    Raises:
        ConfigurationError: It is no such time.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ConfigurationError(f"budget={text!r} is not a time; give hours, minutes or seconds, such as 2h, 30m or 1h30m.")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def name_of(identity: Mapping[str, Any]) -> str:
    """Return a victim's name: readable, and unique by the first digits of its identity's SHA-256."""
    parts = (identity["trained_on"], identity["countermeasure"]["name"], identity["arch"], identity["seed"])
    return "-".join(map(str, (*parts, Run(dict(identity)).key[:16])))


def view_of(identity: Mapping[str, Any]) -> str:
    """Return how a victim saw the images, in words, if there are several ways."""
    return str(identity["images"].get("view", ""))


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
