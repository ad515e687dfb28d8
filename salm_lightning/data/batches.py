"""Which images are in which batch: pure functions of a seed, an epoch and a rank, the same for every kind of loader."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from salm_lightning.errors import ConfigurationError


class LoaderState(TypedDict):
    """Where a training loader stands: the batch that it yields next.

    Attributes:
        epoch: Number of the pass, from 0.
        position: Number of the next batch in that pass.
        world_size: Number of ranks; on another number the rest of the pass cannot be replayed.
    """

    epoch: int
    position: int
    world_size: int


def permutation(count: int, seed: int, purpose: str, *counters: int) -> NDArray[np.int64]:
    """Return a permutation of ``range(count)`` that is a pure function of its arguments.

    It sorts raw words, where ``Generator.permutation`` may change.
    """
    return np.argsort(random_words(count, seed, purpose, *counters), kind="stable").astype(np.int64)


def random_words(count: int, seed: int, purpose: str, *counters: int) -> NDArray[np.uint64]:
    """Draw 64-bit words as a pure function of the arguments: raw ones of PCG64, whose stream NumPy promises to keep."""
    entropy = [seed & (2**64 - 1), zlib.crc32(purpose.encode()), *counters]
    words: NDArray[np.uint64] = np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(count)
    return words


def stratified_shard(labels: NDArray[np.integer], seed: int, rank: int, world: int) -> NDArray[np.int64]:
    """Return the samples that one rank owns.

    Args:
        labels: Integer ``[N, L]``; samples with equal rows form a stratum.
        seed: Seed of the assignment.
        rank: This rank, in ``[0, world)``.
        world: Number of ranks.

    Returns:
        Ascending global indices, int64. Over the ranks the shards cover every sample once; their lengths, and their numbers
        of samples of each stratum, differ by one at most.

    Raises:
        ConfigurationError: There are more ranks than samples.
    """
    if world > len(labels):
        raise ConfigurationError(f"{world} ranks cannot share {len(labels)} images; use at most {len(labels)} devices.")
    shuffled = permutation(len(labels), seed, "shard")
    by_label = shuffled[np.lexsort(labels[shuffled].T[::-1])]
    return np.sort(by_label[rank::world])


def per_rank_batch_size(batch_size: int, world: int) -> int:
    """Divide the total batch size by the number of ranks.

    Raises:
        ConfigurationError: It does not divide evenly.
    """
    if batch_size % world:
        raise ConfigurationError(
            f"batch_size={batch_size} is the total over all ranks and must be a multiple of their number, {world}."
        )
    return batch_size // world


class EpochBatches:
    """The training batches of one rank, epoch by epoch, and the position in them.

    Iterating goes on at the next batch: the first of an epoch, unless the pass before was left on its way or
    :meth:`load_state_dict` has set another. Lightning leaves a pass on its way when a run resumes on another number of ranks: it
    counts the batches that the checkpoint's epoch had left, while the loader is at the start of the next one. Nothing moves
    before the first batch is asked for, so that an iterator which is made and dropped skips nothing.

    Args:
        shard_size: Number of samples on this rank; batches hold positions in the shard.
        smallest_shard: The least ``shard_size`` of all ranks; it settles how many batches all of them yield.
        batch_size: Samples per batch on this rank.
        seed: Seed of the order.
        world_size: Number of ranks.
        limit: The Trainer's ``limit_train_batches``, a number of batches or a share; a pass that it ends counts as finished.
    """

    def __init__(
        self,
        shard_size: int,
        smallest_shard: int,
        batch_size: int,
        seed: int,
        world_size: int = 1,
        limit: int | float = 1.0,
    ) -> None:
        self.num_batches = max(1, smallest_shard // batch_size)
        self._shard_size = shard_size
        self.batch_size = batch_size
        self._seed = seed
        self._world_size = world_size
        share = limit if isinstance(limit, int) else int(self.num_batches * limit)
        self._last = max(1, min(share, self.num_batches))
        self._epoch = 0
        self._position = 0

    def __len__(self) -> int:
        return self.num_batches

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the positions in the shard in the order of one epoch, int64 ``[shard_size]``."""
        return permutation(self._shard_size, self._seed, "epoch", epoch)

    def start(self) -> tuple[int, int]:
        """Return the epoch of the next batch and its number in it."""
        return self._epoch, self._position

    def slices(self, epoch: int, first: int) -> Iterator[slice]:
        """Yield the part of :meth:`order` that each batch takes, from batch ``first`` on, and keep the state up to date."""
        for number in range(first, self.num_batches):
            # The state must be past the batch before it is handed out: a checkpoint is written while it is in use.
            finished = number + 1 >= self._last
            self._epoch, self._position = (epoch + 1, 0) if finished else (epoch, number + 1)
            yield slice(number * self.batch_size, (number + 1) * self.batch_size)

    def state_dict(self) -> LoaderState:
        """Return the position of the next batch."""
        return {"epoch": self._epoch, "position": self._position, "world_size": self._world_size}

    def load_state_dict(self, state: LoaderState) -> None:
        """Go on where ``state`` was taken; with another number of ranks, at the start of the next epoch."""
        self._epoch, self._position = state["epoch"], state["position"]
        if state["world_size"] != self._world_size and self._position:
            self._epoch, self._position = self._epoch + 1, 0


def evaluation_batches(count: int, batch_size: int, rank: int, world: int) -> list[NDArray[np.int64]]:
    """Split a split for evaluation: every sample once over the ranks, equally many batches on each.

    Sample ``i`` goes to rank ``i % world``. Where shards differ by one sample, the last batch takes one more, so that no rank
    needs padding and no rank waits for another's extra batch.

    Args:
        count: Number of samples in the split.
        batch_size: Samples per batch on this rank.
        rank: This rank.
        world: Number of ranks.

    Returns:
        Ascending global indices per batch, int64.

    Raises:
        ConfigurationError: There are more ranks than samples.
    """
    if world > count:
        raise ConfigurationError(f"{world} ranks cannot share a split of {count} images; use at most {count} devices.")
    mine = np.arange(rank, count, world, dtype=np.int64)
    batches = -(-(count // world) // batch_size)
    return np.split(mine, np.arange(1, batches) * batch_size)


def chunk_indices(chunk: int, count: int, chunk_size: int) -> NDArray[np.int64]:
    """Return the samples of one chunk of the last pass, int64 ``[chunk_size]``: consecutive, the tail filled with its first."""
    first = chunk * chunk_size
    indices = np.arange(first, first + chunk_size, dtype=np.int64)
    return np.where(indices < count, indices, first)
