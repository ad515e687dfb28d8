"""Protected images beside their originals: training images as models see them, read a chunk at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from salm_lightning.audit.releases import open_release
from salm_lightning.audit.shown import Stored
from salm_lightning.data import DatasetInfo, ImageDataModule, Task
from salm_lightning.data.base import ANY_FINDING, any_finding
from salm_lightning.errors import ReleaseError, require

CHUNK_BYTES = 2**22
"""Bytes of images in a chunk: 1783 RGB images of 28 pixels, 27 of 224."""
Some = Sequence[Stored] | Stored
"""Images, each ``[H, W]`` or ``[H, W, 3]``."""
_R = TypeVar("_R")


class Compared(ABC):
    """Originals and protected images, side by side.

    Attributes:
        info: What the dataset is.
        protected_images: Number of images that carry noise.
        rows: Positions of those that are compared, ascending, int64 ``[N]``.
        labels: Their labels, ``[N, 1]`` or ``[N, L]``.
        white: What white is in their integers; black is 0.
    """

    info: DatasetInfo
    protected_images: int
    rows: NDArray[np.int64]
    labels: NDArray[np.integer]
    white: int = 255

    def __len__(self) -> int:
        return len(self.rows)

    @abstractmethod
    def at(self, positions: NDArray[np.integer]) -> tuple[Some, Some]:
        """Read the originals and the protected images at some positions within :attr:`rows`."""

    @abstractmethod
    def map(self, work: Callable[[Stored, Stored], _R]) -> Iterator[_R]:
        """Yield what ``work``, a function of a module, makes of the pairs, some of the same size at a time, in order."""

    def name(self, position: int) -> str:
        """Return what people find an image by."""
        return f"image {self.rows[position]}"

    def file(self, position: int) -> str:
        """Return the file that holds an image, if it is one of many; empty if it is not."""
        return ""

    @property
    def classes(self) -> NDArray[np.int64]:
        """A class number per image, ``[N]``: for several labels per image, 1 where it has any of them."""
        labels = any_finding(self.labels) if self.info.task is Task.MULTI_LABEL else self.labels
        return labels[:, 0].astype(np.int64)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the numbers in :attr:`classes`."""
        return ("no finding", ANY_FINDING) if self.info.task is Task.MULTI_LABEL else self.info.class_names

    def one_per_class(self) -> tuple[list[str], NDArray[np.int64]]:
        """Return the names of the classes or labels that occur, and the position of the first image of each."""
        labels = self.labels
        members = (
            labels.T > 0 if self.info.task is Task.MULTI_LABEL else labels[:, 0] == np.arange(self.info.num_classes)[:, None]
        )
        present = np.flatnonzero(members.any(axis=1))
        return [self.info.class_names[number] for number in present], members[present].argmax(axis=1)


class Pairs(Compared):
    """Originals and protected images of the training split as models see them; both may be memory-mapped.

    Args:
        release: Folder of the release; its files are compared with its manifest first.
        source: The data that it was made from.
        max_images: Take a random sample of at most so many images, for large datasets; ``None`` takes all that are protected.
        seed: Settles the sample.

    Raises:
        ReleaseError: The release is damaged, or ``source`` is not what it was made from.
        ConfigurationError: ``max_images`` is less than 1.
    """

    def __init__(self, release: Path, source: ImageDataModule, max_images: int | None = None, seed: int = 0) -> None:
        check_sample(max_images)
        opened = open_release(release)
        self.info = opened.manifest.info
        self._original, (self._protected, rows) = source.split("train"), opened.compared(source)
        original, protected, name = self._original, self._protected, f"source={source.info.name}"
        if original.images.shape != protected.images.shape:
            shapes = f"{list(original.images.shape)}, those of the release {list(protected.images.shape)}"
            raise ReleaseError(f"{name}: its training images are {shapes}. Give the data that it was made from.")
        derived = opened.manifest.dataset.get("labels") == ANY_FINDING and original.labels.shape[1] > 1
        if not np.array_equal(any_finding(original.labels) if derived else original.labels, protected.labels):
            raise ReleaseError(f"{name}: its training labels are not those of the release. Give the data that it was made from.")
        self.protected_images = len(rows)
        self.rows = sampled(rows, max_images, seed)
        self.labels = self._protected.labels[self.rows]

    def at(self, positions: NDArray[np.integer] | slice) -> tuple[Stored, Stored]:
        """Read the originals and the protected images at some positions within :attr:`rows`."""
        rows = self.rows[positions]
        return np.asarray(self._original.images[rows]), np.asarray(self._protected.images[rows])

    @property
    def values(self) -> int:
        """Numbers in an image."""
        return int(np.prod(self._original.images.shape[1:]))

    def chunks(self, positions: NDArray[np.integer] | None = None) -> Iterator[tuple[Stored, Stored]]:
        """Yield the pairs at some positions, or all of them, in order, some megabytes at a time."""
        chosen, size = np.arange(len(self)) if positions is None else positions, max(1, CHUNK_BYTES // self.values)
        for start in range(0, len(chosen), size):
            yield self.at(chosen[start : start + size])

    def map(self, work: Callable[[Stored, Stored], _R]) -> Iterator[_R]:
        """Yield what ``work`` makes of the pairs, some megabytes at a time."""
        return (work(*chunk) for chunk in self.chunks())


def sampled(rows: NDArray[np.int64], most: int | None, seed: int) -> NDArray[np.int64]:
    """Return at most so many of the rows, ascending."""
    if most is None or most >= len(rows):
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def check_sample(max_images: int | None) -> None:
    """Refuse a number of images of which nothing can be said with a ConfigurationError."""
    require("max_images", max_images, max_images is None or max_images >= 1, "give 1 or more, or leave it out for all images")
