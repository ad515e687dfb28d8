"""A battery: which victims an audit trains, one after another, within a time, and what became of each."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from salm_lightning.audit.results import TrainedOn
from salm_lightning.audit.trials import Store, Trial, is_plain
from salm_lightning.console import duration
from salm_lightning.countermeasures import Countermeasure
from salm_lightning.data import ImageDataModule
from salm_lightning.errors import ConfigurationError, SalmError
from salm_lightning.interruption import interruptible
from salm_lightning.models import Architecture
from salm_lightning.runs.record import DONE, FAILED, OPEN, Run
from salm_lightning.runs.victims import VictimSettings

SKIPPED = "skipped"
"""What became of a victim for which no time was left."""
_MEASURED_STEPS = 10
"""Steps of a victim after which its speed is known."""
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}


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
    """Victims, in the order in which they are trained, and what has become of them.

    Attributes:
        images: What they train on.
        stores: Where finished ones are kept.
        logs: Folder of TensorBoard's logs.
        estimate: Returns the seconds that a victim takes of whose kind none has been trained yet.
        records: Finished victims by name.
        reasons: Why others have not finished, by name: status and reason.
    """

    trials: Sequence[Trial]
    images: Mapping[TrainedOn, ImageDataModule]
    stores: Mapping[TrainedOn, Store]
    logs: Path
    accelerator: str = "auto"
    estimate: Callable[[Trial], float] | None = None
    records: dict[str, Run] = field(default_factory=dict)
    reasons: dict[str, tuple[str, str]] = field(default_factory=dict)
    _expected: dict[tuple[str, str], float] = field(default_factory=dict)

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

    def run(self, budget: float | None, ended: Callable[[Trial], None], bars: Callable[[], list[Callback]] = list) -> None:
        """Train what is pending; a victim that fails does not stop the others.

        Args:
            budget: Seconds within which the last victim has to end; ``None`` sets no limit.
            ended: Called after each victim that was not left out.
            bars: Returns the display of one victim's training.

        Raises:
            Interrupted: SIGTERM or Ctrl-C; the victim at work is lost, the finished ones are kept.
        """
        deadline = None if budget is None else time.monotonic() + budget
        with interruptible():
            for trial in self.pending:
                left = None if deadline is None else deadline - time.monotonic()
                expected = self._measured.get(trial.kind)
                if left is not None and (left <= 0 or (expected is not None and expected > left)):
                    self._skip(trial, expected)
                    continue
                self._train(trial, bars() + ([] if left is None else [Deadline(left)]))
                ended(trial)

    def expected(self, trial: Trial) -> float | None:
        """Return the seconds that a victim will take, judged by the most similar ones; ``None`` without any and without estimate."""
        known = self._measured
        if trial.kind in known:
            return known[trial.kind]
        if self.estimate is not None:
            return self.estimate(trial)
        same_arch = [seconds for (arch, _), seconds in known.items() if arch == trial.kind[0]]
        return fmean(same_arch or known.values()) if known else None

    @property
    def _measured(self) -> dict[tuple[str, str], float]:
        """Seconds by architecture and countermeasure: of finished victims, and what those given up would have taken."""
        finished = {(run.identity["arch"], run.results["title"]): run.seconds for run in self.records.values()}
        return finished | self._expected

    def remaining(self) -> float:
        """Return the seconds that all pending victims will take."""
        return sum(self.expected(trial) or 0.0 for trial in self.pending)

    def _train(self, trial: Trial, callbacks: Sequence[Callback]) -> None:
        shutil.rmtree(self.logs / trial.log, ignore_errors=True)  # of a victim that was interrupted
        try:
            record, module = trial.train(self.images[trial.trained_on], self.logs, callbacks, self.accelerator)
        except OutOfTimeError as error:
            self._expected[trial.kind] = error.expected
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
) -> list[Trial]:
    """Return the victims of a battery, the most telling ones first, so that a battery that is cut short has a verdict.

    For each seed: victims without countermeasure and their clean twins, then those with countermeasures on the release, then their twins.

    Args:
        images: What identifies the images, ``protected`` and where the originals are known ``clean``.
        victim: What all of them have in common.
        batch_size: Images per step.
        countermeasures: What is tried.
        archs: Architectures.
        seeds: Seeds.
        cross: See :class:`~salm_lightning.audit.choices.Preset`.
    """
    trials = [
        Trial(trained_on, identity, replace(victim, arch=arch, countermeasure=countermeasure, seed=seed), batch_size)
        for arch in archs
        for countermeasure in countermeasures
        if cross or arch == archs[0] or is_plain(countermeasure)
        for trained_on, identity in images.items()
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
