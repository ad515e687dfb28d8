"""Dropout that a resumed run repeats: its generator is seeded from the step instead of carrying state."""

from __future__ import annotations

import torch
from torch import nn

from salm_lightning.noise.draws import fold


def seed_dropout(network: nn.Module, seed: int, step: int, rank: int) -> None:
    """Seed torch's generators for one training step, if the network has dropout (torchvision's VGG at 224 px has)."""
    if any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in network.modules()):
        torch.manual_seed(fold(seed, "dropout", step, rank) >> 1)
