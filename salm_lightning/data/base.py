"""What every DataModule of this package offers: a description of the data, the raw splits, and batches that carry indices."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from salm_lightning.checked import Count
from salm_lightning.data.mapped import MappedRows
from salm_lightning.tensors import Tensor

SPLITS = ("train", "val", "test")
ARRAYS = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))
"""The arrays of MedMNIST's layout, in the order in which they are written."""


class Task(StrEnum):
    """What is predicted; it settles the loss, the labels' shape and the metrics."""

    MULTI_CLASS = "multi-class"
    BINARY = "binary-class"
    ORDINAL = "ordinal-regression"
    MULTI_LABEL = "multi-label"


class Batch(NamedTuple):
    """A mini-batch.

    Attributes:
        images: ``[B, C, H, W]``: uint8 as a loader yields it; float32 in [0, 1] once the DataModule's
            ``on_after_batch_transfer`` has run, which is what every LightningModule sees.
        labels: int64 class indices ``[B]``, or for multi-label tasks float32 of 0 and 1 ``[B, num_classes]``.
        indices: Position of each image in its split, int64 ``[B]``, the same on any number of ranks.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset without opening its file.

    Attributes:
        name: Short lower-case name, such as ``"pathmnist"``.
        task: What is predicted.
        class_names: One name per class or label.
        channels: 1 (grey) or 3 (RGB).
        size: Height and width in pixels.
    """

    name: str
    task: Task
    class_names: tuple[str, ...]
    channels: Count
    size: Count

    @property
    def num_classes(self) -> int:
        """Number of classes, or of labels for a multi-label task."""
        return len(self.class_names)


ANY_FINDING = "any finding"
"""What a description records under ``labels`` where several labels per image were made one: any of them against none."""


def any_finding(labels: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return ``[N, 1]`` labels of the same type that say whether an image has any of its labels ``[N, L]``."""
    return labels.any(axis=1, keepdims=True).astype(labels.dtype)


@dataclass(frozen=True)
class Split:
    """One split in MedMNIST's layout.

    Attributes:
        images: uint8 ``[N, H, W]`` (grey) or ``[N, H, W, 3]``; may be a read-only memory map, or some of its rows.
        labels: Integer ``[N, 1]``, or ``[N, L]`` for multi-label tasks.
    """

    images: NDArray[np.uint8] | MappedRows
    labels: NDArray[np.integer]

    def __len__(self) -> int:
        return len(self.images)
