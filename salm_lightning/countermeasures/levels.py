"""What takes information out of images that a person hardly misses: colours, the finest levels, or what JPEG leaves out."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from salm_lightning.countermeasures.base import ImageCountermeasure
from salm_lightning.data.arrays import to_tensor
from salm_lightning.data.base import DatasetInfo, Split
from salm_lightning.data.prepared import Preparation
from salm_lightning.errors import require

_LUMA = (19595, 38470, 7471)
"""ITU-R 601 weights of red, green and blue, in units of 2^-16, as Pillow has them."""


class Grey(ImageCountermeasure):
    """Put an image's brightness into all its channels; the finished model gets grey images as well. Grey datasets stay as they are."""

    on_test = True

    def preparation(self, train: Split, info: DatasetInfo, seed: int) -> Preparation | None:
        """Return the conversion, or ``None`` for a grey dataset."""
        return None if info.channels == 1 else super().preparation(train, info, seed)

    def prepare(self, images: Tensor) -> Tensor:
        """Return three equal channels."""
        red, green, blue = images.int().unbind(dim=1)
        luma: Tensor = (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue + 2**15) >> 16
        return luma.to(torch.uint8)[:, None].repeat(1, 3, 1, 1)


class BitDepth(ImageCountermeasure):
    """Round each value to the nearest of ``2**bits`` evenly spaced levels from 0 to 255 (Xu et al. 2018: feature squeezing).

    Args:
        bits: Bits per value that are left, 1 to 7.
    """

    def __init__(self, bits: int = 2) -> None:
        require("bits", bits, 1 <= bits <= 7, "give 1 to 7")
        self.bits = bits

    def prepare(self, images: Tensor) -> Tensor:
        """Return images with fewer levels."""
        steps = 2**self.bits - 1
        # Whole numbers: neither division is ever half-way between two.
        level = (2 * images.int() * steps + 255) // 510
        values: Tensor = (2 * level * 255 + steps) // (2 * steps)
        return values.to(torch.uint8)


class JPEG(ImageCountermeasure):
    """Encode and decode each image with libjpeg, colours at half the resolution (4:2:0), as files on the web are.

    Args:
        quality: 1 (worst) to 100.
    """

    def __init__(self, quality: int = 10) -> None:
        require("quality", quality, 1 <= quality <= 100, "give 1 (worst) to 100, such as 10")
        self.quality = quality

    def prepare(self, images: Tensor) -> Tensor:
        """Return the images as they come back from the codec, which takes one at a time."""
        pixels = images.permute(0, 2, 3, 1).squeeze(3).cpu().numpy()
        return to_tensor(np.stack([self._through_codec(image) for image in pixels])).to(images.device)

    def _through_codec(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=self.quality)
        return np.asarray(Image.open(file))
