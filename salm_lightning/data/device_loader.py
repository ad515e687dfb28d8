"""Loaders for splits that fit on the device: uint8 images stay there, batches are gathered by index, no workers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from salm_lightning.data.arrays import labels_to_tensor, to_tensor
from salm_lightning.data.base import Batch, Split, Task
from salm_lightning.data.batches import EpochBatches, LoaderState

_SLAB = 2**26  # bytes of images that are moved at a time


class _ResidentSamples:
    """The samples of one rank on its device."""

    def __init__(self, split: Split, indices: NDArray[np.int64], task: Task, device: torch.device) -> None:
        self.images = _images_on_device(split, indices, device)
        self.labels = labels_to_tensor(split.labels[indices], task).to(device)
        self.indices = torch.from_numpy(indices.copy()).to(device)

    def take(self, positions: Tensor) -> Batch:
        """Gather a batch by positions in the shard, int64 ``[B]`` on the device."""
        return Batch(self.images[positions], self.labels[positions], self.indices[positions])


def _images_on_device(split: Split, indices: NDArray[np.int64], device: torch.device) -> Tensor:
    """Move images slab by slab: a memory-mapped split never lies in host memory as a whole."""
    first = to_tensor(split.images[indices[:1]])
    images = torch.empty((len(indices), *first.shape[1:]), dtype=torch.uint8, device=device)
    rows = max(1, _SLAB // max(1, first.nbytes))
    for start in range(0, len(indices), rows):
        images[start : start + rows] = to_tensor(split.images[indices[start : start + rows]]).to(device)
    return images


class DeviceLoader:
    """Shuffled training batches from images that lie on the device.

    Each pass moves one permutation to the device; a step copies nothing from the host.

    Args:
        split: The training split.
        shard: Global indices that this rank owns, int64.
        batches: The order of the batches; it keeps the position for a resume.
        task: Settles the labels' type.
        device: Where the shard lives.
    """

    def __init__(self, split: Split, shard: NDArray[np.int64], batches: EpochBatches, task: Task, device: torch.device) -> None:
        self._samples = _ResidentSamples(split, shard, task, device)
        self._batches = batches
        self._device = device

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self._batches.start()
        order = torch.from_numpy(self._batches.order(epoch)).to(self._device)
        for part in self._batches.slices(epoch, first):
            yield self._samples.take(order[part])

    def state_dict(self) -> LoaderState:
        """Return the position of the next batch, for the checkpoint."""
        return self._batches.state_dict()

    def load_state_dict(self, state_dict: LoaderState) -> None:
        """Go on at the position of a checkpoint."""
        self._batches.load_state_dict(state_dict)


class DeviceEvaluationLoader:
    """Batches for evaluation, in order, from images that lie on the device.

    Args:
        split: The split to evaluate.
        batches: Global indices of each batch of this rank.
        task: Settles the labels' type.
        device: Where this rank's share of the split lives.
    """

    def __init__(self, split: Split, batches: list[NDArray[np.int64]], task: Task, device: torch.device) -> None:
        self._samples = _ResidentSamples(split, np.concatenate(batches), task, device)
        self._ends = np.cumsum([len(batch) for batch in batches])

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[Batch]:
        samples, start = self._samples, 0
        for end in self._ends:
            yield Batch(samples.images[start:end], samples.labels[start:end], samples.indices[start:end])
            start = end
