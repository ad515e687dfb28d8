"""Recipes: how people who know of no noise train, where that is not the paper's way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from salm_lightning.countermeasures.base import Countermeasure, TrainingStep
from salm_lightning.countermeasures.training import StrongAugment
from salm_lightning.metrics import classification_loss


class NoAugment(Countermeasure):
    """Leave out crop and flip."""

    def loss(self, step: TrainingStep) -> Tensor:
        """Return the loss on the images as they are."""
        return classification_loss(step.network(step.images), step.labels, step.task)


class MedMNISTRecipe(NoAugment):
    """Train as MedMNIST's own scripts do (Yang et al. 2023): Adam, a tenth of its rate at half and at three quarters, no augmentation.

    Their batch of 128 images is the default at 28 pixels here, too.
    """

    optimizer: ClassVar[Mapping[str, Any] | None] = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}}
    milestones = (0.5, 0.75)


class AdamWRecipe(StrongAugment):
    """Train as present-day scripts do: AdamW and strong augmentation in the manner of RandAugment.

    Args:
        strength: Factor on all ranges and chances of the augmentation, in (0, 1].
    """

    optimizer: ClassVar[Mapping[str, Any] | None] = {
        "class_path": "torch.optim.AdamW",
        "init_args": {"lr": 0.001, "weight_decay": 0.05},
    }

    def __init__(self, strength: float = 0.5) -> None:
        super().__init__(strength)
