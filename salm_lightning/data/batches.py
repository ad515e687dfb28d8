"""Which images are in which batch: pure functions of a seed, an epoch and a rank, the same for every kind of loader."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from salm_lightning.errors import ConfigurationError


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
    """Return the samples that one rank, in ``[0, world)``, owns: ascending global indices, int64.

    Over the ranks the shards cover every sample once; their lengths, and their numbers of samples of each stratum, which are those
    with equal rows of the integer ``labels`` ``[N, L]``, differ by one at most.

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


def evaluation_batches(count: int, batch_size: int, rank: int, world: int) -> list[NDArray[np.int64]]:
    """Return the batches of one rank for evaluation, ascending global indices, int64: over the ranks every sample once.

    Sample ``i`` goes to rank ``i % world``, in batches of ``batch_size`` on each. Where shards differ by one sample, the last batch takes
    one more, so that no rank needs padding and no rank waits for another's extra batch.

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
