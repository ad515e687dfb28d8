"""Dropout that a resumed run repeats: its generator is seeded from the step instead of carrying state."""

from __future__ import annotations

import torch
from torch import nn

from salm_lightning.noise.draws import fold


def has_dropout(network: nn.Module) -> bool:
    """Return whether a network drops anything, as torchvision's VGG at 224 px does; it looks at every layer, so ask once."""
    return any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in network.modules())


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators for one training step."""
    torch.manual_seed(fold(seed, "dropout", step, rank) >> 1)
