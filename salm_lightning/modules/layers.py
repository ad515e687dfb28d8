"""Layers with a state of their own: batch norm, shared between ranks, and dropout, which a resumed run repeats."""

from __future__ import annotations

import torch
from torch import nn

from salm_lightning.noise.draws import fold


@torch.no_grad()
def share_statistics(network: nn.Module) -> None:
    """Give every rank the float buffers of rank 0; all ranks have to call it together, alone it does nothing.

    A checkpoint holds the statistics of rank 0 alone. Ranks that kept their own would go on differently after a resume, and would
    validate other models than it holds. DDP shares buffers by itself before each training forward, but not under manual
    optimisation, and never after the last step.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()) or torch.distributed.get_world_size() == 1:
        return
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if not buffers:
        return
    together = torch.cat([buffer.flatten() for buffer in buffers])
    torch.distributed.broadcast(together, src=0)
    for buffer, shared in zip(buffers, together.split([buffer.numel() for buffer in buffers]), strict=True):  # type: ignore[no-untyped-call]
        buffer.copy_(shared.view_as(buffer))


def has_dropout(network: nn.Module) -> bool:
    """Return whether a network drops anything, as torchvision's VGG at 224 px does; it looks at every layer, so ask once."""
    return any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in network.modules())


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators for one training step, instead of carrying their state."""
    torch.manual_seed(fold(seed, "dropout", step, rank) >> 1)
