"""Progress with the time that remains: a live bar on a terminal, a few plain lines everywhere else."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from rich.console import Console
from rich.progress import TimeRemainingColumn

from salm_lightning.console import duration, is_live
from salm_lightning.data.base import Batch

_WIDE = 110
"""Columns from which all fits into one line, metrics included."""
SHOWN_METRICS = ("train/loss", "train/source_loss", "val/acc", "val/clean_acc")
"""Logged metrics that stand beside the progress."""


def progress_bar() -> ProgressBar:
    """Return the progress display that suits where the output goes; give it to ``Trainer(callbacks=[...])``.

    It is :class:`RunProgressBar` on a terminal, and :class:`PlainProgress` when the output is a file or a pipe, the terminal cannot move
    its cursor, or the variable ``CI`` is set.
    """
    return RunProgressBar() if is_live(sys.stdout) else PlainProgress()


def total_steps(trainer: Trainer) -> float:
    """Return the number of steps of a whole fit, infinity when it has no known end."""
    ends = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0 and math.isfinite(trainer.num_training_batches):
        ends.append(trainer.max_epochs * int(trainer.num_training_batches))
    return min(ends, default=math.inf)


def shown_metrics(trainer: Trainer) -> dict[str, float]:
    """Return those of :data:`SHOWN_METRICS` that have been logged; this waits for the device, so call it seldom."""
    logged = trainer.callback_metrics
    return {name: float(logged[name]) for name in SHOWN_METRICS if name in logged}


class RunProgressBar(RichProgressBar):
    """Lightning's Rich bar over the whole fit instead of one epoch, so that the remaining time is the run's.

    Metrics are read from the device once per ``metrics_interval`` and not at every step, which would stall it.

    Args:
        metrics_interval: Seconds between two readings.
    """

    def __init__(self, metrics_interval: float = 1.0) -> None:
        super().__init__(refresh_rate=4)
        self._metrics_interval = metrics_interval
        self._metrics: dict[str, int | str | float | dict[str, float]] = {}
        self._metrics_time = -math.inf

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Return what stands in a line: on a narrow terminal neither the time passed nor the speed, which would make it two or more."""
        columns = super().configure_columns(trainer)
        return columns if Console().width >= _WIDE else [*columns[:-2], TimeRemainingColumn()]

    @property
    def total_train_batches(self) -> int | float:
        """Number of steps of the whole fit, or infinity."""
        return total_steps(self.trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the bar in the first epoch and leave it alone in the others."""
        if self.train_progress_bar_id is None:
            super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Move the bar to the fit's step, where Lightning would show the epoch's."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, int | str | float | dict[str, float]]:
        """Return what stands behind the bar, at most ``metrics_interval`` seconds old."""
        now = time.perf_counter()
        if now - self._metrics_time >= self._metrics_interval:
            self._metrics = {**shown_metrics(trainer)}
            self._metrics_time = now
        return self._metrics

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning's would read "Epoch 3/-2" in a fit that is limited by steps.
        return "Training"


class PlainProgress(ProgressBar):
    """Prints one short line after each validation, and otherwise one about every ``interval`` seconds.

    It counts as the Trainer's progress bar, so that Lightning adds none of its own.

    Args:
        interval: Seconds between two lines.
        clock: Returns seconds; for tests.
    """

    def __init__(self, interval: float = 30.0, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self.interval = interval
        self._clock = clock
        self._enabled = True
        self._first_step = 0
        self._start = self._last_line = 0.0

    def enable(self) -> None:
        """Print lines."""
        self._enabled = True

    def disable(self) -> None:
        """Print nothing, as on every rank but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; a resumed fit predicts its remaining time from its own steps."""
        self._begin(trainer.global_step)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._begin(0)

    on_predict_start = on_test_start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Print a line when one is due."""
        self._line(trainer, "step", trainer.global_step, total_steps(trainer), self.interval)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print a line with the metrics that the validation has just brought."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._line(trainer, "step", trainer.global_step, total_steps(trainer), 0.0)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Print a line when one is due."""
        self._line(trainer, "test batch", batch_idx + 1, trainer.num_test_batches[dataloader_idx], self.interval)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Print a line when one is due."""
        self._line(trainer, "last pass, chunk", batch_idx + 1, trainer.num_predict_batches[dataloader_idx], self.interval)

    def _begin(self, step: int) -> None:
        self._first_step = step
        self._start = self._last_line = self._clock()

    def _line(self, trainer: Trainer, what: str, done: int, total: float, interval: float) -> None:
        now = self._clock()
        if not self._enabled or now - self._last_line < interval:
            return
        self._last_line = now
        ends, steps_here = math.isfinite(total), done - self._first_step
        parts = [f"{what} {done}/{total:.0f}" if ends else f"{what} {done}"]
        if what == "step":
            parts += [f"{name} {value:.4f}" for name, value in shown_metrics(trainer).items()]
        if ends and steps_here > 0:
            parts.append(f"{duration((now - self._start) / steps_here * (total - done))} left")
        self.print(", ".join(parts), flush=True)
