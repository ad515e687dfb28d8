"""What noise and countermeasures know of a batch."""

from __future__ import annotations

from dataclasses import dataclass

from salm_lightning.data.base import Task
from salm_lightning.tensors import Tensor


@dataclass(frozen=True)
class Samples:
    """A batch, and what it is part of.

    Attributes:
        images: In [0, 1] and without augmentation, ``[B, C, H, W]``.
        labels: int64 ``[B]``, or for multi-label tasks float32 of 0 and 1 ``[B, L]``.
        indices: Global sample indices ``[B]``; draws keyed by them depend neither on the batch nor on its order.
        task: What is predicted.
        num_classes: Classes or labels.
        seed: The run's seed.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    task: Task
    num_classes: int
    seed: int
