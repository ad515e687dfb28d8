"""What keeps the noise between visits: one noise for each sample, one for each class, or none."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from salm_lightning.data.base import Split, Task
from salm_lightning.errors import ConfigurationError
from salm_lightning.noise.methods import Method
from salm_lightning.noise.pgd import Samples
from salm_lightning.noise.selection import Selection
from salm_lightning.noise.store import LEVELS, NoiseStore, Snapshot, snapshot_folder
from salm_lightning.tensors import Tensor

DEVICE_SHARE = 0.4
"""Share of the device's free memory that the noise may take before it goes to a memory-mapped file."""
HOST_LIMIT = 2**28
"""Bytes of noise that a CPU run keeps in memory before it goes to a memory-mapped file.

The noise of every MedMNIST dataset at 28 pixels stays below (PathMNIST has 212 MB), and the rest of a run needs far more, so that
memory is bounded by the batch. Above it the file costs little: a visit of an image reads and writes its noise once, next to several
passes of the network, and the system keeps in memory what has room."""


class Keeper:
    """Keeps one noise for each sample (Algorithm 1), or for each class, or none.

    Where none is kept (the fresh loop, TAP, methods without a source model) each visit begins anew, and so does the last pass.

    Attributes:
        by_class: Whether all samples of a class share a noise, which then fits any image of it.
        keeps: Whether noise is kept at all.
        store: The noise of a training; ``None`` where none is kept.
        last_start: What the last pass begins with; ``None`` is the method's own start.
    """

    def __init__(self, method: Method, loop: str, num_classes: int) -> None:
        self.method = method
        self.num_classes = num_classes
        self.by_class = method.noise_per == "class"
        self.keeps = self.by_class or (loop == "persistent" and method.trains_source_on == "protected")
        self.store: NoiseStore | None = None
        self.last_start: Snapshot | NoiseStore | None = None

    def check(self, task: Task, loop: str, selection: Selection | None, last_pass_steps: int) -> None:
        """Refuse settings of the module that the noise does not go with.

        Raises:
            ConfigurationError: Steps would be rounded away, or one noise for a class is not enough.
        """
        if self.by_class:
            _check_by_class(task, loop, selection, last_pass_steps)
        finest, step_size = self.method.radius / LEVELS, getattr(self.method, "step_size", None)
        if self.keeps and step_size is not None and step_size < finest:
            raise ConfigurationError(
                f"step_size={step_size:g} is below the resolution of stored noise (radius / {LEVELS} = {finest:.3g}): "
                "every step would be rounded away. Give a larger step, or loop: fresh."
            )

    def open(
        self, shard: NDArray[np.int64], world: int, shape: tuple[int, int, int], device: torch.device, scratch: Callable[[], Path]
    ) -> None:
        """Make room for the noise of a training.

        Args:
            shard: Global indices of this rank's samples.
            world: Number of ranks.
            shape: ``(C, H, W)``.
            device: Where the noise lives while there is room.
            scratch: Returns the folder of its file where there is none.

        Raises:
            ConfigurationError: There are several ranks, and one noise for a class.
        """
        if self.by_class and world > 1:
            raise ConfigurationError(
                "noise_per='class' trains on one device, because all samples of a class share its noise; the Trainer has "
                f"{world}. Give trainer.devices: 1 and trainer.num_nodes: 1, or noise_per: sample."
            )
        owned = np.arange(self.num_classes) if self.by_class else shard
        free = int(DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else HOST_LIMIT
        folder = None if len(owned) * math.prod(shape) <= free else scratch()
        self.store = NoiseStore(owned, shape, self.method.radius_unit, device, folder)

    def count(self, samples: int) -> int:
        """Return how many noises there are for a number of training samples."""
        return self.num_classes if self.by_class else samples

    def begin(self, samples: Samples, step: int) -> Tensor:
        """Return the noise that a visit begins with, ``[B, C, H, W]``: the stored one, at the first visit the method's start."""
        if self.store is None:
            return self.method.start(samples.images, samples.indices, samples.seed, step)
        return self._stored(self.store, samples)

    def put(self, samples: Samples, delta: Tensor) -> None:
        """Keep the noise of a visit, if any is kept."""
        if self.store is not None:
            self.store.put(self._keys(samples), delta)

    def begin_last(self, samples: Samples) -> Tensor:
        """Return the noise that the last pass begins with, ``[B, C, H, W]``."""
        return self._stored(self.last_start, samples)

    def snapshot(self, checkpoint: Mapping[str, Any], path: Path) -> Snapshot:
        """Return the noise that belongs to a checkpoint, whose file is ``path``.

        Raises:
            ConfigurationError: It is per class and the method's per sample, or the other way round.
            ReleaseError: It is missing or damaged.
        """
        saved, settings = checkpoint["noise"], checkpoint.get("settings", {})
        if self.by_class is not (settings.get("method", {}).get("noise_per") == "class"):
            raise ConfigurationError(
                f"ckpt_path={path} holds noise for each {'sample' if self.by_class else 'class'}, and "
                f"noise_per={self.method.noise_per!r}: give the method that it was trained with."
            )
        return Snapshot(snapshot_folder(path.parent, saved["folder"]), self.method.radius_unit, saved["files"])

    def _stored(self, stored: Snapshot | NoiseStore | None, samples: Samples) -> Tensor:
        keys = self._keys(samples)
        start = self.method.start(samples.images, keys, samples.seed)
        return start if stored is None else stored.get(keys, start)

    def _keys(self, samples: Samples) -> Tensor:
        """Return what each sample's noise is kept under, int64 ``[B]``."""
        return samples.labels if self.by_class else samples.indices


def _check_by_class(task: Task, loop: str, selection: Selection | None, last_pass_steps: int) -> None:
    """Refuse what needs more than one noise for a class."""
    if task is Task.MULTI_LABEL:
        raise ConfigurationError(
            "noise_per='class' needs one class per image, and a multi-label image has any number of labels; use noise_per: sample."
        )
    if loop != "persistent":
        raise ConfigurationError(
            f"noise_per='class' keeps a noise for each class, which loop={loop!r} does not; use loop: persistent, or "
            "noise_per: sample."
        )
    if selection is not None and selection.percent < 100:
        raise ConfigurationError(
            f"selection.percent={selection.percent:g} leaves some images of a class clean, and noise_per='class' trains on all of "
            "them alike; give noise_per: sample, or choose whole classes."
        )
    if last_pass_steps:
        raise ConfigurationError(
            f"last_pass_steps={last_pass_steps} would give the images of a class noise that differs between chunks; leave it "
            "out, which is 0 for noise_per='class'."
        )


def fingerprint(train: Split) -> str:
    """Return a SHA-256 that tells images that noise was made for: over the labels, the shape, and a few hundred images of the split."""
    digest = hashlib.sha256(repr(train.images.shape).encode())
    digest.update(train.labels.tobytes())
    for image in train.images[:: max(1, len(train) // 256)]:
        digest.update(image.tobytes())
    return digest.hexdigest()
