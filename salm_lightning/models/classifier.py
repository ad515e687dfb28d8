"""Classifiers by name: torchvision's networks behind one wrapper that pads and normalises on the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from salm_lightning.errors import ConfigurationError, look_up
from salm_lightning.models.backbones import densenet121, linear, resnet18, resnet50, vgg11, vit

ARCHITECTURES: dict[str, Callable[[int, int, int, float], nn.Module]] = {
    "vgg11": vgg11,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "densenet121": densenet121,
    "vit": vit,
    "linear": linear,
}
"""Builders by name; each takes the number of classes, channels, the image's side in pixels, and the width factor."""


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


def build_classifier(
    arch: str,
    num_classes: int,
    channels: int = 3,
    image_size: int = 28,
    width: float = 1.0,
    seed: int = 0,
    as_rgb: bool = False,
) -> Classifier:
    """Build a classifier with fresh weights.

    Args:
        arch: One of :data:`ARCHITECTURES`.
        num_classes: Length of the logits.
        channels: 1 (grey) or 3 (RGB).
        image_size: Height and width in pixels; up to 64 px the stem keeps the resolution, above it is torchvision's own.
        width: Factor on the number of channels of every layer; 0.25 makes a ResNet-18 that trains in minutes on a CPU.
        seed: Of the weights; torch's global generator is left as it was.
        as_rgb: Whether grey images go through a network of three channels, which see the same: noise on the one channel is then tied
            over the three. Images with colours stay as they are.

    Raises:
        ConfigurationError: An argument is unknown or out of range.
    """
    build = ARCHITECTURES[look_up("arch", arch, ARCHITECTURES)]
    if width <= 0:
        raise ConfigurationError(f"width={width} is out of range; give a factor above 0, such as 0.25 or 1.")
    if num_classes < 1:
        raise ConfigurationError(f"num_classes={num_classes} is out of range; give 1 or more.")
    grey_as_rgb = as_rgb and channels == 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(num_classes, 3 if grey_as_rgb else channels, image_size, width)
    return Classifier(network, min_size=32 if arch == "vgg11" else 0, as_rgb=grey_as_rgb)
