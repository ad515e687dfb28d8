"""What smooths images: OpenCV's filters of 3x3 pixels, byte for byte (paper: Section 5.3, Table 3), and total-variation denoising."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from salm_lightning.countermeasures.base import ImageCountermeasure, to_bytes
from salm_lightning.errors import require

_ITERATIONS = 50
"""At the default weight a byte is then within one of its limit, in the mean."""


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
    """

    def __init__(self, sigma: float = 0.8) -> None:
        require("sigma", sigma, sigma > 0, "give more than 0 pixels, such as 0.8")
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


class TotalVariation(ImageCountermeasure):
    """Total-variation denoising of each channel (Rudin, Osher and Fatemi 1992) by Chambolle's (2004) algorithm.

    ``skimage.restoration.denoise_tv_chambolle`` with as many iterations gives the same.

    Args:
        weight: Weight of smoothness against likeness to the image in [0, 1]; more is smoother.
    """

    def __init__(self, weight: float = 0.1) -> None:
        require("weight", weight, weight > 0, "give more than 0, such as 0.1")
        self.weight = weight

    def prepare(self, images: Tensor) -> Tensor:
        """Return the denoised images."""
        noisy = images.float() / 255
        dual = noisy.new_zeros(2, *noisy.shape)
        for _ in range(_ITERATIONS):
            gradient = _gradient(noisy - _divergence(dual))
            length = gradient.square().sum(dim=0).sqrt()
            dual = (dual - 0.25 * gradient) / (1 + 0.25 / self.weight * length)
        return to_bytes(255 * (noisy - _divergence(dual)))


def _gradient(images: Tensor) -> Tensor:
    """Return the differences to the next row and column, ``[2, B, C, H, W]``; 0 at the last ones."""
    result = images.new_zeros(2, *images.shape)
    result[0, :, :, :-1] = images.diff(dim=2)
    result[1, :, :, :, :-1] = images.diff(dim=3)
    return result


def _divergence(dual: Tensor) -> Tensor:
    """Return the divergence of a field, ``[B, C, H, W]``; minus it is the adjoint of :func:`_gradient`."""
    down, across = dual.unbind()
    result = down + across
    result[:, :, 1:] -= down[:, :, :-1]
    result[:, :, :, 1:] -= across[:, :, :, :-1]
    return result
