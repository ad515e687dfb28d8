"""Source models beside those of the package, for ``benchmarks/sources.yaml``."""

from __future__ import annotations

from torch import Tensor, nn

from salm_lightning.models.backbones import resnet18
from salm_lightning.models.cnn import CNN


class MLP(nn.Sequential):
    """A multilayer perceptron on the pixels, with batch norm.

    Args:
        num_classes: Length of the logits.
        channels: 1 (grey) or 3 (RGB).
        image_size: Height and width in pixels.
        hidden: Units of each of the two hidden layers.
    """

    def __init__(self, num_classes: int, channels: int, image_size: int, hidden: int = 128) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs in (channels * image_size**2, hidden):
            layers += [nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
        super().__init__(*layers, nn.Linear(hidden, num_classes))


class StridedResNet18(nn.Module):
    """A ResNet-18 whose first convolution has stride 2: a quarter of the work of the stem for small images."""

    def __init__(self, num_classes: int, channels: int, image_size: int, width: float) -> None:
        super().__init__()
        self.network = resnet18(num_classes, channels, image_size, width)
        self.network.conv1.stride = (2, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]``."""
        logits: Tensor = self.network(images)
        return logits


class Turns(nn.Module):
    """Networks taken in turn: each PGD step goes against the next one, each source step trains the next one.

    Args:
        models: The networks.
    """

    def __init__(self, *models: nn.Module) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self._turns = {True: 0, False: 0}

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the next one, ``[B, num_classes]``."""
        turn = self._turns[self.training]
        self._turns[self.training] = turn + 1
        logits: Tensor = self.models[turn % len(self.models)](images)
        return logits


class InTurn(Turns):
    """Tiny CNNs in turn.

    Args:
        num_classes: Length of the logits.
        channels: 1 (grey) or 3 (RGB).
        features: Channels of the first convolution of each.
    """

    def __init__(self, num_classes: int, channels: int, features: tuple[int, ...] = (8, 16, 24)) -> None:
        super().__init__(*(CNN(num_classes, channels, count, depth=2 + index % 2) for index, count in enumerate(features)))
