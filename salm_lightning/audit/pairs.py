"""The training images that a release protects beside their originals, read a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from salm_lightning.data import ImageDataModule, Task
from salm_lightning.data.base import ANY_FINDING, any_finding
from salm_lightning.errors import ReleaseError, require
from salm_lightning.release import PoisonedDataModule

CHUNK_BYTES = 2**22
"""Bytes of images in a chunk: 1783 RGB images of 28 pixels, 27 of 224."""


class Pairs:
    """Originals and protected images of the same rows; both may be memory-mapped.

    Args:
        release: Folder of the release; its files are compared with its manifest first.
        source: The data that it was made from.
        max_images: Take a random sample of at most so many images, for large datasets; ``None`` takes all that are protected.
        seed: Settles the sample.

    Attributes:
        manifest: The release's manifest.
        info: What the dataset is.
        protected_images: Number of images that the release protects.
        rows: Positions of the images in the training split, ascending, int64 ``[N]``.
        labels: Their labels, ``[N, 1]`` or ``[N, L]``.

    Raises:
        ReleaseError: The release is damaged, or ``source`` is not what it was made from.
        ConfigurationError: ``max_images`` is less than 1.
    """

    def __init__(self, release: Path, source: ImageDataModule, max_images: int | None = None, seed: int = 0) -> None:
        check_sample(max_images)
        poisoned = PoisonedDataModule(release)
        self.manifest, self.info = poisoned.manifest, poisoned.manifest.info
        self._original, self._protected = source.split("train"), poisoned.split("train")
        original, protected, name = self._original, self._protected, f"source={source.info.name}"
        if original.images.shape != protected.images.shape:
            shapes = f"{list(original.images.shape)}, those of the release {list(protected.images.shape)}"
            raise ReleaseError(f"{name}: its training images are {shapes}. Give the data that it was made from.")
        derived = self.manifest.dataset.get("labels") == ANY_FINDING and original.labels.shape[1] > 1
        if not np.array_equal(any_finding(original.labels) if derived else original.labels, protected.labels):
            raise ReleaseError(f"{name}: its training labels are not those of the release. Give the data that it was made from.")
        rows = np.flatnonzero(self.manifest.coverage.mask())
        self.protected_images = len(rows)
        if max_images is not None and max_images < len(rows):
            rows = np.sort(np.random.default_rng(seed).choice(rows, max_images, replace=False))
        self.rows: NDArray[np.int64] = rows
        self.labels: NDArray[np.integer] = self._protected.labels[rows]

    def __len__(self) -> int:
        return len(self.rows)

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

    def at(self, positions: NDArray[np.integer] | slice) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read the originals and the protected images at some positions within :attr:`rows`."""
        rows = self.rows[positions]
        return np.asarray(self._original.images[rows]), np.asarray(self._protected.images[rows])

    @property
    def values(self) -> int:
        """Numbers in an image."""
        return int(np.prod(self._original.images.shape[1:]))

    def chunks(self, positions: NDArray[np.integer] | None = None) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """Yield the pairs at some positions, or all of them, in order, some megabytes at a time."""
        chosen, size = np.arange(len(self)) if positions is None else positions, max(1, CHUNK_BYTES // self.values)
        for start in range(0, len(chosen), size):
            yield self.at(chosen[start : start + size])


def check_sample(max_images: int | None) -> None:
    """Refuse a number of images of which nothing can be said with a ConfigurationError."""
    require("max_images", max_images, max_images is None or max_images >= 1, "give 1 or more, or leave it out for all images")


def grey(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return grey levels ``[B, H, W]`` of images ``[B, H, W]`` or ``[B, H, W, 3]``: luma (ITU-R 601), rounded as Pillow does."""
    if images.ndim == 3:
        return images
    rows = np.ascontiguousarray(images).reshape(-1, *images.shape[2:])  # one tall image, converted at once
    return np.asarray(Image.fromarray(rows).convert("L")).reshape(images.shape[:3])
