"""A window of each sample's image, mirrored or not, cut in one gather whose backward pass is such a gather too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


def _gather(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Cut each image's window out of its zero-padded version; the result is in channels-last memory."""
    batch, channels, height, width = images.shape
    padded = pad(images, (padding, padding, padding, padding)).permute(0, 2, 3, 1).reshape(-1, channels)
    padded_height, padded_width = height + 2 * padding, width + 2 * padding
    columns = torch.arange(width, device=images.device)
    columns = torch.where(flip[:, None], width - 1 - columns, columns) + left[:, None]
    rows = torch.arange(height, device=images.device) + top[:, None]
    sample = torch.arange(batch, device=images.device)[:, None]
    flat = ((sample * padded_height + rows) * padded_width)[:, :, None] + columns[:, None, :]
    windows = padded.index_select(0, flat.reshape(-1))
    return windows.view(batch, height, width, channels).permute(0, 3, 1, 2)


class CutWindows(torch.autograd.Function):
    """Takes images ``[B, C, H, W]``, each one's top, left and flip ``[B]``, and the padding; only pixels move, hence no sums."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
        """Cut the windows."""
        ctx.save_for_backward(top, left, flip)
        ctx.padding = padding
        return _gather(images, top, left, flip, padding)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Put the gradient's pixels back."""
        top, left, flip = ctx.saved_tensors
        mirrored = 2 * ctx.padding
        grad = _gather(grad_outputs[0], mirrored - top, torch.where(flip, left, mirrored - left), flip, ctx.padding)
        return grad, None, None, None, None
