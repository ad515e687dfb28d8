"""LastStepValidation: the final model is validated whether or not the interval divides the training length."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class LastStepValidation(Callback):
    """Ask for a validation after the last step; one that is due there anyway is not run twice.

    Lightning has no setting for it, and ``Trainer.should_stop`` would also write out metrics of earlier steps. So the interval, in
    batches, is one for that single step.
    """

    def __init__(self) -> None:
        self._interval: int | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Shorten the interval; callbacks that save checkpoints come later and know then that a validation follows."""
        last_of_all = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        is_last = 0 <= trainer.max_steps <= trainer.global_step or last_of_all
        if is_last and isinstance(trainer.val_check_batch, int):
            self._interval, trainer.val_check_batch = trainer.val_check_batch, 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the interval back for another fit."""
        if self._interval is not None:
            trainer.val_check_batch, self._interval = self._interval, None


def last_validation(trainer: Trainer) -> list[Callback]:
    """Return what a module's ``configure_callbacks`` adds to a Trainer."""
    # Lightning keeps it from one fit or test to the next, and would announce that it replaces it.
    present = any(isinstance(callback, LastStepValidation) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    return [] if present else [LastStepValidation()]
