"""Images that are changed once before they are used, such as filtered ones: made chunk by chunk, in memory or in a scratch file."""

from __future__ import annotations

from collections.abc import Callable

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


def prepare(split: Split, rows: NDArray[np.int64], preparation: Preparation, device: torch.device, scratch: Scratch) -> Split:
    """Return a split with some of its images prepared on ``device`` and kept in ``scratch``; the others must not be used.

    Raises:
        ConfigurationError: The preparation changes the images' shape or type.
        DataError: There is no room for the scratch file.
    """
    images = scratch.empty(split.images.shape, len(rows) * split.images[:1].nbytes)
    step = max(1, _CHUNK // split.images[:1].nbytes)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        images[part] = _apply(preparation, split.images[part], part, device)
    return Split(as_written(images), split.labels)


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
