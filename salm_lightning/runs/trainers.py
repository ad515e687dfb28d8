"""Trainers for commands that train a model themselves, on one device; ``salm-cli fit`` has Lightning's own options for that."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from salm_lightning.callbacks.checkpoint import RunCheckpoint
from salm_lightning.data import ImageDataModule
from salm_lightning.errors import ConfigurationError
from salm_lightning.runs.effort import Precision
from salm_lightning.runs.quiet import quieten

FROM_DATA = ("num_classes", "channels", "image_size", "task")
"""Arguments of a module that its data settle."""


class RunTrainer(Trainer):
    """Lightning's Trainer, whose files go into the run's folder.

    That is its ``default_root_dir``.
    """

    @property
    def log_dir(self) -> str:
        """The run's folder, the same on every rank; Lightning's is that of the first logger, which runs may share."""
        folder: str = self.strategy.broadcast(self.default_root_dir)
        return folder


def single_device_trainer(
    folder: Path,
    name: str,
    steps: int,
    callbacks: list[Callback],
    accelerator: str = "auto",
    precision: Precision = "32-true",
    run: Path | None = None,
) -> Trainer:
    """Return a Trainer that logs to ``folder/name`` and validates five times, or every 250 steps of a long training.

    Those before it that are finished are let go of: they hold themselves, models and all, until somebody collects them.
    Checkpoints are kept in ``run``, by default there too, if a ``RunCheckpoint`` is among the callbacks; the accelerator is ``auto``,
    ``cpu`` or ``gpu``.

    Raises:
        ConfigurationError: The accelerator is unknown, or this machine has none.
    """
    gc.collect()
    with _refused(accelerator):
        return RunTrainer(
            default_root_dir=run or folder / name,
            accelerator=accelerator,
            devices=1,
            precision=precision,
            use_distributed_sampler=False,
            max_epochs=-1,
            max_steps=steps,
            check_val_every_n_epoch=None,
            val_check_interval=check_interval(steps),
            num_sanity_val_steps=0,
            enable_model_summary=False,
            logger=TensorBoardLogger(folder, name="", version=name),
            callbacks=callbacks,
            enable_checkpointing=any(isinstance(callback, RunCheckpoint) for callback in callbacks),
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        )


def check_accelerator(accelerator: str) -> None:
    """Refuse an accelerator that is unknown or not there with a ConfigurationError, before any other work."""
    quieten()
    with _refused(accelerator):
        Trainer(accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)


@contextmanager
def _refused(accelerator: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, ImportError, MisconfigurationException) as error:
        raise ConfigurationError(f"accelerator={accelerator}: {error} Give auto, cpu or gpu.") from error


def check_interval(steps: int) -> int:
    """Return the steps between two looks at the clean images in a training of so many steps."""
    return min(250, max(1, steps // 5))


def facts_of(images: ImageDataModule) -> dict[str, Any]:
    """Return the arguments of a module that its data settle."""
    return {name: getattr(images, name) for name in FROM_DATA}
