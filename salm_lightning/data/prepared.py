"""Images that are changed once before they are used, such as filtered ones: made chunk by chunk, in memory or in a scratch file."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from salm_lightning.data.arrays import to_array, to_tensor
from salm_lightning.data.base import Split
from salm_lightning.data.mapped import Scratch, as_written
from salm_lightning.errors import ConfigurationError

Preparation = Callable[[Tensor, Tensor], Tensor]
"""Takes images uint8 ``[B, C, H, W]`` and their indices int64 ``[B]``, and returns what takes their place, same shape and type."""

_CHUNK = 2**22  # bytes of images that are prepared at a time: filters need some tens of times as much meanwhile


class PreparedImages:
    """Splits under a preparation, each made when a loader first asks for it.

    Args:
        make: Returns the preparation, or ``None`` where nothing is done; called when the first split is asked for.
        names: Splits that are prepared; the others stay as they are.
        limit: Bytes up to which a split's prepared images are held in memory; larger ones go to a scratch file, which disappears
            with this object.
    """

    def __init__(self, make: Callable[[], Preparation | None], names: Collection[str], limit: int) -> None:
        self._make = cache(make)
        self._names = names
        self._scratch = Scratch(limit)
        self._done: dict[str, Split] = {}

    def split(self, name: str, split: Split, rows: NDArray[np.int64], device: torch.device) -> Split:
        """Return a split for loading some of its images.

        Args:
            name: Name of the split.
            split: The images as they are stored.
            rows: Images that this rank will load, the same at every call; the others are not prepared and must not be used.
            device: Where the work is done.

        Raises:
            ConfigurationError: The preparation changes the images' shape or type.
            DataError: There is no room for the scratch file.
        """
        if name not in self._names or (preparation := self._make()) is None:
            return split
        if name not in self._done:
            images = self._scratch.empty(split.images.shape, len(rows) * split.images[:1].nbytes)
            step = max(1, _CHUNK // split.images[:1].nbytes)
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                images[part] = _apply(preparation, split.images[part], part, device)
            self._done[name] = Split(as_written(images), split.labels)
        return self._done[name]

    def close(self) -> None:
        """Remove the scratch files."""
        self._done.clear()
        self._scratch.close()


def _apply(
    preparation: Preparation, images: NDArray[np.uint8], rows: NDArray[np.int64], device: torch.device
) -> NDArray[np.uint8]:
    before = to_tensor(images).to(device)
    after = preparation(before, torch.from_numpy(rows.copy()).to(device))
    if after.shape != before.shape or after.dtype != torch.uint8:
        raise ConfigurationError(
            f"A countermeasure made {after.dtype} {list(after.shape)} of images uint8 {list(before.shape)}; its preparation has to keep "
            "shape and type."
        )
    return to_array(after)
