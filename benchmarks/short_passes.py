"""PGD only where noise still has something to do, for ``benchmarks/short.yaml``."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from salm_lightning.noise.methods import EM, Perturbation
from salm_lightning.noise.pgd import Objective, descend


class WhereSteep(EM):
    """EM whose first step of a visit is on all images, and whose others are on those with the largest gradients.

    A gradient of the cross-entropy is as large as the network is far from the label, and so no further pass is needed to rank images.

    Args:
        share: How many of a batch's images take the other steps.
        radius: As EM's.
        step_size: As EM's.
    """

    def __init__(self, share: float = 0.5, radius: float = 8.0, step_size: float = 1.6) -> None:
        super().__init__(radius=radius, step_size=step_size)
        self.share = share

    def improve(self, images: Tensor, delta: Tensor, objective: Objective, steps: int) -> Perturbation:
        """Take the steps."""
        gradient = objective(delta, 0)
        delta = descend(delta, gradient, images, self.step_size / 255, self.radius_unit)
        rows = gradient.abs().sum(dim=(1, 2, 3)).topk(round(self.share * len(images))).indices
        samples = objective.samples
        some = replace(samples, images=images[rows], labels=samples.labels[rows], indices=samples.indices[rows])
        steep, moved = replace(objective, samples=some), delta[rows]
        for step in range(1, steps):
            moved = descend(moved, steep(moved, step), some.images, self.step_size / 255, self.radius_unit)
        return Perturbation(delta.index_copy(0, rows, moved), torch.ones_like(delta[:, :1]))
