"""A tiny strided CNN: a source model that learns the noise before it learns the images (docs/method.md)."""

from __future__ import annotations

from torch import Tensor, nn


class CNN(nn.Module):
    """Convolutions, each with batch norm and ReLU, of which the first is 5x5 and the others 3x3; a 2x2 average pool; a linear layer.

    The defaults have 26 thousand weights for 28 x 28 pixels and 8 classes. The run's width factor does not change it.

    Args:
        num_classes: Length of the logits.
        channels: 1 (grey) or 3 (RGB).
        features: Channels of the first convolution; each further one has twice as many as the one before.
        depth: Number of convolutions.
        stride: Stride of each convolution.
    """

    def __init__(self, num_classes: int, channels: int, features: int = 16, depth: int = 3, stride: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(depth):
            kernel, made = 5 if index == 0 else 3, features * 2**index
            layers += [nn.Conv2d(channels, made, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(made), nn.ReLU()]
            channels = made
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of normalised images ``[B, channels, H, W]``."""
        logits: Tensor = self.layers(images)
        return logits
