"""The wrapper of every network, which pads and normalises on the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class Classifier(nn.Module):
    """A network with its input conventions inside.

    As input, images ``[B, C, H, W]`` in [0, 1]; as output, logits ``[B, num_classes]``. Images smaller than ``min_size`` are padded with
    black (VGG-11 halves five times and needs 32 px; paper: Appendix B.2), then normalised as ``(x - 0.5) / 0.25``.

    Args:
        network: Takes normalised images.
        min_size: Smallest height and width that the network takes, in pixels.
        as_rgb: Whether a grey image is shown to the network in three equal channels.
    """

    def __init__(self, network: nn.Module, min_size: int = 0, as_rgb: bool = False) -> None:
        super().__init__()
        # Convolutions over NHWC memory are about twice as fast on CPUs and tensor cores.
        self.network = network.to(memory_format=torch.channels_last)
        self.min_size = min_size
        self.as_rgb = as_rgb

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` for images ``[B, C, H, W]`` in [0, 1]."""
        missing = self.min_size - images.shape[-1]
        if missing > 0:
            before, after = missing // 2, missing - missing // 2
            images = pad(images, (before, after, before, after))
        if self.as_rgb:
            images = images.expand(-1, 3, -1, -1)
        images = images.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network((images - 0.5) * 4.0)
        return logits
