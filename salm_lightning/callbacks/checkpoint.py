"""Where a run keeps its files, ``<run>/{config.yaml, events, checkpoints/, protected/}``, and RunCheckpoint, which saves its state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from salm_lightning.callbacks.saved import checkpoints, clear_checkpoints, seal
from salm_lightning.errors import OutputExistsError, require
from salm_lightning.files import replacing
from salm_lightning.interruption import Interruption


def run_folder(trainer: Trainer) -> Path:
    """Return the run's folder, the same on every rank (all ranks have to call it together)."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def checkpoint_folder(trainer: Trainer) -> Path:
    """Return where checkpoints and noise snapshots go."""
    return run_folder(trainer) / "checkpoints"


class SealedCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its name, sealed; Lightning would do so through the folder of temporary files, which may be full."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, completely or not at all."""
        with replacing(Path(path)) as temporary:
            with temporary.open("wb") as stream:
                torch.save(checkpoint, stream)
            seal(temporary)


class RunCheckpoint(Checkpoint):
    """Save ``checkpoints/step=N.ckpt`` every so many steps, at the end, and when the run is interrupted; keep the latest two.

    Lightning's ``ModelCheckpoint`` knows nothing of the noise snapshots beside a generator's checkpoint, which have to come and go
    with it. It can be added for other purposes, such as
    keeping the best victim. The one before the latest is there in case the latest gets damaged; a run that has ended keeps one.

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
        """Note the step that a resumed run starts from, which is saved already.

        Raises:
            OutputExistsError: Another run's checkpoints are in the folder, which this one would delete.
        """
        folder = checkpoint_folder(trainer)
        if trainer.ckpt_path is None and self._saved_step < 0 and (others := checkpoints(folder)):
            raise OutputExistsError(
                f"{others[0]} is another run's: resume from it with ckpt_path, or give this run a folder of its own."
            )
        self._saved_step = trainer.global_step
        self._after_validation = False
        self._interruption.listen(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save when a multiple of ``every_n_steps`` is reached or the run has to stop.

        A step that is followed by a validation is saved after it: Lightning skips the validation of the step that it resumes from,
        and its results would be lost.
        """
        stopping = self._interruption.agreed(trainer, at_once=False)
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

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the final state as the only one, also where a run goes on that was killed before it could."""
        folder = checkpoint_folder(trainer)  # asked of all ranks
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            clear_checkpoints(folder, checkpoints(folder)[:1])

    def _save(self, trainer: Trainer, stopping: bool) -> None:
        if not trainer.fast_dev_run and trainer.global_step != self._saved_step:  # type: ignore[attr-defined]
            save_run(trainer, keeps_previous=trainer.max_steps != trainer.global_step)
            self._saved_step = trainer.global_step
        if stopping:
            self._interruption.stop(trainer)


def save_run(trainer: Trainer, keeps_previous: bool = False) -> Path:
    """Save the state of a run, committed by one rename, and return its checkpoint; all ranks call it together.

    Older checkpoints are deleted once it stands, but perhaps for the previous one, which stands in for it should it get damaged.
    """
    folder = checkpoint_folder(trainer)
    path = folder / f"step={trainer.global_step}.ckpt"
    if trainer.is_global_zero:
        clear_checkpoints(folder, checkpoints(folder))  # what a killed run left, before the ranks add their noise to it
    trainer.strategy.barrier("leftovers")
    trainer.strategy.checkpoint_io = SealedCheckpointIO()
    trainer.save_checkpoint(path, weights_only=False)
    if trainer.is_global_zero:
        found = checkpoints(folder)
        older = found[found.index(path) + 1 :]
        clear_checkpoints(folder, [path, *older[:keeps_previous]])
    trainer.strategy.barrier("checkpoint")
    return path


def _validates_now(trainer: Trainer) -> bool:
    """Return whether Lightning is about to validate; it has no public way to ask."""
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
