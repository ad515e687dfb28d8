"""Ways to keep the number of changed pixels (paper: Eq. 3, ``l0 <= m``) that hard thresholding, now ``mask: strict``, was compared with.

They are methods for ``benchmarks/strict_screen.yaml``::

    PYTHONPATH=benchmarks salm-cli sweep --config benchmarks/strict_screen.yaml

All start from zero, so that a pixel is in an image's support exactly if its noise is not zero, and no other state is needed. A pixel
whose noise has come back to zero in all channels is thereby given up, and may be chosen again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from salm_lightning.noise.masks import masked_count
from salm_lightning.noise.methods import SALM, Perturbation
from salm_lightning.noise.pgd import Objective, descend


def _strength(values: Tensor) -> Tensor:
    """Return one number per pixel, ``[B, 1, H, W]``: the sum of absolute values over the channels."""
    return values.abs().sum(dim=1, keepdim=True)


class Sparse(SALM):
    """SALM from a zero start that never changes more than K percent of an image's pixels."""

    def __init__(self, percent: float = 10.0, radius: float = 8.0, step_size: float = 4.0) -> None:
        super().__init__(percent=percent, radius=radius, step_size=step_size, start="zero")

    def max_changed_pixels(self, pixels: int, steps: int) -> int | None:
        """Return the count that is never exceeded."""
        return masked_count(self.percent, pixels)


class Accumulate(Sparse):
    """Add the pixels with the largest gradient to an image's mask, a share of it with every step, until it is full; then it is frozen.

    Args:
        percent: K.
        radius: rho_u in units of 1/255.
        step_size: alpha_u in units of 1/255.
        pace: Share of the mask that a step may add; 1 chooses all of it at the first step.
        drop: Share of the mask that is given up at each visit, where the gradient is smallest, to be chosen anew; 0 freezes it.
    """

    def __init__(
        self, percent: float = 10.0, radius: float = 8.0, step_size: float = 4.0, pace: float = 0.1, drop: float = 0.0
    ) -> None:
        super().__init__(percent, radius, step_size)
        self.pace = pace
        self.drop = drop

    def improve(self, images: Tensor, delta: Tensor, objective: Objective, steps: int) -> Perturbation:
        """Take ``steps`` steps within the mask, which is filled on the way."""
        most = masked_count(self.percent, images[0, 0].numel())
        mask = torch.zeros_like(delta[:, :1])
        for step in range(steps):
            gradient = objective(delta, step)
            slope = _strength(gradient)
            support = (delta != 0).any(dim=1, keepdim=True)
            if step == 0 and self.drop:
                kept = (support.sum(dim=(1, 2, 3)) * (1 - self.drop)).ceil().long()
                support = _largest(slope.masked_fill(~support, -1.0), kept)
                delta = delta * support
            room = support.sum(dim=(1, 2, 3)) + math.ceil(self.pace * most)
            chosen = _largest(slope.masked_fill(support, torch.inf), room.clamp_max(most))
            mask = chosen.to(delta.dtype)
            delta = descend(delta, gradient * mask, images, self.step_size / 255, self.radius_unit)
        return Perturbation(delta, mask)


def _largest(scores: Tensor, counts: Tensor) -> Tensor:
    """Return where each sample's ``counts`` largest scores are, boolean in the shape of ``scores`` ``[B, ...]``."""
    order = scores.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return (ranks < counts[:, None]).view_as(scores)
