"""The noise of every sample that a rank owns, kept between visits, and its snapshots on disk.

Noise is held as int8 in units of ``radius / 127``. Grey levels would be too coarse: a PGD step of 1.6 would become 2, and one of
0.064 nothing at all.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from salm_lightning.errors import ReleaseError
from salm_lightning.files import file_sha256, replacing

LEVELS = 127
"""Steps of the int8 scale from zero to the radius."""

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
            with tempfile.TemporaryFile(dir=scratch) as file:
                self._noise = torch.from_numpy(np.memmap(file, dtype=np.int8, mode="w+", shape=size))
        self._slab = max(1, SLAB // math.prod(shape))
        self.visited = torch.zeros(len(self.indices), dtype=torch.bool, device=home)
        # A sample that another rank owns gets a row past the end, so that asking for it fails instead of hitting the last row.
        rows = torch.full((int(self.indices.max(initial=-1)) + 1,), len(self.indices), dtype=torch.int64)
        rows[torch.from_numpy(self.indices)] = torch.arange(len(self.indices))
        self._rows = rows.to(home)

    def get(self, indices: Tensor, start: Tensor) -> Tensor:
        """Return the noise of owned samples, and ``start`` for those never written.

        Args:
            indices: Global indices ``[B]``.
            start: First noise of these samples, float ``[B, C, H, W]`` in [0, 1] units.

        Returns:
            float32 ``[B, C, H, W]`` on the device of ``start``.
        """
        rows = self._rows[indices.to(self._rows.device)]
        return _noise_or_start(self._noise[rows], self.visited[rows], start, self.unit)

    def put(self, indices: Tensor, delta: Tensor) -> None:
        """Keep ``delta`` (float ``[B, C, H, W]`` in [0, 1] units) as the noise of owned samples ``[B]``."""
        rows = self._rows[indices.to(self._rows.device)]
        self._noise[rows] = quantise(delta, self.unit).to(self._noise.device)
        self.visited[rows] = True

    def save(self, folder: Path, rank: int) -> dict[str, str]:
        """Write this rank's part of a snapshot: the noise of the samples visited so far.

        Returns:
            SHA-256 by file name.
        """
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
        check_files(folder, checksums)
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


def check_files(folder: Path, checksums: dict[str, str]) -> None:
    """Compare the files of a snapshot with their SHA-256 sums.

    Raises:
        ReleaseError: A file is missing, differs, or has an unexpected name.
    """
    for name, expected in checksums.items():
        path, fault = folder / name, ""
        if not re.fullmatch(r"rank=\d+\.(noise|indices)\.npy", name):
            fault = f"The checkpoint names a noise file {name!r}; expected 'rank=R.noise.npy'. The file is damaged or not ours."
        elif not path.is_file():
            fault = f"{path} is missing: the noise that belongs to the checkpoint. Copy the folder next to the checkpoint."
        elif file_sha256(path) != expected:
            fault = f"{path} is not the file that the checkpoint names (its SHA-256 differs). Resume from another checkpoint."
        if fault:
            raise ReleaseError(fault)


def _save_array(path: Path, dtype: type[np.generic], shape: tuple[int, ...], blocks: Iterable[NDArray[Any]]) -> str:
    """Write an ``.npy`` file block by block, there completely or not at all, and return its SHA-256."""
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    with replacing(path) as temporary:
        with temporary.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for block in blocks:
                block.tofile(stream)
        return file_sha256(temporary)
