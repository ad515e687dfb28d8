"""The interface of a countermeasure: how images are prepared before training, and what a training step minimises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from salm_lightning.data.base import DatasetInfo, Split
from salm_lightning.data.prepared import Preparation
from salm_lightning.metrics import classification_loss
from salm_lightning.noise.methods.base import Described
from salm_lightning.noise.pgd import Samples
from salm_lightning.noise.transforms import CropFlip


@dataclass(frozen=True)
class TrainingStep(Samples):
    """What a victim's training step is made of.

    Attributes:
        network: The victim in training mode; takes images in [0, 1], returns logits.
        transform: The ordinary augmentation, crop and flip.
        number: Training steps taken before, which key the draws too.
    """

    network: nn.Module
    transform: CropFlip
    number: int

    def augmented(self, *counters: int) -> Tensor:
        """Return the images under crop and flip; other counters draw anew."""
        return self.transform(self.images, self.indices, self.seed, "victim", self.number, *counters)


class Countermeasure(Described):
    """Something that a user does in the hope of learning from protected images; as it stands, nothing.

    A countermeasure is stateless, so that one object serves any number of victims. It prepares images once, before training, or
    changes what a training step minimises, or both. An argument out of range is a ``ConfigurationError``.

    Attributes:
        on_test: Whether the images that the finished model meets (val and test) are prepared as well, as they would be by a user whose
            model expects that; else they stay untouched.
        optimizer: Class and arguments of what trains a victim where the architecture has no optimiser of its own; ``None`` is the
            paper's SGD.
        milestones: Shares of the training after which its rate falls to a tenth; by default the paper's.
    """

    on_test: bool = False
    optimizer: ClassVar[Mapping[str, Any] | None] = None
    milestones: ClassVar[tuple[float, ...]] = (0.4, 0.8)

    def preparation(self, train: Split, info: DatasetInfo, seed: int) -> Preparation | None:
        """Return what is done to images before training, or ``None``; it may learn from the training split, with the victim's seed."""
        return None

    def initialise(self, network: nn.Module) -> None:
        """Give a victim's network its first weights, in place, before training; by default it keeps its random ones."""

    def loss(self, step: TrainingStep) -> Tensor:
        """Return what a training step minimises: by default the loss on augmented images."""
        return classification_loss(step.network(step.augmented()), step.labels, step.task)


class ImageCountermeasure(Countermeasure, ABC):
    """A countermeasure that puts a function of each image in its place."""

    def preparation(self, train: Split, info: DatasetInfo, seed: int) -> Preparation | None:
        """Return the function, which needs nothing but the images."""
        return lambda images, indices: self.prepare(images)

    @abstractmethod
    def prepare(self, images: Tensor) -> Tensor:
        """Return what takes the images' place: uint8 ``[B, C, H, W]``, as they are."""


def to_bytes(values: Tensor) -> Tensor:
    """Round values in units of grey levels to uint8, clipped to 0..255."""
    return values.round().clamp(0, 255).to(torch.uint8)
