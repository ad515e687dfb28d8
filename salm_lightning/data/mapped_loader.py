"""Loaders for splits that stay in a memory map: worker processes read whole batches, in the order of the device loaders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from salm_lightning.data.arrays import labels_to_tensor, to_tensor
from salm_lightning.data.base import Batch, Split, Task
from salm_lightning.data.batches import EpochBatches, LoaderState
from salm_lightning.data.mapped_rows import MappedRows


class _BatchReader(Dataset[Batch]):
    """Reads a batch by its number; the index lists travel to the workers once."""

    def __init__(self, split: Split, batches: Sequence[NDArray[np.int64]], task: Task) -> None:
        self._images = images = split.images
        if isinstance(images, np.memmap) and images.filename is not None:
            self._images = MappedRows(images, np.arange(len(images)))  # travels to the workers by the file's name
        self._labels = split.labels
        self._batches = batches
        self._task = task

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Batch:
        indices = self._batches[number]
        images = to_tensor(self._images[indices])
        labels = labels_to_tensor(self._labels[indices], self._task)
        return Batch(images, labels, torch.from_numpy(indices.copy()))


def _read(split: Split, batches: Sequence[NDArray[np.int64]], task: Task, num_workers: int, pin_memory: bool) -> Iterator[Batch]:
    # A generator of its own: DataLoader draws a seed for its workers, by default from torch's global generator.
    loader: DataLoader[Batch] = DataLoader(
        _BatchReader(split, batches, task),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )
    yield from loader


class MappedLoader:
    """Shuffled training batches read from a memory map; the same batches as :class:`DeviceLoader` yields.

    Args:
        split: The training split.
        shard: Global indices that this rank owns, int64.
        batches: The order of the batches; it keeps the position for a resume.
        task: Settles the labels' type.
        num_workers: Processes that read ahead; 0 reads in this process.
        pin_memory: Page-locked batches, for a faster copy to a GPU.
    """

    def __init__(
        self,
        split: Split,
        shard: NDArray[np.int64],
        batches: EpochBatches,
        task: Task,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self._split = split
        self._shard = shard
        self._batches = batches
        self._task = task
        self._num_workers = num_workers
        self._pin_memory = pin_memory

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self._batches.start()
        order = self._shard[self._batches.order(epoch)]
        size = self._batches.batch_size
        todo = [order[number * size : (number + 1) * size] for number in range(first, len(self._batches))]
        batches = _read(self._split, todo, self._task, self._num_workers, self._pin_memory)
        # The position follows what is handed out here, not what the workers have read ahead.
        for _ in self._batches.slices(epoch, first):
            yield next(batches)

    def state_dict(self) -> LoaderState:
        """Return the position of the next batch, for the checkpoint."""
        return self._batches.state_dict()

    def load_state_dict(self, state_dict: LoaderState) -> None:
        """Go on at the position of a checkpoint."""
        self._batches.load_state_dict(state_dict)


class MappedBatches:
    """Given batches of a split, read from a memory map or from host memory.

    Args:
        split: Where to read.
        batches: Global indices of each batch, int64.
        task: Settles the labels' type.
        num_workers: Processes that read ahead; 0 reads in this process.
        pin_memory: Page-locked batches, for a faster copy to a GPU.
    """

    def __init__(
        self,
        split: Split,
        batches: Sequence[NDArray[np.int64]],
        task: Task,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self._split = split
        self._batches = batches
        self._task = task
        self._num_workers = num_workers
        self._pin_memory = pin_memory

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        yield from _read(self._split, self._batches, self._task, self._num_workers, self._pin_memory)
