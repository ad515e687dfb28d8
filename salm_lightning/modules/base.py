"""What the noise generator and the victim share: one network that is trained, validated after its last step, and told about."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from salm_lightning.data.base import Task
from salm_lightning.data.datamodule import ImageDataModule
from salm_lightning.errors import ConfigurationError, DivergedError
from salm_lightning.models import Architecture
from salm_lightning.modules.schedule import FractionalStepLR, training_length, warn_of_changes
from salm_lightning.noise.draws import fold
from salm_lightning.noise.store import fingerprint

LEFT_TO_SWEEP = "SALM_SWEEP"
"""Environment variable of a sweep's fits, with its version: the sweep writes what tells them apart, and TensorBoard takes one table of a
run."""
_PROGRESS = ("base_lrs", "last_epoch")
"""What a scheduler's state holds beside its arguments; the first rate is the optimiser's."""


class TrainedModule(LightningModule, ABC):
    """A module that trains one network, ``network``, with one optimiser and one schedule.

    Args:
        arch: Architecture of the network.
        num_classes: Classes or labels.
        task: Settles the loss and the metrics.
        optimizer: Builds the optimiser from the parameters.
        lr_scheduler: Builds its schedule, stepped with every batch; ``None`` is :class:`FractionalStepLR`.
        seed: Settles every draw.
    """

    network: nn.Module

    def __init__(
        self,
        arch: Architecture,
        num_classes: int,
        task: Task,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.arch, self.num_classes, self.task, self.seed = arch, num_classes, Task(task), seed
        self.build_optimizer, self.build_scheduler = optimizer, lr_scheduler or FractionalStepLR
        self._drops = False

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return every setting that shapes the network, as JSON values, for comparing runs."""

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser, and its schedule, which steps with every batch."""
        optimizer = self.build_optimizer(self.network.parameters())
        scheduler = self.build_scheduler(optimizer)
        if isinstance(scheduler, FractionalStepLR) and scheduler.total_steps is None:
            scheduler.total_steps = training_length(self.trainer, "FractionalStepLR", "total_steps")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_settings(self) -> dict[str, dict[str, Any]]:
        """Return class and arguments of the optimiser and its schedule, as JSON values under ``optimizer`` and ``lr_scheduler``.

        What a callable was made from cannot be asked of it, so both are built once more and thrown away.
        """
        optimizer = self.build_optimizer(self.network.parameters())
        scheduler = self.build_scheduler(optimizer)
        state = scheduler.state_dict()
        arguments = {key: value for key, value in state.items() if key not in _PROGRESS and not key.startswith("_")}
        return {
            "optimizer": {"class": type(optimizer).__name__, **_plain(optimizer.defaults)},
            "lr_scheduler": {"class": type(scheduler).__name__, **_plain(arguments)},
        }

    def configure_callbacks(self) -> list[Callback]:
        """Have the final model validated as well."""
        # Lightning keeps it from one fit or test to the next, and would announce that it replaces it.
        present = any(isinstance(callback, LastStepValidation) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [] if present else [LastStepValidation()]

    @property
    def _images(self) -> ImageDataModule | None:
        """The data that the Trainer was given; ``None`` where they are none of this package."""
        data = getattr(self.trainer, "datamodule", None)
        return data if isinstance(data, ImageDataModule) else None

    def fingerprint(self) -> str | None:
        """Return what tells the training images from others; ``None`` where they are no data of this package."""
        return fingerprint(self._images.split("train")) if self._images else None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the settings and the images in the checkpoint; one that has diverged is never saved, or it could be taken for trained."""
        self.require_finite()
        checkpoint |= {"settings": self.settings(), "data": self.fingerprint()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which settings are others than the checkpoint's.

        Raises:
            ConfigurationError: Training would go on with other images or labels.
        """
        warn_of_changes(checkpoint.get("settings", {}), self.settings())
        if self.trainer.state.fn == "fit" and checkpoint.get("data") != self.fingerprint():
            name = self._images.info.name if self._images else "the loader"
            raise ConfigurationError(
                f"ckpt_path={self.trainer.ckpt_path} was trained on other images than {name} holds now, or on other labels; resume with "
                "the same data, or start a new run."
            )

    def begin_training(self, metrics: Sequence[str], **more: Any) -> None:
        """Find out whether steps have to settle what dropout draws, and show the settings, and more, in TensorBoard's HPARAMS tab.

        ``metrics`` are the tags of scalars whose last values stand beside them.
        """
        # A network of ours drops where torchvision's does, as VGG at 224 px; one of another kind may do it in a way of its own.
        ours = (isinstance(layer, nn.Dropout) and layer.p > 0 for layer in self.network.modules())
        self._drops = not self.arch.is_ours or any(ours)
        if not self.trainer.is_global_zero or os.environ.get(LEFT_TO_SWEEP):
            return
        from torch.utils.tensorboard.summary import hparams  # as Lightning's own method, which logs zeros for the metrics

        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                writer = logger.experiment._get_file_writer()
                for summary in hparams(dict(_flat(self.settings() | more)), dict.fromkeys(metrics, 0.0)):  # type: ignore[no-untyped-call]
                    writer.add_summary(summary)

    def seed_dropout(self) -> None:
        """Seed torch's generators for one training step of a network that drops, instead of carrying their state."""
        if self._drops:
            torch.manual_seed(fold(self.seed, "dropout", self.global_step, self.global_rank) >> 1)

    @torch.no_grad()
    def share_statistics(self) -> None:
        """Give every rank the float buffers of rank 0; all ranks have to call it together, alone it does nothing.

        A checkpoint holds the statistics of rank 0 alone. Ranks that kept their own would go on differently after a resume, and would
        validate other models than it holds. DDP shares buffers by itself before each training forward, but not under manual
        optimisation, and never after the last step. SyncBatchNorm's are the same on every rank.
        """
        layers = [layer for layer in self.network.modules() if not isinstance(layer, nn.SyncBatchNorm)]
        buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False) if buffer.is_floating_point()]
        if self.trainer.world_size == 1 or not buffers:
            return
        together = torch.cat([buffer.flatten() for buffer in buffers])
        torch.distributed.broadcast(together, src=0)
        for buffer, shared in zip(buffers, together.split([buffer.numel() for buffer in buffers]), strict=True):  # type: ignore[no-untyped-call]
            buffer.copy_(shared.view_as(buffer))

    def require_finite(self, loss: Tensor | None = None) -> None:
        """Stop a training by a DivergedError if its loss, or else a weight, is NaN or infinite; this waits for the device."""
        values = self.network.parameters() if loss is None else [loss]
        if not all(bool(torch.isfinite(value).all()) for value in values):
            raise DivergedError(
                f"The {'weights are' if loss is None else 'loss is'} not finite at step {self.global_step}: training has diverged. "
                "Lower the learning rate or use 32-true."
            )


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


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it: text for what is not finite, and of what it cannot hold, such as a function, the type's name."""
    text = json.dumps(value, default=lambda item: item.tolist() if isinstance(item, Tensor) else type(item).__name__)
    return json.loads(text, parse_constant=lambda constant: str(float(constant)))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | float | str]]:
    """Yield every value under its dotted name; TensorBoard knows numbers, truth values and text."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, bool | int | float | str) else str(value)
