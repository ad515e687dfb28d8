"""Regularisers that show a network parts of two images, or only a part of one."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from salm_lightning.countermeasures.base import Countermeasure, TrainingStep
from salm_lightning.data.base import Task
from salm_lightning.errors import require
from salm_lightning.metrics import classification_loss
from salm_lightning.noise.draws import fold, integers, uniform

GREY = 0.5
"""What a hole is filled with: zero once images are normalised."""


class Cutout(Countermeasure):
    """Hide a square at a random place of each augmented image (DeVries and Taylor 2017); it may reach over the border.

    Args:
        share: Side of the square as a share of the image's, in (0, 1].
    """

    def __init__(self, share: float = 0.5) -> None:
        require("share", share, 0 < share <= 1, "give a share of the side above 0 up to 1, such as 0.5")
        self.share = share

    def loss(self, step: TrainingStep) -> Tensor:
        """Return the loss on images with holes."""
        images = step.augmented()
        side = torch.full((len(images), 1), max(1, round(self.share * images.shape[-1])), device=images.device)
        hole = random_boxes(images, side, fold(step.seed, "cutout", step.number), step.indices)
        return classification_loss(step.network(images.masked_fill(hole, GREY)), step.labels, step.task)


class _Mixture(Countermeasure, ABC):
    """Mix each image with another one of its batch and learn both labels by their shares, drawn uniformly for each image."""

    def loss(self, step: TrainingStep) -> Tensor:
        """Return the loss on mixed images, each label weighted by the share of its image."""
        images, partners = step.augmented(), self._partners(step)
        share = uniform(self._key(step, "share"), step.indices, 1)[:, 0]
        mixed, share = self._mix(images, images[partners], share, step)
        logits = step.network(mixed)
        own, other = (
            classification_loss(logits, labels, step.task, reduction="none") for labels in (step.labels, step.labels[partners])
        )
        loss = (share * own + (1 - share) * other).mean()
        return loss / step.labels.shape[1] if step.task == Task.MULTI_LABEL else loss

    @abstractmethod
    def _mix(self, images: Tensor, others: Tensor, share: Tensor, step: TrainingStep) -> tuple[Tensor, Tensor]:
        """Return mixed images and the share ``[B]`` of the first ones in them."""

    def _partners(self, step: TrainingStep) -> Tensor:
        """Return the position of each image's partner: the next in a random circle through the batch, never itself if there are two."""
        circle = uniform(self._key(step, "partner"), step.indices, 1)[:, 0].argsort(stable=True)
        return torch.empty_like(circle).scatter_(0, circle, circle.roll(-1))

    def _key(self, step: TrainingStep, what: str) -> int:
        return fold(step.seed, f"{self.name} {what}", step.number)


class Mixup(_Mixture):
    """Blend each image with another one (Zhang et al. 2018); shares are uniform, which is their Beta(1, 1)."""

    def _mix(self, images: Tensor, others: Tensor, share: Tensor, step: TrainingStep) -> tuple[Tensor, Tensor]:
        weight = share[:, None, None, None]
        return weight * images + (1 - weight) * others, share


class CutMix(_Mixture):
    """Paste a rectangle of another image into each one (Yun et al. 2019); its area is uniform before the border cuts it."""

    def _mix(self, images: Tensor, others: Tensor, share: Tensor, step: TrainingStep) -> tuple[Tensor, Tensor]:
        side = ((1 - share).sqrt() * images.shape[-1]).long()[:, None]
        box = random_boxes(images, side, self._key(step, "box"), step.indices)
        return torch.where(box, others, images), 1 - box.float().mean(dim=(1, 2, 3))


def random_boxes(images: Tensor, side: Tensor, key: int, indices: Tensor) -> Tensor:
    """Return squares of ``side`` pixels, int64 ``[B, 1]``, around random pixels, cut by the border: bool ``[B, 1, H, W]``."""
    height, width = images.shape[-2:]
    across = _span(integers(fold(key, "column"), indices, 1, width), side, width)
    down = _span(integers(fold(key, "row"), indices, 1, height), side, height)
    return (down[:, :, None] & across[:, None, :])[:, None]


def _span(centre: Tensor, length: Tensor, size: int) -> Tensor:
    """Return which of ``size`` positions lie within ``length`` around a centre, bool ``[B, size]``."""
    first = centre - length // 2
    positions = torch.arange(size, device=centre.device)
    return (positions >= first) & (positions < first + length)
