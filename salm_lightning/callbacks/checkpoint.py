"""RunCheckpoint: the latest state of a run, committed by one rename, with its noise snapshot; older ones go when it stands."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from salm_lightning.errors import ConfigurationError
from salm_lightning.modules.run_folder import checkpoint_folder

_CHECKPOINT_NAME = re.compile(r"step=(\d+)\.ckpt")


class RunCheckpoint(Checkpoint):
    """Save ``checkpoints/step=N.ckpt`` every so many steps, at the end, and when the run is interrupted; keep the latest.

    Lightning's ``ModelCheckpoint`` writes through a temporary folder that may lie on another disk and knows nothing of the noise
    snapshots beside a generator's checkpoint, which have to come and go with it. It can be added for other purposes, such as keeping
    the best victim.

    Args:
        every_n_steps: Steps between checkpoints.

    Raises:
        ConfigurationError: ``every_n_steps`` is below 1.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ConfigurationError(f"every_n_steps={every_n_steps} is out of range; give 1 or more training steps.")
        self.every_n_steps = every_n_steps
        self._saved_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step that a resumed run starts from, which is saved already."""
        self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save when a multiple of ``every_n_steps`` is reached."""
        if trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state, which the last pass starts from."""
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what an interruption (SIGTERM, Ctrl-C) would lose; after an error the state may be broken and is not saved."""
        if isinstance(exception, SystemExit | KeyboardInterrupt) and trainer.state.fn == "fit":
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run or trainer.sanity_checking or trainer.global_step == self._saved_step:
            return
        folder = checkpoint_folder(trainer)
        path = folder / f"step={trainer.global_step}.ckpt"
        temporary = folder / f".{path.name}.tmp"
        trainer.save_checkpoint(temporary)
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            temporary.replace(path)
            _remove_others(folder, path)
        trainer.strategy.barrier("checkpoint")


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of the most steps in a run's ``checkpoints`` folder, or ``None``."""
    found = {int(match[1]): path for path in folder.glob("step=*.ckpt") if (match := _CHECKPOINT_NAME.fullmatch(path.name))}
    return found[max(found)] if found else None


def _remove_others(folder: Path, kept: Path) -> None:
    """Delete older checkpoints, then every noise snapshot whose checkpoint is gone."""
    for path in folder.glob("step=*.ckpt"):
        if path != kept and _CHECKPOINT_NAME.fullmatch(path.name):
            path.unlink()
    for path in (folder / "noise").glob("step=*"):
        if path.name != kept.stem:
            shutil.rmtree(path)
