"""Images per second while training, measured without slowing the training down."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from salm_lightning.data.base import Batch


def logs_at(trainer: Trainer, step: int) -> bool:
    """Return whether a step's values are logged: every ``log_every_n_steps``, and none where that is 0."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set from outside by Lightning's connector
    return every > 0 and step % every == 0


class Throughput(Callback):
    """Logs ``train/images_per_second``, over all ranks, at each of the trainer's logging steps.

    Reads the host's clock only. Lightning's own ``ThroughputMonitor`` waits for the device after each batch; this one never
    does, so the work still queued at either end of a window is counted in the next one, which evens out over a window of
    many steps. Validation and the first batch (start of workers, choice of kernels) are left out.

    Args:
        clock: Returns seconds; for tests.
    """

    name = "train/images_per_second"

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._window_start: float | None = None
        self._validation_start = 0.0
        self._images = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the window of an earlier fit."""
        self._window_start = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the batch, and at a logging step log the rate and begin the next window."""
        now = self._clock()
        if self._window_start is None:
            self._window_start, self._images = now, 0
            return
        self._images += len(batch.indices) * trainer.world_size
        elapsed = now - self._window_start
        if logs_at(trainer, trainer.global_step) and elapsed > 0:
            pl_module.log(self.name, self._images / elapsed, on_step=True, on_epoch=False, batch_size=1)
            self._window_start, self._images = now, 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._validation_start = self._clock()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock run again."""
        if self._window_start is not None:
            self._window_start += self._clock() - self._validation_start
