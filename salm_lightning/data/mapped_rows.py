"""Some images of a memory map, read when they are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


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
