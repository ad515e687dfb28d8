"""What puts a function of each image in its place: filters, scaling, and what takes out colours, levels or details (paper: Section 5.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.transforms.v2.functional import jpeg

from salm_lightning.countermeasures.base import ImageCountermeasure, to_bytes
from salm_lightning.data.base import DatasetInfo, Split
from salm_lightning.data.prepared import Preparation
from salm_lightning.errors import require

_ITERATIONS = 50
"""Of total-variation denoising; at the default weight a byte is then within one of its limit, in the mean."""
_LUMA = (19595, 38470, 7471)
"""ITU-R 601 weights of red, green and blue, in units of 2^-16, as Pillow has them."""


class Mean(ImageCountermeasure):
    """Mean of each 3x3 neighbourhood: ``cv2.blur(image, (3, 3))``; the border is mirrored without repeating its pixels."""

    def prepare(self, images: Tensor) -> Tensor:
        """Return the filtered images."""
        total = _neighbourhoods(images, "reflect").sum(dim=-1).int()
        return ((total + 4) // 9).to(torch.uint8)  # a ninth is never half-way between two bytes


class Median(ImageCountermeasure):
    """Median of each 3x3 neighbourhood: ``cv2.medianBlur(image, 3)``; the border is repeated."""

    def prepare(self, images: Tensor) -> Tensor:
        """Return the filtered images."""
        return _neighbourhoods(images, "replicate").median(dim=-1).values.to(torch.uint8)


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
        weights = torch.tensor([side, 256 - 2 * side, side], dtype=torch.float32, device=images.device)
        total = (_neighbourhoods(images, "reflect") * weights.outer(weights).flatten()).sum(dim=-1).int()
        return ((total + 2**15) >> 16).to(torch.uint8)


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


class CenterCrop(ImageCountermeasure):
    """Cut out the centre and scale it bilinearly to the images' size.

    The paper states neither how much it cuts off nor whether the test images are cropped; its Table 4 is about models "trained on
    different kinds of data", which leaves the test split as it is.

    Args:
        share: Side of the centre as a share of the image's, in (0, 1).
        on_test: Whether val and test images are cropped as well.
    """

    def __init__(self, share: float = 0.75, on_test: bool = False) -> None:
        require("share", share, 0 < share < 1, "give a share of the side between 0 and 1, such as 0.75")
        self.share = share
        self.on_test = on_test

    def prepare(self, images: Tensor) -> Tensor:
        """Return the scaled centres."""
        size = images.shape[-1]
        side = max(1, round(self.share * size))
        first = (size - side) // 2
        return _enlarge(images[..., first : first + side, first : first + side].float(), size)


class Resample(ImageCountermeasure):
    """Scale images down, each pixel the mean of those it covers, and up again bilinearly.

    Args:
        factor: How many times smaller the images become in between, more than 1.
    """

    def __init__(self, factor: float = 2.0) -> None:
        require("factor", factor, factor > 1, "give more than 1, such as 2 for half the side")
        self.factor = factor

    def prepare(self, images: Tensor) -> Tensor:
        """Return the images without the detail that is lost."""
        size = images.shape[-1]
        small = max(1, round(size / self.factor))
        return _enlarge(interpolate(images.float(), size=(small, small), mode="area"), size)


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
        """Return the images as they come back from the codec."""
        decoded: Tensor = jpeg(images.cpu(), self.quality)
        return decoded.to(images.device)


def _neighbourhoods(images: Tensor, border: str) -> Tensor:
    """Return each pixel's 3x3 neighbourhood, ``[B, C, H, W, 9]`` in float32, which sums weighted bytes exactly up to 2^24."""
    return pad(images.float(), (1, 1, 1, 1), mode=border).unfold(2, 3, 1).unfold(3, 3, 1).flatten(-2)


def _gradient(images: Tensor) -> Tensor:
    """Return the differences to the next row and column, ``[2, B, C, H, W]``; 0 at the last ones."""
    return torch.stack([pad(images.diff(dim=2), (0, 0, 0, 1)), pad(images.diff(dim=3), (0, 1))])


def _divergence(dual: Tensor) -> Tensor:
    """Return the divergence of a field, ``[B, C, H, W]``; minus it is the adjoint of :func:`_gradient`."""
    down, across = dual.unbind()
    return down + across - pad(down[:, :, :-1], (0, 0, 1, 0)) - pad(across[..., :-1], (1, 0))


def _enlarge(images: Tensor, size: int) -> Tensor:
    return to_bytes(interpolate(images, size=(size, size), mode="bilinear", align_corners=False))
