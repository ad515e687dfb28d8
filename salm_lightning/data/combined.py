"""One class of a dataset among support classes from elsewhere (paper: Section 7.1)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision.transforms.v2.functional import resize, rgb_to_grayscale

from salm_lightning.data.arrays import to_array, to_tensor
from salm_lightning.data.base import SPLITS, DatasetInfo, Split, Task
from salm_lightning.data.batches import permutation
from salm_lightning.data.datamodule import ImageDataModule
from salm_lightning.data.image_folder import image_classes, read_image
from salm_lightning.data.mapped import Scratch, as_written, rows_of
from salm_lightning.errors import ConfigurationError, DataError

MAX_PER_CLASS = 1000
"""Images taken of each class of an image folder: support classes need variety, not their last image."""
_ROWS = 128  # images that are scaled at a time


class ClassWithSupport(ImageDataModule):
    """The images of one class, and support classes from another dataset that give a source model something to tell them from.

    The owner of one class has no other class of the dataset. Label 0 is the target class, whose images come first in each split and
    in their order; the support classes follow, scaled to the size of the target. Together they are held in memory or in a scratch file,
    as the images of any dataset are.

    Args:
        target: The dataset of the class; a single-label one.
        target_class: Number of the class.
        support: Images of the support classes, ``[N, S, S]`` or ``[N, S, S, 3]`` of any size, and their labels ``[N, 1]``, per split.
        support_names: One name per support class.
        batch_size: Images per training step, in total over all ranks; ``None`` is 128, or 64 at 224 pixels.
        seed: Seed of the shards and of the order of the training images.

    Raises:
        ConfigurationError: The target has several labels per image.
    """

    def __init__(
        self,
        target: ImageDataModule,
        target_class: int,
        support: dict[str, Split],
        support_names: tuple[str, ...],
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        if target.task is Task.MULTI_LABEL:
            raise ConfigurationError(
                f"data={target.info.name} has several labels per image; class-wise noise needs one class each."
            )
        names = (target.info.class_names[target_class], *support_names)
        info = DatasetInfo(f"{target.info.name}-class{target_class}", Task.MULTI_CLASS, names, target.channels, target.image_size)
        super().__init__(info, batch_size=batch_size, seed=seed, chunk_size=target.chunk_size)
        self.target = target
        self.target_class = target_class
        self.support = support
        self._scratch = Scratch(self._resident_limit())

    def load_splits(self) -> dict[str, Split]:
        """Put the class and its support together."""
        return {name: self._combine(self.target.split(name), self.support[name]) for name in SPLITS}

    def _combine(self, target: Split, support: Split) -> Split:
        own = np.flatnonzero(target.labels[:, 0] == self.target_class)
        images = self._scratch.empty((len(own) + len(support), *target.images.shape[1:]))
        for rows in _blocks(len(own)):
            images[rows] = target.images[own[rows]]
        for rows in _blocks(len(support)):
            fitted = fit_images(support.images[rows], self.image_size, self.channels)
            images[len(own) + rows.start : len(own) + rows.stop] = fitted
        labels = np.concatenate([np.zeros((len(own), 1), np.int64), support.labels.astype(np.int64) + 1])
        return Split(as_written(images), labels)


def support_of(data: ImageDataModule, number: int | None, seed: int) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Return ``number`` classes of a dataset, drawn with the seed, or all, as support classes.

    Returns:
        Splits whose labels ``[N, 1]`` count from 0, and the names of the classes.

    Raises:
        ConfigurationError: It has several labels per image, or fewer classes.
    """
    if data.task is Task.MULTI_LABEL:
        raise ConfigurationError(f"support={data.info.name} has several labels per image; choose a dataset with one class each.")
    chosen = _choose(data.num_classes, number, seed, data.info.name)
    splits = {name: _relabel(data.split(name), chosen) for name in SPLITS}
    return splits, tuple(data.info.class_names[index] for index in chosen)


def support_of_folder(
    root: Path, size: int, number: int | None, seed: int, scratch: Scratch
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Return the classes of an image folder, one subfolder per class, as support classes.

    Of each class at most :data:`MAX_PER_CLASS` images, drawn with the seed, are read; a tenth of them are the val split, and a tenth
    the test split, at least one image each.

    Args:
        root: The folder.
        size: Height and width that the images get: the shorter side is scaled, the middle cut out.
        number: How many of its classes, drawn with the seed; ``None`` is all.
        seed: Settles which classes and images.
        scratch: Where the images are kept.

    Returns:
        Splits of RGB images with labels ``[N, 1]`` from 0, and the names of the classes.

    Raises:
        DataError: It holds no subfolders with images, or a class has fewer than three.
        ConfigurationError: It has fewer classes than ``number``.
    """
    images = image_classes(root, "support")
    names = list(images)
    chosen = _choose(len(names), number, seed, str(root))
    parts: dict[str, list[tuple[list[Path], int]]] = {name: [] for name in SPLITS}
    for label, index in enumerate(chosen):
        files = images[names[index]]
        files = [files[row] for row in permutation(len(files), seed, "support images", index)[:MAX_PER_CLASS]]
        if len(files) < 3:
            raise DataError(f"support={root}: class {names[index]!r} has {len(files)} images; give 3 or more.")
        held = max(1, len(files) // 10)
        edges = (0, len(files) - 2 * held, len(files) - held, len(files))
        for name, (start, end) in zip(SPLITS, itertools.pairwise(edges), strict=True):
            parts[name].append((files[start:end], label))
    splits = {name: _read_all(part, size, scratch) for name, part in parts.items()}
    return splits, tuple(names[index] for index in chosen)


def fit_images(images: NDArray[np.uint8], size: int, channels: int) -> NDArray[np.uint8]:
    """Return images, uint8 ``[N, S, S]`` or ``[N, S, S, 3]``, in another size and number of channels, ``[N, size, size(, 3)]``.

    They are scaled bilinearly with antialiasing. For 1 channel they become grey (ITU-R 601 luma), for 3 grey ones are repeated.
    """
    tensor = to_tensor(images)
    if tensor.shape[-1] != size:
        tensor = resize(tensor, [size, size], antialias=True)
    if tensor.shape[1] != channels:
        tensor = rgb_to_grayscale(tensor) if channels == 1 else tensor.expand(-1, 3, -1, -1)
    return to_array(tensor)


def _choose(available: int, number: int | None, seed: int, name: str) -> list[int]:
    if number is None:
        return list(range(available))
    if not 1 <= number <= available:
        raise ConfigurationError(f"num_support={number} is out of range; {name} has {available} classes.")
    return sorted(permutation(available, seed, "support classes")[:number].tolist())


def _relabel(split: Split, chosen: list[int]) -> Split:
    rows = np.flatnonzero(np.isin(split.labels[:, 0], chosen))
    return Split(rows_of(split.images, rows), np.searchsorted(chosen, split.labels[rows]))


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _ROWS):
        yield slice(start, min(start + _ROWS, count))


def _read_all(parts: list[tuple[list[Path], int]], size: int, scratch: Scratch) -> Split:
    """Read images class by class, of each the middle."""
    labels = np.concatenate([np.full((len(files), 1), label, np.int64) for files, label in parts])
    images = scratch.empty((len(labels), size, size, 3))
    for position, path in enumerate(itertools.chain.from_iterable(files for files, _ in parts)):
        image = read_image(path, "support")
        shorter = min(image.shape[:2])
        top, left = ((side - shorter) // 2 for side in image.shape[:2])
        images[position] = fit_images(image[None, top : top + shorter, left : left + shorter], size, 3)[0]
    return Split(as_written(images), labels)
