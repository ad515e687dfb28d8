"""The transform T of the paper: a random crop and a horizontal flip, drawn for each sample, differentiable, in one gather.

Generator and victims share it. A crop of a zero-padded image and a flip only move pixels, so the gradient is the opposite move:
backward is the same gather with mirrored offsets, without scatter or atomic additions, hence deterministic on every device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from salm_lightning.errors import ConfigurationError
from salm_lightning.noise.draws import fold, integers


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


class _CropFlip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(top, left, flip)
        ctx.padding = padding
        return _gather(images, top, left, flip, padding)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        top, left, flip = ctx.saved_tensors
        mirrored = 2 * ctx.padding
        grad = _gather(grad_outputs[0], mirrored - top, torch.where(flip, left, mirrored - left), flip, ctx.padding)
        return grad, None, None, None, None


class CropFlip:
    """Random crop with zero padding, then a random horizontal flip, per sample.

    Args:
        padding: Pixels of black border on each side; ``None`` takes 4 at 28 px and the same share (size / 8 up to 64 px, 28 at 224 px)
            at larger sizes, once the size is known.
        flip: Whether to mirror half of the samples.

    Raises:
        ConfigurationError: ``padding`` is negative.
    """

    def __init__(self, padding: int | None = None, flip: bool = True) -> None:
        if padding is not None and padding < 0:
            raise ConfigurationError(f"padding={padding} is negative; give 0 or more pixels, or leave it out for the default.")
        self.padding = padding
        self.flip = flip

    def __call__(self, images: Tensor, indices: Tensor, seed: int, purpose: str, *counters: int) -> Tensor:
        """Transform a batch.

        Args:
            images: ``[B, C, H, W]``.
            indices: Global sample indices ``[B]``; with the seed, the purpose and the counters they settle the draw.
            seed: The run's seed.
            purpose: Name of the stream of draws, such as ``"eot"``.
            *counters: Step, pass and draw numbers.

        Returns:
            The transformed batch, same shape and dtype; differentiable in ``images``.
        """
        padding = default_padding(images.shape[-1]) if self.padding is None else self.padding
        key = fold(seed, purpose, *counters)
        offsets = integers(key, indices, 3, 2 * padding + 1)
        flips = integers(key, indices, 3, 2)[:, 2].bool() if self.flip else torch.zeros_like(indices, dtype=torch.bool)
        transformed: Tensor = _CropFlip.apply(images, offsets[:, 0], offsets[:, 1], flips, padding)
        return transformed


def default_padding(size: int) -> int:
    """Return the crop's padding in pixels for an image size: the paper's 4 at 28 px and 28 at 224 px, an eighth between."""
    return 4 if size <= 32 else size // 8
