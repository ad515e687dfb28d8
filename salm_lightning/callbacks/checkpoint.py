"""Where a run keeps its files, ``<run>/{config.yaml, events, checkpoints/, protected/}``, and RunCheckpoint, which saves its state."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from salm_lightning.errors import require
from salm_lightning.files import flush
from salm_lightning.interruption import Interruption

_CHECKPOINT_NAME = re.compile(r"step=(\d+)\.ckpt")
_OURS = re.compile(r"step=\d+\.ckpt|\.step=\d+\.ckpt\.tmp")


def run_folder(trainer: Trainer) -> Path:
    """Return the run's folder, the same on every rank (all ranks have to call it together)."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def checkpoint_folder(trainer: Trainer) -> Path:
    """Return where checkpoints and noise snapshots go."""
    return run_folder(trainer) / "checkpoints"


class RunCheckpoint(Checkpoint):
    """Save ``checkpoints/step=N.ckpt`` every so many steps, at the end, and when the run is interrupted; keep the latest.

    Lightning's ``ModelCheckpoint`` writes through a temporary folder that may lie on another disk and knows nothing of the noise
    snapshots beside a generator's checkpoint, which have to come and go with it. It can be added for other purposes, such as
    keeping the best victim.

    Args:
        every_n_steps: Steps between checkpoints.

    Raises:
        ConfigurationError: ``every_n_steps`` is below 1.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        super().__init__()
        require("every_n_steps", every_n_steps, every_n_steps >= 1, "give 1 or more training steps")
        self.every_n_steps = every_n_steps
        self._interruption = Interruption()
        self._saved_step = -1
        self._after_validation = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step that a resumed run starts from, which is saved already."""
        self._saved_step = trainer.global_step
        self._after_validation = False
        self._interruption.listen(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save when a multiple of ``every_n_steps`` is reached or the run has to stop.

        A step that is followed by a validation is saved after it: Lightning skips the validation of the step that it resumes from,
        and its results would be lost.
        """
        stopping = self._interruption.agreed(trainer)
        if not stopping and trainer.global_step % self.every_n_steps:
            return
        if _validates_now(trainer):
            self._after_validation = True
        else:
            self._save(trainer, stopping)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what had to wait for the validation."""
        if self._after_validation:
            self._after_validation = False
            self._save(trainer, self._interruption.agreed(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state, which the last pass starts from."""
        self._save(trainer, self._interruption.agreed(trainer))

    def _save(self, trainer: Trainer, stopping: bool) -> None:
        if not trainer.fast_dev_run and trainer.global_step != self._saved_step:  # type: ignore[attr-defined]
            save_run(trainer)
            self._saved_step = trainer.global_step
        if stopping:
            self._interruption.stop(trainer)


def save_run(trainer: Trainer) -> Path:
    """Save the state of a run as its only checkpoint, committed by one rename, and return it; all ranks call it together."""
    folder = checkpoint_folder(trainer)
    path = folder / f"step={trainer.global_step}.ckpt"
    temporary = folder / f".{path.name}.tmp"
    if trainer.is_global_zero:
        _clear(folder, latest_checkpoint(folder))  # what a killed run left behind, before the ranks add their noise to it
    trainer.strategy.barrier("leftovers")
    trainer.save_checkpoint(temporary, weights_only=False)
    if trainer.is_global_zero:
        flush(temporary)  # older checkpoints are deleted once it stands
        temporary.replace(path)
        flush(folder)
        _clear(folder, path)
    trainer.strategy.barrier("checkpoint")
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of the most steps in a run's ``checkpoints`` folder, or ``None``."""
    found = {int(match[1]): path for path in folder.glob("step=*.ckpt") if (match := _CHECKPOINT_NAME.fullmatch(path.name))}
    return found[max(found)] if found else None


def _clear(folder: Path, kept: Path | None) -> None:
    """Delete other checkpoints, then every noise snapshot whose checkpoint is gone, and unfinished files."""
    for path in folder.glob("*step=*.ckpt*"):
        if path != kept and _OURS.fullmatch(path.name):
            path.unlink()
    for path in (folder / "noise").glob("step=*"):
        if kept is None or path.name != kept.stem:
            shutil.rmtree(path)


def _validates_now(trainer: Trainer) -> bool:
    """Return whether Lightning is about to validate; it has no public way to ask."""
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
