"""Room for images that are made while a program runs: in memory, or in a scratch file where they are too large for it."""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from salm_lightning.data.arrays import RESIDENT_LIMIT
from salm_lightning.errors import DataError
from salm_lightning.files import cache_root


class Scratch:
    """Makes arrays; those that lie in files disappear with this object.

    Args:
        limit: Bytes up to which an array is held in memory.
    """

    def __init__(self, limit: int = RESIDENT_LIMIT) -> None:
        self._limit = limit
        self._folder: Path | None = None
        self._remove: weakref.finalize[..., Scratch] | None = None
        self._count = 0

    def empty(self, shape: Sequence[int], num_bytes: int | None = None) -> NDArray[np.uint8]:
        """Return an array to be written; a file takes no room before that.

        Args:
            shape: Its shape.
            num_bytes: How much of it will be written; all by default.

        Raises:
            DataError: There is no room for the file.
        """
        if (math.prod(shape) if num_bytes is None else num_bytes) <= self._limit:
            return np.empty(shape, np.uint8)
        try:
            return np.lib.format.open_memmap(self._path(), "w+", np.uint8, tuple(shape))
        except OSError as error:
            raise DataError(
                f"Images cannot be kept in {cache_root()} ({error}). Set SALM_CACHE_DIR to a writable folder with room for them."
            ) from error

    def close(self) -> None:
        """Remove the files."""
        if self._remove is not None:
            self._remove()
        self._folder = None

    def _path(self) -> Path:
        if self._folder is None:
            cache_root().mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=".scratch-", dir=cache_root()))
            self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._count += 1
        return self._folder / f"{self._count}.npy"


def as_written(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an array of :class:`Scratch` for reading alone; of a file, what was written no longer counts as memory of this process."""
    return np.load(str(images.filename), mmap_mode="r", allow_pickle=False) if isinstance(images, np.memmap) else images
