"""Images that lie in files, because there is no room for them in memory: some rows of a memory map, and scratch files."""

from __future__ import annotations

import errno
import math
import os
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from salm_lightning.errors import DataError
from salm_lightning.files import beside, cache_root, remove, remove_leftovers

RESIDENT_LIMIT = 2**28
"""Bytes of uint8 images up to which an archive is held in memory; a larger one is memory-mapped.

Every MedMNIST dataset at 28 pixels stays below (PathMNIST has 252 MB). Above it memory is bounded by the batch: a training loader
on a CPU holds the images once more, so that a higher limit would be felt twice."""


class MappedRows:
    """Some rows of a memory-mapped array, without a copy of them; it offers what loaders and writers need of an array.

    It is pickled by the name of the file: a memory map itself would be copied whole into every worker process.

    Args:
        source: A memory map of an ``.npy`` file, uint8 ``[N, ...]``.
        rows: Positions in it, int64 ``[M]``, in any order.

    Attributes:
        shape: ``(M, ...)``.
        dtype: That of ``source``.
    """

    def __init__(self, source: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        self._source = source
        self._rows = rows
        self.shape: tuple[int, ...] = (len(rows), *source.shape[1:])
        self.dtype = source.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: int | slice | NDArray[np.integer | np.bool_]) -> NDArray[np.uint8]:
        """Read rows into memory, chosen along the first axis alone."""
        images: NDArray[np.uint8] = self._source[self._rows[key]]
        return images

    def __reduce__(self) -> tuple[object, ...]:
        return _open_rows, (self._source.filename, self._rows)  # type: ignore[attr-defined]


def rows_of(images: NDArray[np.uint8] | MappedRows, rows: NDArray[np.int64]) -> NDArray[np.uint8] | MappedRows:
    """Return some rows of images; those of a memory map stay where they are."""
    return MappedRows(images, rows) if isinstance(images, np.memmap) else images[rows]


def _open_rows(path: Path, rows: NDArray[np.int64]) -> MappedRows:
    return MappedRows(np.load(path, mmap_mode="r", allow_pickle=False), rows)


class Scratch:
    """Makes arrays for images that are made while a program runs; those that lie in files disappear with this object.

    Args:
        limit: Bytes up to which an array is held in memory.
    """

    def __init__(self, limit: int = RESIDENT_LIMIT) -> None:
        self._limit = limit
        self._folder: Path | None = None

    def empty(self, shape: Sequence[int], num_bytes: int | None = None) -> NDArray[np.uint8]:
        """Return an array of which ``num_bytes`` will be written, all by default; a file takes no room before that.

        Raises:
            DataError: There is no room for the file.
        """
        num_bytes = math.prod(shape) if num_bytes is None else num_bytes
        if num_bytes <= self._limit:
            return np.empty(shape, np.uint8)
        try:
            if self._folder is None:
                remove_leftovers(cache_root().glob(".*.tmp"))
                self._folder = beside(cache_root() / f"scratch-{id(self)}")
                self._folder.mkdir(parents=True)
                self._remove = weakref.finalize(self, remove, self._folder)
            if num_bytes > shutil.disk_usage(self._folder).free:  # writing to a map would kill the process
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            path = self._folder / f"{len(list(self._folder.iterdir())) + 1}.npy"
            return np.lib.format.open_memmap(path, "w+", np.uint8, tuple(shape))
        except OSError as error:
            raise DataError(
                f"Images cannot be kept in {cache_root()} ({error}). Set SALM_CACHE_DIR to a writable folder with room for them."
            ) from error

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            self._remove()
        self._folder = None


def as_written(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an array of :class:`Scratch` for reading alone; of a file, what was written no longer counts as memory of this process."""
    return np.load(str(images.filename), mmap_mode="r", allow_pickle=False) if isinstance(images, np.memmap) else images
