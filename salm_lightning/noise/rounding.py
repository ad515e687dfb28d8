"""From noise to the bytes of a release, within the bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def release_images(images: Tensor, delta: Tensor, radius: float, norm: str = "linf") -> Tensor:
    """Apply noise and round to the bytes of the release.

    Args:
        images: Clean images in [0, 1], multiples of 1/255, ``[B, C, H, W]``.
        delta: Noise in [0, 1] units.
        radius: Bound in units of 1/255.
        norm: ``linf``: no byte differs by more than the whole part of ``radius``. ``l2``: the root mean square of an image's
            differences is at most ``radius``, if that of its noise is.

    Returns:
        uint8 ``[B, C, H, W]``.
    """
    clean = (images * 255).round()
    target = (images + delta).clamp(0, 1) * 255
    change = target.round() - clean
    largest = math.floor(radius)
    change = change.clamp(-largest, largest) if norm == "linf" else _within_l2(change, (target - clean).trunc(), radius)
    return (clean + change).to(torch.uint8)


def _within_l2(rounded: Tensor, truncated: Tensor, radius: float) -> Tensor:
    """Truncate changes of an image, in the order of its values, instead of rounding them, until their l2 norm is within the bound.

    Truncated changes are never larger than the noise, so that enough of them always suffice; rounding adds about 1/12 per value to the
    square sum, so that few are needed. All sums are exact.
    """
    squares = rounded.square().flatten(1)
    excess = squares.sum(dim=1, keepdim=True, dtype=torch.float64) - radius**2 * squares.shape[1]
    saved = (squares - truncated.square().flatten(1)).to(torch.int32)
    needed = saved.cumsum(dim=1, dtype=torch.int32) - saved < excess
    return torch.where(needed.view_as(rounded), truncated, rounded)
