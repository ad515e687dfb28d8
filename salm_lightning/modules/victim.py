"""VictimModule: the unauthorised model, trained on a protected or clean dataset and measured on clean images."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from salm_lightning.callbacks.throughput import logs_at
from salm_lightning.countermeasures import Countermeasure, TrainingStep
from salm_lightning.data.base import SPLITS, Batch, Task
from salm_lightning.data.datamodule import ImageDataModule
from salm_lightning.errors import ConfigurationError
from salm_lightning.metrics import ClassificationMetrics
from salm_lightning.models import Architecture, NetworkFactory
from salm_lightning.modules.base import TrainedModule
from salm_lightning.modules.schedule import FractionalStepLR, default_optimizer
from salm_lightning.noise.transforms import CropFlip


class VictimModule(TrainedModule):
    """Train a classifier the ordinary way (paper: Section 4.1 and Appendix B.2) and follow its accuracy on clean images.

    While it trains, the clean validation and test splits are both measured, so that beside the result after the last step stand the
    test result at the best validation accuracy (AUC for several labels per image) and the peak over training.

    Args:
        num_classes: Classes or labels; the command line takes it from the data, like the next three.
        channels: 1 or 3.
        image_size: Height and width in pixels.
        task: Settles the loss and the metrics.
        arch: Architecture: a name, the path of a class with its arguments, or an
            :class:`~salm_lightning.models.Architecture`.
        width: Factor on its width; a class of your own gets it where its constructor has it.
        as_rgb: Whether grey images are shown to it in three equal channels.
        transform: Augmentation; ``None`` is ``CropFlip()``.
        countermeasure: What is done against the noise, such as ``JPEG(quality=10)``; ``None`` is nothing.
        optimizer: Builds the optimiser from the parameters; ``None`` is the architecture's or the countermeasure's own.
        lr_scheduler: Builds its schedule, stepped with every batch; ``None`` is
            :class:`~salm_lightning.modules.FractionalStepLR` at the countermeasure's milestones.
        seed: Settles the weights and every draw.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 3,
        image_size: int = 28,
        task: Task = Task.MULTI_CLASS,
        arch: str | NetworkFactory = "resnet18",
        width: float = 1.0,
        as_rgb: bool = False,
        transform: CropFlip | None = None,
        countermeasure: Countermeasure | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        countermeasure, parsed = countermeasure or Countermeasure(), Architecture.parse(arch)
        built_by = optimizer or default_optimizer(parsed, countermeasure)
        schedule = lr_scheduler or partial(FractionalStepLR, fractions=countermeasure.milestones)
        super().__init__(parsed, num_classes, task, built_by, schedule, seed)
        self.width, self.as_rgb = width, as_rgb
        self.transform, self.countermeasure = transform or CropFlip(), countermeasure
        self.network = self.arch.build(num_classes, channels, image_size, width, seed, as_rgb)
        meters = nn.ModuleDict({name: ClassificationMetrics(self.task, num_classes) for name in ("val", "curve", "test")})
        self.meters = cast("dict[str, ClassificationMetrics]", meters)
        self.history: dict[str, dict[str, float]] = {}
        """Test results so far: ``last``, ``best_on_val`` (with the ``val_acc`` or ``val_auc`` that chose it) and ``peak``."""
        self.result: dict[str, Any] | None = None
        """What the last ``test`` run measured, with ``recall`` per class and the ``confusion`` matrix."""

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of the metrics that are single numbers, in the order in which they are shown."""
        return self.meters["test"].scalars

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` for images ``[B, C, H, W]`` in [0, 1]."""
        logits: Tensor = self.network(images)
        return logits

    def setup(self, stage: str) -> None:
        """Ask the data for the test split's curve during training, and for images as the countermeasure prepares them.

        Raises:
            ConfigurationError: The countermeasure cannot work here.
        """
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit":
            self.countermeasure.initialise(self.network)
        if isinstance(data, ImageDataModule):
            splits = SPLITS if self.countermeasure.on_test else ("train",)
            data.prepare_images(
                lambda: self.countermeasure.preparation(data.split("train"), data.info, self.seed), splits, stage == "fit"
            )
        elif type(self.countermeasure).preparation is not Countermeasure.preparation:
            raise ConfigurationError(
                f"countermeasure={self.countermeasure.name} prepares images, which takes a DataModule of this package and not "
                f"{type(data).__name__}."
            )

    def on_train_start(self) -> None:
        """Show the settings in TensorBoard."""
        self.begin_training([f"{split}/{name}" for split in ("val", "test") for name in self.scalars])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss on an augmented batch."""
        self.seed_dropout()
        step = TrainingStep(*batch, self.task, self.num_classes, self.seed, self.network, self.transform, number=self.global_step)
        loss = self.countermeasure.loss(step)
        # Lightning writes after this step, which is not counted yet; what is logged at other steps is stale by then, or lost.
        if logs_at(self.trainer, self.global_step + 1):
            self.require_finite(loss)
            self.log("train/loss", loss.detach(), batch_size=len(batch.labels))
            self.log("train/lr", self.optimizers().param_groups[0]["lr"], batch_size=len(batch.labels))  # type: ignore[union-attr]
        return loss

    def on_train_end(self) -> None:
        """Let all ranks be tested with the statistics that the checkpoint holds; a diverged victim proves nothing."""
        self.require_finite()
        self.share_statistics()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect predictions on the clean validation split (loader 0) and the clean test split (loader 1)."""
        self.meters["curve" if dataloader_idx else "val"].update(self(batch.images), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Log both splits and keep the last, best-on-val and peak test results."""
        val = self._finish("val")
        self.log_dict({f"val/{name}": val[name] for name in self.scalars}, prog_bar=True)
        if not self.meters["curve"].confusion.update_called:
            return
        curve = self._finish("curve")
        self.log_dict({f"test_curve/{name}": curve[name] for name in self.scalars})
        if not self.trainer.sanity_checking:
            self._remember({name: float(val[name]) for name in self.scalars}, {name: float(curve[name]) for name in self.scalars})

    def _remember(self, val: dict[str, float], test: dict[str, float]) -> None:
        # Most labels of an image are absent: accuracy over several of them hardly tells models apart.
        measure = "auc" if self.task is Task.MULTI_LABEL else "acc"
        reached = val[measure] if math.isfinite(val[measure]) else -1.0  # no AUC: a label without images
        entry = {"step": float(self.global_step), f"val_{measure}": reached, **test}
        self.history["last"] = entry
        if reached > self.history.get("best_on_val", {}).get(f"val_{measure}", -2.0):
            self.history["best_on_val"] = entry
        if test["acc"] > self.history.get("peak", {}).get("acc", -1.0):
            self.history["peak"] = entry

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect predictions on the clean test split."""
        self.meters["test"].update(self(batch.images), batch.labels)

    def on_test_epoch_end(self) -> None:
        """Log the test metrics, recall per class, and the confusion matrix as a picture."""
        result = self._finish("test")
        names = getattr(getattr(self.trainer, "datamodule", None), "info", None)
        class_names = names.class_names if names else tuple(map(str, range(len(result["recall"]))))
        self.log_dict({f"test/{name}": result[name] for name in self.scalars})
        self.log_dict({f"test_recall/{name}": value for name, value in zip(class_names, result["recall"], strict=True)})
        self.result = {name: result[name].tolist() for name in (*self.scalars, "recall", "confusion")}
        # A test of a checkpoint begins at step 0; its fit has drawn the same picture.
        if isinstance(self.logger, TensorBoardLogger) and self.global_step > 0:
            from salm_lightning.metrics import confusion_image  # with matplotlib, which training does without

            picture = confusion_image(result["confusion"].cpu(), class_names)
            self.logger.experiment.add_image("test/confusion", picture, self.global_step)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the class probabilities of a batch, with labels and indices."""
        logits = self(batch.images).float()
        probabilities = logits.sigmoid() if self.task is Task.MULTI_LABEL else logits.softmax(dim=1)
        return {"probabilities": probabilities, "labels": batch.labels, "indices": batch.indices}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the results so far, so that a resumed run knows its peak."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the results so far over, if they are those of the same images."""
        super().on_load_checkpoint(checkpoint)
        self.history = checkpoint.get("history", {})

    def _finish(self, name: str) -> dict[str, Tensor]:
        result = self.meters[name].compute()
        self.meters[name].reset()
        return result

    def settings(self) -> dict[str, Any]:
        """Return what shapes the victim, as JSON values."""
        return {
            "arch": self.arch.settings(),
            "width": self.width,
            "as_rgb": self.as_rgb,
            "transform": self.transform.settings(),
            "countermeasure": self.countermeasure.settings(),
            **self.training_settings(),
            "seed": self.seed,
        }
