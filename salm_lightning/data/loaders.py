"""Loaders: the batches are the same whether images lie on the device or are read from a memory map by worker processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from salm_lightning.data.arrays import labels_to_tensor, to_tensor
from salm_lightning.data.base import Batch, Split, Task
from salm_lightning.data.batches import permutation
from salm_lightning.data.mapped import MappedRows

_SHARED = Path("/dev/shm")
"""Where worker processes put batches on Linux."""
_IN_FLIGHT = 3
"""Batches of a worker that are not used up: two that it has read ahead, and the one that is in use."""
_SLAB = 2**26  # bytes of images that are moved at a time

Reader = Callable[[Sequence[NDArray[np.int64]]], Iterator[Batch]]
"""Takes the global indices of each batch and yields the batches."""


class DeviceReader:
    """Gathers batches from uint8 images that lie on the device; a step copies nothing from the host.

    Args:
        split: Where the images come from; they are moved slab by slab, so that a mapped split never lies in host memory as a whole.
        indices: Global indices of the samples that are held, ascending, int64 and not empty.
        task: Settles the labels' type.
        device: Where they are held.
    """

    def __init__(self, split: Split, indices: NDArray[np.int64], task: Task, device: torch.device) -> None:
        self._held = indices
        self._device = device
        self._labels = labels_to_tensor(split.labels[indices], task).to(device)
        first = to_tensor(split.images[indices[:1]])
        self._images = torch.empty((len(indices), *first.shape[1:]), dtype=torch.uint8, device=device)
        rows = max(1, _SLAB // max(1, first.nbytes))
        for start in range(0, len(indices), rows):
            self._images[start : start + rows] = to_tensor(split.images[indices[start : start + rows]]).to(device)

    def __call__(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        """Yield batches by the global indices of each."""
        indices = np.concatenate([np.empty(0, np.int64), *batches])
        places = np.searchsorted(self._held, indices)
        sizes = [len(batch) for batch in batches]
        moved = (torch.split(torch.from_numpy(values).to(self._device), sizes) for values in (places, indices))
        for rows, own in zip(*moved, strict=True):
            yield Batch(self._images[rows], self._labels[rows], own)


class MappedReader(Dataset[Batch]):
    """Reads batches from a memory map, or from host memory.

    Args:
        split: Where to read.
        task: Settles the labels' type.
        num_workers: Processes that read ahead; 0 reads in this process.
        pin_memory: Page-locked batches, for a faster copy to a GPU.
    """

    def __init__(self, split: Split, task: Task, num_workers: int = 0, pin_memory: bool = False) -> None:
        self._images = images = split.images
        if isinstance(images, np.memmap) and images.filename is not None:
            self._images = MappedRows(images, np.arange(len(images)))  # travels to the workers by the file's name
        self._labels = split.labels
        self._task = task
        self._num_workers = num_workers
        self._pin_memory = pin_memory

    def __getitem__(self, indices: NDArray[np.int64]) -> Batch:
        labels = labels_to_tensor(self._labels[indices], self._task)
        return Batch(to_tensor(self._images[indices]), labels, torch.from_numpy(indices.copy()))

    def __call__(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        """Yield batches by the global indices of each."""
        # A generator of its own: DataLoader draws a seed for its workers, by default from torch's global generator.
        yield from DataLoader(
            self,
            batch_size=None,
            sampler=batches,
            num_workers=self._workers(batches),
            pin_memory=self._pin_memory,
            generator=torch.Generator(),
        )

    def _workers(self, batches: Sequence[NDArray[np.int64]]) -> int:
        """Return how many workers the shared memory has room for; where a batch finds none, as in a container's 64 MB, nobody wakes up."""
        each = _IN_FLIGHT * max(1, self._images[:1].nbytes * max(map(len, batches), default=0))
        # Half of it is for other loaders: of another split, of other ranks.
        return min(self._num_workers, shutil.disk_usage(_SHARED).free // 2 // each) if _SHARED.is_dir() else self._num_workers


class EvaluationLoader:
    """Given batches, in order.

    Args:
        read: What reads them.
        batches: Global indices of each batch, int64.
    """

    def __init__(self, read: Reader, batches: Sequence[NDArray[np.int64]]) -> None:
        self.read = read
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return self.read(self._batches)


class TrainLoader:
    """The shuffled training batches of one rank, epoch by epoch, and the position in them.

    Iterating goes on at the next batch: the first of an epoch, unless the pass before was left on its way or
    :meth:`load_state_dict` has set another. Lightning leaves a pass on its way when a run resumes on another number of ranks: it
    counts the batches that the checkpoint's epoch had left, while the loader is at the start of the next one. Nothing moves
    before the first batch is asked for, so that an iterator which is made and dropped skips nothing.

    Args:
        read: What reads the batches.
        shard: Global indices that this rank owns, int64.
        smallest_shard: The least number of samples of any rank; it settles how many batches all of them yield.
        batch_size: Samples per batch on this rank.
        seed: Seed of the order.
        world_size: Number of ranks.
        limit: The Trainer's ``limit_train_batches``, a number of batches or a share; a pass that it ends counts as finished.
    """

    def __init__(
        self,
        read: Reader,
        shard: NDArray[np.int64],
        smallest_shard: int,
        batch_size: int,
        seed: int,
        world_size: int = 1,
        limit: int | float = 1.0,
    ) -> None:
        self.read = read
        self._shard = shard
        self._batch_size = batch_size
        self._seed = seed
        self._pass = {"world_size": world_size, "batch_size": batch_size, "smallest_shard": smallest_shard}
        self._num_batches = max(1, smallest_shard // batch_size)
        share = limit if isinstance(limit, int) else int(self._num_batches * limit)
        self._last = max(1, min(share, self._num_batches))
        self._epoch = 0
        self._position = 0

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        epoch, size = self._epoch, self._batch_size
        order = self._shard[permutation(len(self._shard), self._seed, "epoch", epoch)]
        numbers = range(self._position, self._num_batches)
        batches = self.read([order[number * size : (number + 1) * size] for number in numbers])
        for number, batch in zip(numbers, batches, strict=True):
            # The state must be past the batch before it is handed out: a checkpoint is written while it is in use. It follows what is
            # handed out here, not what workers have read ahead.
            finished = number + 1 >= self._last
            self._epoch, self._position = (epoch + 1, 0) if finished else (epoch, number + 1)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return where the loader stands, for the checkpoint: the pass, the next batch in it, both from 0, and what a pass is made of."""
        return {"epoch": self._epoch, "position": self._position, **self._pass}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on where a state was taken; in passes of other batches, where that place does not exist, at the start of the next one."""
        self._epoch, self._position = state_dict["epoch"], state_dict["position"]
        if self._position and not self._pass.items() <= state_dict.items():
            self._epoch, self._position = self._epoch + 1, 0
