"""NoiseGeneratorModule: noise and source model in alternation, and the last pass that makes the noise to release (Algorithm 1)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from numpy.typing import NDArray
from torch import Tensor, nn

from salm_lightning.callbacks.checkpoint import checkpoint_folder
from salm_lightning.callbacks.throughput import logs_at
from salm_lightning.data.base import Batch, Task
from salm_lightning.data.datamodule import ImageDataModule
from salm_lightning.errors import ConfigurationError, look_up, require
from salm_lightning.metrics import ClassificationMetrics, classification_loss
from salm_lightning.models import Architecture, NetworkFactory
from salm_lightning.modules.base import TrainedModule
from salm_lightning.modules.schedule import automatic_updates, default_optimizer, training_length
from salm_lightning.noise.methods import Method, Perturbation
from salm_lightning.noise.pgd import Objective, Samples, frozen, release_images
from salm_lightning.noise.selection import Selection
from salm_lightning.noise.store import Keeper, snapshot_folder


class NoiseGeneratorModule(TrainedModule):
    """Train a source model on data whose noise is improved against it, then make the noise to release.

    Each training step improves the noise of a batch by masked PGD with the source model frozen, then takes one optimiser step of the
    source model on the noisy batch under a new transform (paper: Algorithm 1). ``predict_step`` is the last pass: it improves every
    image's noise against the trained source model and returns the images to release. Labels and images come from an
    ``ImageDataModule``, whose sample indices key the noise. A method may want its source model trained on clean images instead (TAP):
    then the noise is made in the last pass alone.

    Args:
        method: How noise starts and improves, such as ``SALM(percent=10)``.
        num_classes: Classes or labels; the command line takes it from the data, like the next three.
        channels: 1 or 3.
        image_size: Height and width in pixels.
        task: Settles the loss and the metrics.
        source: Architecture of the source model f', as a victim's.
        width: Factor on its width; a class of your own gets it where its constructor has it.
        as_rgb: Whether grey images are shown to it in three equal channels; they are released as grey, with the one noise of all three.
        batch_norm: Statistics that batch norm uses in PGD: ``running``, or those of the ``batch``. The source step uses the batch's.
        loop: ``persistent`` keeps each sample's noise between visits (Algorithm 1); ``fresh`` runs a full PGD from a new random start
            at every step (Section 3.3, Appendix B.2).
        updates_per_visit: PGD steps per visit in the persistent loop; ``auto`` is ``ceil(30 N / (M * batch))``, 1 to 10, so that big
            datasets, which are visited seldom, get enough. N counts what has a noise of its own: samples, or classes.
        pgd_steps: K_a, PGD steps per training step in the fresh loop.
        last_pass_steps: PGD steps of the last pass; 0 releases the noise as it was trained, ``None`` is the method's own number (SALM
            and EM 10, TAP 250; class-wise EM 0, and no other).
        selection: Which samples are protected, where not all are; the source model sees the others as they are.
        optimizer: Builds the source model's optimiser from its parameters; ``None`` is the architecture's own.
        lr_scheduler: Builds its schedule, stepped with every batch; ``None`` is :class:`~salm_lightning.modules.FractionalStepLR`.
        seed: Settles the weights and every draw.

    Attributes:
        made_by: SHA-256 of the checkpoint of another result that makes the noise; ``None`` for a generator of the result's own.
        trained: Steps, batch size, precision and updates per visit (where noise is kept) of the training; ``None`` without one.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    def __init__(
        self,
        method: Method,
        num_classes: int,
        channels: int = 3,
        image_size: int = 28,
        task: Task = Task.MULTI_CLASS,
        source: str | NetworkFactory = "resnet18",
        width: float = 1.0,
        as_rgb: bool = False,
        batch_norm: Literal["running", "batch"] = "running",
        loop: Literal["persistent", "fresh"] = "persistent",
        updates_per_visit: int | Literal["auto"] = "auto",
        pgd_steps: int = 10,
        last_pass_steps: int | None = None,
        selection: Selection | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        arch = Architecture.parse(source, "source")
        super().__init__(arch, num_classes, task, optimizer or default_optimizer(arch), lr_scheduler, seed)
        self.automatic_optimization = False
        self.method = method
        self.loop = look_up("loop", loop, ("persistent", "fresh"))
        self.updates_per_visit = updates_per_visit
        self.pgd_steps = pgd_steps
        self.last_pass_steps = method.last_pass_steps if last_pass_steps is None else last_pass_steps
        _check_steps(method, updates_per_visit, pgd_steps, self.last_pass_steps)
        self.selection = selection
        self.noise = Keeper(method, loop, num_classes, self.task, selection, self.last_pass_steps)
        self.width, self.as_rgb = width, as_rgb
        self.batch_norm = look_up("batch_norm", batch_norm, ("running", "batch"))
        self.source = self.arch.build(num_classes, channels, image_size, width, seed, as_rgb)
        self.image_shape = (channels, image_size, image_size)
        self.clean_metrics = ClassificationMetrics(self.task, num_classes)
        self.pictures_wanted = False
        self.last_pictures: dict[str, Any] | None = None
        self._selected: Tensor | None = None
        self._trained_on: str | None = None
        self._from_checkpoint = False
        self._updates = pgd_steps
        self.trained: dict[str, Any] | None = None
        self.made_by: str | None = None

    @property
    def network(self) -> nn.Module:  # type: ignore[override]
        """The source model."""
        return self.source

    def settings(self) -> dict[str, Any]:
        """Return every setting that shapes the noise, as JSON values, for manifests and for comparing runs."""
        plain = ("width", "as_rgb", "batch_norm", "loop", "updates_per_visit", "pgd_steps", "last_pass_steps")
        return {
            "method": self.method.settings(),
            "source": self.arch.settings(),
            **{name: getattr(self, name) for name in plain},
            "selection": None if self.selection is None else asdict(self.selection),
            **self.training_settings(),
            "seed": self.seed,
        }

    def setup(self, stage: str) -> None:
        """Settle which samples are protected, and make room for the noise of this rank's samples, if any is kept.

        Raises:
            ConfigurationError: The ranks could come to wait for each other.
        """
        trainer = self.trainer
        if self.batch_norm == "batch" and trainer.world_size > 1 and str(trainer.precision) == "16-mixed":
            raise ConfigurationError(
                f"batch_norm=batch with precision=16-mixed on {trainer.world_size} devices: one that repeats a forward pass after "
                "an overflow would wait for the statistics of the others. Use bf16-mixed or 32-true, batch_norm=running, or one device."
            )
        if stage in ("fit", "predict") and self.selection is not None:
            selected = self.selected_samples(self._data)
            self._selected = torch.from_numpy(selected).to(self.trainer.strategy.root_device)
        self._from_checkpoint = False
        if stage == "fit" and self.noise.keeps:
            data, trainer = self._data, self.trainer
            data.setup("fit")
            self._trained_on = self.fingerprint()
            shard, device = data.shard(trainer.global_rank, trainer.world_size), trainer.strategy.root_device
            self.noise.open(shard, trainer.world_size, self.image_shape, device, lambda: checkpoint_folder(trainer))

    @property
    def _data(self) -> ImageDataModule:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule):
            raise ConfigurationError(
                f"{type(self).__name__} needs data with sample indices: pass datamodule=MedMNISTDataModule(...) or another "
                f"ImageDataModule to the Trainer (got {type(data).__name__})."
            )
        return data

    def selected_samples(self, data: ImageDataModule) -> NDArray[np.bool_] | None:
        """Say of each training sample whether it is protected, boolean ``[N]``; ``None`` when all are.

        Raises:
            ConfigurationError: The selection does not fit the data.
        """
        if self.selection is None:
            return None
        data.setup("fit")
        return self.selection.mask(data.split("train").labels, data.info)

    def on_train_start(self) -> None:
        """Note for manifest and TensorBoard how the training goes."""
        data = self._data
        updates = self.updates_per_visit if self.noise.keeps else None
        if updates == "auto":
            steps = training_length(self.trainer, "updates_per_visit='auto'", "a number from 1 to 10")
            noises = self.num_classes if self.noise.by_class else len(data.split("train"))
            updates = automatic_updates(noises, steps, data.batch_size)
        self._updates = updates or self.pgd_steps
        self.trained = {"batch_size": data.batch_size, "precision": str(self.trainer.precision), "updates_per_visit": updates}
        shown = ("train/source_loss", "train/source_acc", "val/clean_acc", "val/clean_balanced_acc")
        self.begin_training(shown, training=self.trained)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Improve the batch's noise, then step the source model on the noisy batch."""
        samples = self._samples(batch)
        noise = self._perturb(samples)
        self.seed_dropout()
        protected = (samples.images + noise.delta).clamp(0, 1)
        logits = self.source(self.method.transform(protected, samples.indices, self.seed, "source", self.global_step))
        loss = classification_loss(logits, samples.labels, self.task)
        optimizer = self.optimizers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.manual_backward(loss)
        rate = optimizer.param_groups[0]["lr"]  # type: ignore[union-attr]
        optimizer.step()  # type: ignore[union-attr]
        self.lr_schedulers().step()  # type: ignore[union-attr]
        self.share_statistics()
        if logs_at(self.trainer, self.global_step):
            self._log_step(loss.detach(), logits.detach(), samples.labels, noise.delta, rate)
        if self.pictures_wanted:
            self.last_pictures = {"images": samples.images, **noise._asdict(), "radius": self.method.radius_unit}
        # Last, so that a checkpoint never holds noise of a step that the optimiser has not taken.
        self.noise.put(samples, noise.delta)

    def on_train_end(self) -> None:
        """Make no release with a source model that has diverged."""
        self.require_finite()
        self.trained = {**(self.trained or {}), "steps": self.global_step}

    def _samples(self, batch: Batch) -> Samples:
        kept = self._data.kept(batch.indices)
        free = None if kept is None else (~kept[:, None]).to(batch.images.dtype)
        return Samples(*batch, self.task, self.num_classes, self.seed, free=free)

    def _perturb(self, samples: Samples) -> Perturbation:
        if self.method.trains_source_on == "clean":
            return Perturbation(torch.zeros_like(samples.images), torch.zeros_like(samples.images[:, :1]))
        gradient = self._input_gradient(samples, "eot", self.global_step)
        return self._improve(self.noise.begin(samples, self.global_step), gradient, self._updates)

    def _improve(self, delta: Tensor, gradient: Objective, steps: int) -> Perturbation:
        with frozen(self.source, self.batch_norm == "batch"):
            noise = self.method.improve(gradient.samples.images, delta, gradient, steps)
        for allowed in (gradient.samples.free, self._selected_of(gradient.samples)):
            if allowed is not None:
                noise = Perturbation(noise.delta * allowed, noise.mask * allowed)
        return noise

    def _selected_of(self, samples: Samples) -> Tensor | None:
        return None if self._selected is None else self._selected[samples.indices][:, None, None, None]

    def _input_gradient(self, samples: Samples, purpose: str, *counters: int) -> Objective:
        half = str(self.trainer.precision) == "16-mixed"
        return Objective(self.source, samples, self.method.transform, purpose, counters, self.method.eot_samples, half)

    def _log_step(self, loss: Tensor, logits: Tensor, labels: Tensor, delta: Tensor, rate: float) -> None:
        self.require_finite(loss)
        guessed = (logits > 0).float() if self.task is Task.MULTI_LABEL else logits.argmax(dim=1)
        touched = ((delta * 255).round() != 0).any(dim=1)
        values: dict[str, Tensor | float] = {
            "train/source_loss": loss,
            "train/lr": rate,
            "train/source_acc": (guessed == labels).float().mean(),
            "train/pixels_touched": touched.float().mean(),
            "train/delta_mean": delta.abs().mean(),
            "train/delta_max": delta.abs().max(),
        }
        self.log_dict(values, batch_size=len(labels))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the source model's predictions on clean images."""
        self.clean_metrics.update(self.source(batch.images), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Log how well the source model reads clean images.

        If it has only seen protected ones, low is protective; trained on clean ones (TAP), it should do well.
        """
        result = self.clean_metrics.compute()
        self.log("val/clean_acc", result["acc"], prog_bar=True)
        self.log("val/clean_balanced_acc", result["balanced_acc"])
        self.clean_metrics.reset()

    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """Log the source model's clean test accuracy."""
        result = self.clean_metrics.compute()
        self.log_dict({f"test/clean_{name}": result[name] for name in ("acc", "auc", "balanced_acc")})
        self.clean_metrics.reset()

    def on_predict_start(self) -> None:
        """Without a checkpoint, start from the noise that this very process has trained, if it is that of the images at hand."""
        if self._from_checkpoint:
            return
        at_hand = self.noise.store is not None and self._trained_on == self.fingerprint()
        if at_hand and self.trainer.world_size > 1:
            raise ConfigurationError(
                "ckpt_path=None: each of several ranks holds the noise of its own images only, and the last pass needs all of it. "
                "Call salm_lightning.runs.generation.generate(...), or give ckpt_path."
            )
        self.noise.last_start = self.noise.store if at_hand else None

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Improve the stored (or a random) noise of a chunk against the trained source model and apply it."""
        # Lightning predicts under inference mode, where no gradient can be taken and whose tensors cannot enter a graph.
        with torch.inference_mode(False), torch.enable_grad():
            samples = self._samples(Batch(*(tensor.clone() for tensor in batch)))
            noise = self._improve(self.noise.begin_last(samples), self._input_gradient(samples, "last"), self.last_pass_steps)
        return batch._replace(images=release_images(batch.images, noise.delta, self.method.radius, self.method.norm))

    def save_noise(self) -> dict[str, Any] | None:
        """Write every rank's noise as a snapshot next to the checkpoints; all ranks have to call it together.

        Return folder name and SHA-256 by file name, or ``None`` where no noise is kept (the fresh loop, TAP).
        """
        if self.noise.store is None:
            return None
        name = f"step={self.global_step}"
        folder = snapshot_folder(checkpoint_folder(self.trainer), name)
        files = self.noise.store.save(folder, self.global_rank)
        if self.trainer.world_size > 1:
            parts: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, files)
            files = {name: checksum for part in parts for name, checksum in part.items()}
        return {"folder": name, "files": files}

    def _class_noise(self) -> Tensor | None:
        """Return the mean noise of each class, with which that of later images begins.

        There is none with several labels an image, of noise that is a class's already, and from several ranks, each of which has a part.
        """
        store, several = self.noise.store, self.task is Task.MULTI_LABEL or self.trainer.world_size > 1
        if store is None or several or self.noise.by_class:
            return None
        return store.class_means(self._data.split("train").labels[:, 0], self.num_classes)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write this rank's noise and name it, with checksums, in the checkpoint, beside settings and images."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["noise"] = self.save_noise()
        checkpoint["class_noise"] = self._class_noise()
        checkpoint["trained"] = self.trained = {**(self.trained or {}), "steps": self.global_step}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare the settings and take over the stored noise; a rank takes that of the samples that it owns now.

        A checkpoint may protect other images than those it was trained on: its noise is keyed by their indices and is then left alone,
        so that the last pass begins with a random start. The noise of a class fits any image of it.

        Raises:
            ConfigurationError: Training would go on with other images, or the checkpoint's noise is per class and the method's per
                sample, or the other way round.
            ReleaseError: The noise that belongs to the checkpoint is missing or damaged.
        """
        if self.made_by is not None:  # whose last pass has a length of its own
            checkpoint["settings"]["last_pass_steps"] = self.last_pass_steps
            self.noise.class_start = checkpoint.get("class_noise")
        super().on_load_checkpoint(checkpoint)
        saved, path = checkpoint.get("noise"), self.trainer.ckpt_path
        self._from_checkpoint, self.noise.last_start = True, None
        self.trained = checkpoint.get("trained")
        same_data = checkpoint.get("data") == self.fingerprint()
        needed = self.trainer.state.fn in ("fit", "predict")  # a test only reads the source model
        if saved is None or path is None or not (needed and (same_data or self.noise.by_class)):
            return
        snapshot = self.noise.snapshot(checkpoint, Path(path))
        if self.trainer.state.fn != "fit":
            self.noise.last_start = snapshot
        elif self.noise.store is not None:
            self.noise.store.load(snapshot)


def _check_steps(method: Method, updates_per_visit: int | str, pgd_steps: int, last_pass_steps: int) -> None:
    fits = updates_per_visit == "auto" or (isinstance(updates_per_visit, int) and updates_per_visit >= 1)
    require("updates_per_visit", repr(updates_per_visit), fits, "give 1 or more, or 'auto'")
    require("pgd_steps", pgd_steps, pgd_steps >= 1, "give 1 or more")
    if last_pass_steps < 0:
        raise ConfigurationError(f"last_pass_steps={last_pass_steps} is negative; give 0 (release the stored noise) or more.")
    if method.trains_source_on == "clean" and last_pass_steps == 0:
        raise ConfigurationError(
            f"last_pass_steps=0 releases the noise as it was trained, and {method.name} makes none before the last pass; give 1 or "
            f"more, or leave it out for {method.last_pass_steps}."
        )
