"""torchvision's networks with a stem for small images, any number of channels, and a width factor; a linear model; what wraps them all.

torchvision's own stems shrink the image fourfold before the first block, which leaves 7x7 of 28x28 (and stock VGG-11 and DenseNet-121
crash there); the small stems keep the resolution, as is usual for CIFAR-sized images.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init
from torchvision.models import VisionTransformer
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vgg import VGG, cfgs, make_layers

from salm_lightning.models.cnn import CNN

SMALL_IMAGE = 64
"""Largest image, in pixels, that gets a stem without early downsampling."""


def _scaled(channels: int, width: float) -> int:
    """Return a layer's width: a multiple of 8, as vector units like it.

    Narrower is not only slow: with 4 channels in channels-last memory, torch 2.14's convolutions corrupt the heap on some CPUs.
    """
    return 8 * max(1, round(channels * width / 8))


def _first_conv(channels: int, features: int, small: bool) -> nn.Conv2d:
    kernel, stride = (3, 1) if small else (7, 2)
    conv = nn.Conv2d(channels, features, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class _SampledConv(nn.Conv2d):
    """A strided 1x1 convolution that takes every other pixel before and not while it convolves.

    The results are the same. In channels-last memory, torch 2.14's strided one writes out of bounds in its backward pass on CPUs with
    AVX-512 when its channels do not fill the vector units, which take 16 of them; seen with 8.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return what the strided convolution makes of images ``[B, C, H, W]``."""
        return functional.conv2d(images[..., :: self.stride[0], :: self.stride[1]], self.weight)


class _ScaledResNet(ResNet):  # type: ignore[misc]
    """torchvision's ResNet with every layer's width multiplied; its constructor has the widths 64 to 512 written in."""

    def __init__(
        self, block: type[BasicBlock | Bottleneck], layers: list[int], num_classes: int, channels: int, size: int, width: float
    ) -> None:
        self._width = width
        # At SGD's usual rate of 0.1 the deep ResNet otherwise diverges in its first steps and may stay there; the shallow one does not.
        super().__init__(block, layers, num_classes, zero_init_residual=block is Bottleneck)
        stem, small = _scaled(64, width), size <= SMALL_IMAGE
        self.conv1 = _first_conv(channels, stem, small)
        self.bn1 = nn.BatchNorm2d(stem)
        self.fc = nn.Linear(_scaled(512, width) * block.expansion, num_classes)
        if small:
            self.maxpool = nn.Identity()

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        if planes == 64:  # the first stage, which takes the stem's output
            self.inplanes = _scaled(64, self._width)
        layer: nn.Sequential = super()._make_layer(block, _scaled(planes, self._width), *args, **kwargs)
        shortcut: Any = layer[0].downsample
        if shortcut is not None and shortcut[0].in_channels % 16:
            conv = shortcut[0]  # whose weights are drawn later
            shortcut[0] = skip_init(  # type: ignore[no-untyped-call]
                _SampledConv, conv.in_channels, conv.out_channels, 1, stride=conv.stride, bias=False
            )
        return layer


resnet18 = partial(_ScaledResNet, BasicBlock, [2, 2, 2, 2])
"""Builds ResNet-18 (He et al. 2016)."""
resnet50 = partial(_ScaledResNet, Bottleneck, [3, 4, 6, 3])
"""Builds ResNet-50 (He et al. 2016); its residual branches start at zero (Goyal et al. 2017)."""


class _ScaledVGG(VGG):  # type: ignore[misc]
    """torchvision's VGG without its constructor, which draws 120 million weights for a head that small images drop: seconds."""

    def __init__(self, num_classes: int, channels: int, small: bool, width: float) -> None:
        nn.Module.__init__(self)
        layers = [layer if isinstance(layer, str) else _scaled(layer, width) for layer in cfgs["A"]]
        features = _scaled(512, width)
        self.features = make_layers(layers, batch_norm=True)
        self.features[0] = nn.Conv2d(channels, _scaled(64, width), kernel_size=3, padding=1)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1) if small else (7, 7))
        head: list[nn.Module] = []
        for inputs in () if small else (features * 7 * 7, 4096):
            head += [nn.Linear(inputs, 4096), nn.ReLU(True), nn.Dropout()]
        self.classifier = nn.Sequential(*head, nn.Linear(features if small else 4096, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)


def vgg11(num_classes: int, channels: int, size: int, width: float) -> nn.Module:
    """Build VGG-11 with batch norm (Simonyan and Zisserman 2015); small images get global pooling and one linear layer as head."""
    return _ScaledVGG(num_classes, channels, size <= SMALL_IMAGE, width)


def densenet121(num_classes: int, channels: int, size: int, width: float) -> nn.Module:
    """Build DenseNet-121 (Huang et al. 2017)."""
    stem, small = _scaled(64, width), size <= SMALL_IMAGE
    network: Any = DenseNet(
        growth_rate=_scaled(32, width), block_config=(6, 12, 24, 16), num_init_features=stem, num_classes=num_classes
    )
    network.features.conv0 = _first_conv(channels, stem, small)
    if small:
        network.features.pool0 = nn.Identity()
    return cast(nn.Module, network)


def vit(num_classes: int, channels: int, size: int, width: float) -> nn.Module:
    """Build a small vision transformer (Dosovitskiy et al. 2021): 6 blocks of 4 heads, about 7 x 7 patches, without dropout."""
    hidden, patch = _scaled(192, width), patch_of(size)
    network = VisionTransformer(
        size, patch, num_layers=6, num_heads=4, hidden_dim=hidden, mlp_dim=4 * hidden, num_classes=num_classes
    )
    network.conv_proj = conv = nn.Conv2d(channels, hidden, kernel_size=patch, stride=patch)
    nn.init.trunc_normal_(conv.weight, std=(channels * patch**2) ** -0.5)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    network.heads.head.reset_parameters()  # torchvision's are zero, and so would be the first gradients of the input
    return cast(nn.Module, network)


def patch_of(size: int) -> int:
    """Return the side of a transformer's patches in pixels: the largest divisor of the image's side of at most a seventh of it."""
    return next(side for side in range(max(1, size // 7), 0, -1) if size % side == 0)


def cnn(num_classes: int, channels: int, size: int, width: float) -> nn.Module:
    """Build :class:`~salm_lightning.models.cnn.CNN` as it is by default; it has no width."""
    return CNN(num_classes, channels)


def linear(num_classes: int, channels: int, size: int, width: float) -> nn.Module:
    """Build a linear model on the pixels; it has no width."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, num_classes))


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
            images = functional.pad(images, (before, after, before, after))
        if self.as_rgb:
            images = images.expand(-1, 3, -1, -1)
        images = images.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network((images - 0.5) * 4.0)
        return logits
