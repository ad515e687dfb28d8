"""Cheaper PGD passes, for ``benchmarks/short.yaml``: only where noise still has something to do, and with batch norm folded."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

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


class Folded(EM):
    """EM whose PGD steps see each batch norm folded into the convolution before it; the network is a ``Sequential`` of such pairs."""

    def improve(self, images: Tensor, delta: Tensor, objective: Objective, steps: int) -> Perturbation:
        """Take the steps."""
        return super().improve(images, delta, replace(objective, network=folded(objective.network)), steps)


def folded(network: nn.Module) -> nn.Module:
    """Return a copy whose batch norms are part of the convolutions before them; the network is in evaluation mode."""
    network = deepcopy(network)
    for layers in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for index, (first, second) in enumerate(pairwise(layers)):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                layers[index], layers[index + 1] = fuse_conv_bn_eval(first, second), nn.Identity()
    return network
