"""Batch norm's running statistics under several ranks: everyone uses those of rank 0."""

from __future__ import annotations

import torch
from torch import nn


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
