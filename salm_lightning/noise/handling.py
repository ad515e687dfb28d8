"""What images go through before a network sees them, so that noise can be made to last: grey, JPEG, another size; all differentiable."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

KERNELS = ("bilinear", "bicubic", "area")
"""Ways to scale images down, each over all the pixels that a new one covers."""
SHARES = (0.5, 0.75)
"""Sides to which images are scaled down, as shares of their own."""
_LUMA = (0.299, 0.587, 0.114)
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
"""Luma and the two chroma of red, green and blue (JFIF 1.02, page 3)."""
_LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
_CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99), (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)  # fmt: skip
"""Quantisation at quality 50 (ITU-T T.81, Tables K.1 and K.2)."""


def grey(images: Tensor) -> Tensor:
    """Put the luma of RGB images ``[B, 3, H, W]`` into all channels; grey ones stay as they are."""
    if images.shape[1] == 1:
        return images
    weights = images.new_tensor(_LUMA)[:, None, None]
    return (images * weights).sum(dim=1, keepdim=True).expand_as(images)


def resized(images: Tensor, share: float, kernel: str) -> Tensor:
    """Scale images ``[B, C, H, W]`` down to a share of their sides by one of ``KERNELS``, and bilinearly up again."""
    size = images.shape[-2:]
    small = [max(1, round(share * side)) for side in size]
    made = interpolate(images, small, mode=kernel, **({} if kernel == "area" else {"antialias": True, "align_corners": False}))
    return interpolate(made, size, mode="bilinear", align_corners=False)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Return images ``[B, C, H, W]`` in [0, 1] as baseline JPEG leaves them, colours at half the resolution, unrounded.

    In float32 whatever the precision around it. Forward, coefficients are rounded as a codec does. Backward, the derivative of rounding
    ``x`` is taken to be ``3 (x - round(x))^2``, that of Shin and Song (2017): a coefficient that lies near the middle of its step, where
    noise can change nothing, gets no gradient.
    """
    with torch.autocast(images.device.type, enabled=False):  # whose matrix products would round coefficients to eight bits
        return _jpeg(images.float() * 255, quality).to(images.dtype)


def _jpeg(levels: Tensor, quality: int) -> Tensor:
    """Return images in [0, 1] of images in levels 0 to 255."""
    height, width = levels.shape[-2:]
    levels = pad(levels, (0, -width % 16, 0, -height % 16), mode="replicate")
    if levels.shape[1] == 1:
        made = _coded(levels, _LUMA_TABLE, quality)
    else:
        planes = torch.einsum("pc,bchw->bphw", levels.new_tensor(_TO_YCC), levels)
        luma = _coded(planes[:, :1], _LUMA_TABLE, quality)
        chroma = _coded(interpolate(planes[:, 1:], scale_factor=0.5, mode="area") + 128, _CHROMA_TABLE, quality) - 128
        chroma = interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
        back = torch.linalg.inv(levels.new_tensor(_TO_YCC, dtype=torch.float64)).to(levels)
        made = torch.einsum("cp,bphw->bchw", back, torch.cat([luma, chroma], dim=1))
    return (made[..., :height, :width] / 255).clamp(0, 1)


def _coded(planes: Tensor, table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Quantise the cosine transform of each 8x8 block of planes ``[B, P, H, W]``, sides multiples of 8, in levels 0 to 255."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality  # libjpeg's
    steps = ((planes.new_tensor(table) * scale + 50) / 100).floor().clamp(1, 255)
    basis = _cosines(planes)
    batch, number, height, width = planes.shape
    blocks = (planes - 128).reshape(batch, number, height // 8, 8, width // 8, 8).transpose(3, 4)
    values = basis @ blocks @ basis.T / steps
    whole = values.detach().round()
    rest = (values - whole) ** 3
    blocks = basis.T @ ((whole + rest - rest.detach()) * steps) @ basis
    made: Tensor = blocks.transpose(3, 4).reshape(planes.shape) + 128
    return made


def _cosines(like: Tensor) -> Tensor:
    """Return the orthonormal cosine transform of eight values, ``[8, 8]``."""
    places = torch.arange(8, dtype=torch.float64)
    basis = torch.cos(torch.pi * (2 * places + 1) * places[:, None] / 16) / 2
    basis[0] /= 2**0.5
    return basis.to(like)
