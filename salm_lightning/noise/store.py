"""The noise that is kept between visits, one for each sample or each class, and its snapshots on disk.

Noise is held as int8 in units of ``radius / 127``. Grey levels would be too coarse: a PGD step of 1.6 would become 2, and one of
0.064 nothing at all.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from salm_lightning.data.base import Split, Task
from salm_lightning.errors import ConfigurationError, ReleaseError
from salm_lightning.files import file_sha256, replacing, writing
from salm_lightning.noise.methods import Method
from salm_lightning.noise.pgd import Samples, project
from salm_lightning.noise.selection import Selection

LEVELS = 127
"""Steps of the int8 scale from zero to the radius."""

DEVICE_SHARE = 0.4
"""Share of the device's free memory that the noise may take before it goes to a memory-mapped file."""
HOST_LIMIT = 2**28
"""Bytes of noise that a CPU run keeps in memory before it goes to a memory-mapped file.

The noise of every MedMNIST dataset at 28 pixels stays below (PathMNIST has 212 MB), and the rest of a run needs far more, so that
memory is bounded by the batch. Above it the file costs little: a visit of an image reads and writes its noise once, next to several
passes of the network, and the system keeps in memory what has room."""

SLAB = 2**24
"""Bytes of noise that are copied at a time while a snapshot is written or read: memory is bounded by it, not by the dataset."""

_SNAPSHOT_NAME = re.compile(r"step=\d+")


class NoiseStore:
    """Noise per sample for a fixed set of global sample indices (or per class), on one device or in a memory-mapped file.

    It is neither a parameter nor a buffer: DDP would broadcast rank 0's over the others.

    Args:
        indices: Global indices of the samples owned, or the numbers of the classes, int64 ``[n]``.
        shape: ``(C, H, W)``.
        radius: Bound of the noise in [0, 1] units.
        device: Where the noise lives, unless ``scratch`` is given.
        scratch: Folder for the file of a memory map, for noise that does not fit. The file has no name, so that it goes with the
            process, however that ends: what lasts is in the snapshots.

    Attributes:
        visited: Which of the samples have been written at least once, boolean ``[n]``.
    """

    def __init__(
        self,
        indices: NDArray[np.int64],
        shape: tuple[int, int, int],
        radius: float,
        device: torch.device | str = "cpu",
        scratch: Path | None = None,
    ) -> None:
        self.indices = np.asarray(indices, dtype=np.int64)
        self.unit = radius / LEVELS
        home = torch.device("cpu") if scratch else torch.device(device)
        size = (len(self.indices), *shape)
        if scratch is None:
            self._noise = torch.zeros(size, dtype=torch.int8, device=home)
        else:
            scratch.mkdir(parents=True, exist_ok=True)
            with writing(scratch), tempfile.TemporaryFile(dir=scratch) as file:
                os.posix_fallocate(file.fileno(), 0, math.prod(size))  # writing to a map on a full disk would kill the process
                self._noise = torch.from_numpy(np.memmap(file, dtype=np.int8, mode="w+", shape=size))
        self._slab = max(1, SLAB // math.prod(shape))
        self.visited = torch.zeros(len(self.indices), dtype=torch.bool, device=home)
        # A sample that another rank owns gets a row past the end, so that asking for it fails instead of hitting the last row.
        rows = torch.full((int(self.indices.max(initial=-1)) + 1,), len(self.indices), dtype=torch.int64)
        rows[torch.from_numpy(self.indices)] = torch.arange(len(self.indices))
        self._rows = rows.to(home)

    def get(self, indices: Tensor, start: Tensor) -> Tensor:
        """Return the noise of owned samples ``[B]``, and ``start`` for those never written; both float ``[B, C, H, W]`` in [0, 1] units.

        The noise is float32, on the device of ``start``.
        """
        rows = self._rows[indices.to(self._rows.device)]
        return _noise_or_start(self._noise[rows], self.visited[rows], start, self.unit)

    def put(self, indices: Tensor, delta: Tensor) -> None:
        """Keep ``delta`` (float ``[B, C, H, W]`` in [0, 1] units) as the noise of owned samples ``[B]``."""
        rows = self._rows[indices.to(self._rows.device)]
        self._noise[rows] = quantise(delta, self.unit).to(self._noise.device)
        self.visited[rows] = True

    def class_means(self, labels: NDArray[np.integer], num_classes: int) -> Tensor:
        """Return the mean noise of each class over the samples visited so far, float32 ``[classes, C, H, W]`` in [0, 1] units.

        ``labels`` ``[N]`` are those of all samples, by global index. A class of which none was visited has none.
        """
        owned = torch.from_numpy(np.asarray(labels)[self.indices].astype(np.int64)).to(self.visited.device)
        sums = torch.zeros(num_classes, *self._noise.shape[1:])
        for label in range(num_classes):
            rows = (self.visited & (owned == label)).nonzero()[:, 0]
            for slab in torch.split(rows, self._slab):
                sums[label] += self._noise[slab].sum(dim=0, dtype=torch.int64).cpu() / len(rows)
        return sums * self.unit

    def save(self, folder: Path, rank: int) -> dict[str, str]:
        """Write this rank's part of a snapshot, the noise of the samples visited so far, and return SHA-256 by file name."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = self.visited.nonzero()[:, 0]
        indices = self.indices[rows.cpu().numpy()]
        noise = (self._noise[slab].cpu().numpy() for slab in torch.split(rows, self._slab))
        return {
            name: _save_array(folder / name, dtype, (len(rows), *shape), blocks)
            for name, dtype, shape, blocks in (
                (f"rank={rank}.indices.npy", np.int64, (), [indices]),
                (f"rank={rank}.noise.npy", np.int8, self._noise.shape[1:], noise),
            )
        }

    def load(self, snapshot: Snapshot) -> None:
        """Take over the noise of the owned samples from a snapshot, which may come from another number of ranks."""
        for start in range(0, len(self.indices), self._slab):
            slab = slice(start, start + self._slab)
            noise, known = snapshot.read(self.indices[slab])
            self._noise[slab].copy_(torch.from_numpy(noise))
            self.visited[slab].copy_(torch.from_numpy(known))


class Snapshot:
    """A snapshot of all ranks' noise on disk, memory-mapped and keyed by the global sample index.

    Args:
        folder: ``.../noise/step=N``.
        radius: Bound of the noise in [0, 1] units.
        checksums: SHA-256 by file name, from the checkpoint that the snapshot belongs to.

    Raises:
        ReleaseError: A file is missing or not the one that the checkpoint names.
    """

    def __init__(self, folder: Path, radius: float, checksums: dict[str, str]) -> None:
        for name, expected in checksums.items():
            path, fault = folder / name, ""
            if not re.fullmatch(r"rank=\d+\.(noise|indices)\.npy", name):
                fault = (
                    f"The checkpoint names a noise file {name!r}; expected 'rank=R.noise.npy'. The file is damaged or not ours."
                )
            elif not path.is_file():
                fault = f"{path} is missing: the noise that belongs to the checkpoint. Copy the folder next to the checkpoint."
            elif file_sha256(path) != expected:
                fault = f"{path} is not the file that the checkpoint names (its SHA-256 differs). Resume from another checkpoint."
            if fault:
                raise ReleaseError(fault)
        self.unit = radius / LEVELS
        owned, self._noise = (
            [np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in sorted(checksums) if name.endswith(kind)]
            for kind in (".indices.npy", ".noise.npy")
        )
        self._owned = [(part, np.argsort(part)) for part in owned]

    def read(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
        """Return the int8 noise of samples ``[B]`` and which of them are in the snapshot (others are zero)."""
        shape = self._noise[0].shape[1:] if self._noise else ()
        noise = np.zeros((len(indices), *shape), dtype=np.int8)
        known = np.zeros(len(indices), dtype=bool)
        for (owned, order), source in zip(self._owned, self._noise, strict=True):
            if len(owned):
                rows = order[np.searchsorted(owned, indices, sorter=order).clip(max=len(owned) - 1)]
                here = owned[rows] == indices
                noise[here] = source[rows[here]]
                known |= here
        return noise, known

    def get(self, indices: Tensor, start: Tensor) -> Tensor:
        """Return the noise of samples, and ``start`` for those without one, as :meth:`NoiseStore.get` does."""
        noise, known = map(torch.from_numpy, self.read(indices.cpu().numpy()))
        return _noise_or_start(noise, known, start, self.unit)


def quantise(delta: Tensor, unit: float) -> Tensor:
    """Round noise in [0, 1] units to int8 steps of ``unit``."""
    return (delta / unit).round().clamp(-LEVELS, LEVELS).to(torch.int8)


def dequantise(noise: Tensor, unit: float) -> Tensor:
    """Return int8 noise as float32 in [0, 1] units."""
    return noise.to(torch.float32) * unit


def _noise_or_start(noise: Tensor, known: Tensor, start: Tensor, unit: float) -> Tensor:
    return torch.where(known.to(start.device)[:, None, None, None], dequantise(noise.to(start.device), unit), start)


def snapshot_folder(checkpoints: Path, name: str) -> Path:
    """Return where the snapshot called ``name`` stands, next to the checkpoints.

    Raises:
        ReleaseError: ``name``, which may come from a checkpoint file, is not of the form ``step=N``.
    """
    if not _SNAPSHOT_NAME.fullmatch(name):
        raise ReleaseError(f"The checkpoint names a noise snapshot {name!r}; expected 'step=N'. The file is damaged or not ours.")
    return checkpoints / "noise" / name


def _save_array(path: Path, dtype: type[np.generic], shape: tuple[int, ...], blocks: Iterable[NDArray[Any]]) -> str:
    """Write an ``.npy`` file block by block, there completely or not at all, and return its SHA-256."""
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    with replacing(path) as temporary:
        with temporary.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for block in blocks:
                block.tofile(stream)
        return file_sha256(temporary)


class Keeper:
    """Keeps one noise for each sample (Algorithm 1), or for each class, or none.

    Where none is kept (the fresh loop, TAP, methods without a source model) each visit begins anew, and so does the last pass.

    Attributes:
        by_class: Whether all samples of a class share a noise, which then fits any image of it.
        keeps: Whether noise is kept at all.
        store: The noise of a training; ``None`` where none is kept.
        last_start: What the last pass begins with; ``None`` is the method's own start.
        class_start: What it begins with instead where images are others than those of the training: a noise for each class.

    Raises:
        ConfigurationError: Steps would be rounded away, or one noise for a class is not enough for the module's settings.
    """

    def __init__(
        self, method: Method, loop: str, num_classes: int, task: Task, selection: Selection | None, last_pass_steps: int
    ) -> None:
        self.method = method
        self.num_classes = num_classes
        self.by_class = method.noise_per == "class"
        self.keeps = self.by_class or (loop == "persistent" and method.trains_source_on == "protected")
        self.store: NoiseStore | None = None
        self.last_start: Snapshot | NoiseStore | None = None
        self.class_start: Tensor | None = None
        if self.by_class:
            _check_by_class(task, loop, selection, last_pass_steps)
        finest, step_size = method.radius / LEVELS, getattr(method, "step_size", None)
        if self.keeps and step_size is not None and step_size < finest:
            raise ConfigurationError(
                f"step_size={step_size:g} is below the resolution of stored noise (radius / {LEVELS} = {finest:.3g}): "
                "every step would be rounded away. Give a larger step, or loop: fresh."
            )

    def open(
        self, shard: NDArray[np.int64], world: int, shape: tuple[int, int, int], device: torch.device, scratch: Callable[[], Path]
    ) -> None:
        """Make room for the noise of a training, ``(C, H, W)`` for each global index of this rank's shard, on the device.

        Where there is no room, it lies in a file in the folder that ``scratch`` returns.

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
        if self.class_start is not None and self.last_start is None:
            start = self.class_start.to(samples.images.device)[samples.labels]
            return project(start, samples.images, self.method.radius_unit)
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
