"""Low-pass filters of 3x3 pixels (paper: Section 5.3, Table 3), byte for byte those of OpenCV."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from salm_lightning.countermeasures.base import ImageCountermeasure
from salm_lightning.errors import ConfigurationError


class Mean(ImageCountermeasure):
    """Mean of each 3x3 neighbourhood: ``cv2.blur(image, (3, 3))``; the border is mirrored without repeating its pixels."""

    def prepare(self, images: Tensor) -> Tensor:
        """Return the filtered images."""
        total = sum(_neighbours(images.int(), _mirror), torch.zeros((), dtype=torch.int32))
        return ((total + 4) // 9).to(torch.uint8)  # a ninth is never half-way between two bytes


class Median(ImageCountermeasure):
    """Median of each 3x3 neighbourhood: ``cv2.medianBlur(image, 3)``; the border is repeated."""

    def prepare(self, images: Tensor) -> Tensor:
        """Return the filtered images."""
        return torch.stack(list(_neighbours(images, _repeat))).median(dim=0).values


class Gaussian(ImageCountermeasure):
    """Weighted mean of each 3x3 neighbourhood: ``cv2.GaussianBlur(image, (3, 3), sigma)``; the border is mirrored.

    OpenCV rounds the weights of a row to multiples of 1/256, and the result once.

    Args:
        sigma: Standard deviation in pixels; 0.8 is OpenCV's rule for three pixels.

    Raises:
        ConfigurationError: ``sigma`` is not positive.
    """

    def __init__(self, sigma: float = 0.8) -> None:
        if not sigma > 0:
            raise ConfigurationError(f"sigma={sigma} is out of range; give more than 0 pixels, such as 0.8.")
        self.sigma = sigma

    def prepare(self, images: Tensor) -> Tensor:
        """Return the filtered images."""
        side = math.exp(-1 / (2 * self.sigma**2))
        side = round(256 * side / (1 + 2 * side))
        weights = (side, 256 - 2 * side, side)
        total = torch.zeros((), dtype=torch.int32)
        for number, pixels in enumerate(_neighbours(images.int(), _mirror)):
            total = total + weights[number // 3] * weights[number % 3] * pixels
        return ((total + 2**15) >> 16).to(torch.uint8)


def _neighbours(images: Tensor, border: Callable[[Tensor, int], Tensor]) -> Iterator[Tensor]:
    """Yield the nine images whose pixels are the neighbours of each pixel, row by row."""
    height, width = images.shape[-2:]
    rows = [border(torch.arange(height, device=images.device) + shift, height) for shift in (-1, 0, 1)]
    columns = [border(torch.arange(width, device=images.device) + shift, width) for shift in (-1, 0, 1)]
    for row in rows:
        for column in columns:
            yield images[..., row[:, None], column]


def _mirror(positions: Tensor, size: int) -> Tensor:
    return size - 1 - (size - 1 - positions.abs()).abs()


def _repeat(positions: Tensor, size: int) -> Tensor:
    return positions.clamp(0, size - 1)
