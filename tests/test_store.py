"""The noise per sample: quantisation, access by global index, snapshots and re-sharding."""

from __future__ import annotations

import math
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from salm_lightning.errors import ReleaseError
from salm_lightning.files import file_sha256
from salm_lightning.noise.store import (
    NoiseStore,
    Snapshot,
    dequantise,
    quantise,
    snapshot_folder,
)

RADIUS = 8 / 255
SHAPE = (3, 5, 4)


def noise(count: int, seed: int = 0) -> Tensor:
    return (torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * RADIUS


def rounded(delta: Tensor) -> np.ndarray:
    """Return what a store may give back: the nearest multiple of radius / 127."""
    unit = RADIUS / 127
    return (np.rint(delta.numpy().astype(np.float64) / unit) * unit).astype(np.float32)


def test_quantisation_equals_numpy_rounding() -> None:
    delta, unit = noise(50), RADIUS / 127
    kept = quantise(delta, unit)
    assert kept.dtype == torch.int8
    assert int(kept.max()) > 120
    assert int(kept.min()) < -120
    np.testing.assert_array_equal(kept.numpy(), np.rint(delta.numpy() / np.float32(unit)).astype(np.int8))
    assert (dequantise(kept, unit) - delta).abs().max() <= unit / 2 * 1.0001
    assert torch.equal(quantise(dequantise(kept, unit), unit), kept)  # a second visit does not wear the noise off


def test_quantisation_keeps_the_radius_and_clips_what_is_beyond() -> None:
    ends = torch.tensor([RADIUS, -RADIUS, 2 * RADIUS, -2 * RADIUS, 0.0, -0.0])
    assert quantise(ends, RADIUS / 127).tolist() == [127, -127, 127, -127, 0, 0]
    assert dequantise(torch.tensor([-127, 127], dtype=torch.int8), RADIUS / 127).abs().max() <= RADIUS * (1 + 1e-6)


def test_get_and_put_go_by_the_global_index() -> None:
    indices = np.array([3, 10, 11, 42, 1000])
    store, delta, start = NoiseStore(indices, SHAPE, RADIUS), noise(5), noise(5, seed=1)
    assert torch.equal(store.get(torch.tensor([42, 3, 1000, 10, 11]), start), start)  # nothing is written yet
    store.put(torch.tensor([1000, 10]), delta[:2])
    assert store.visited.sum() == 2
    made = store.get(torch.tensor([10, 3, 1000]), start[:3])
    np.testing.assert_allclose(made[0], rounded(delta[1]), rtol=0, atol=1e-8)
    assert torch.equal(made[1], start[1])
    np.testing.assert_allclose(made[2], rounded(delta[0]), rtol=0, atol=1e-8)
    store.put(torch.tensor([10]), delta[4:])
    np.testing.assert_allclose(store.get(torch.tensor([10]), start[:1])[0], rounded(delta[4]), rtol=0, atol=1e-8)
    assert store.visited.sum() == 2


@pytest.mark.parametrize("index", [0, 5, 41, 43])
def test_samples_of_other_ranks_are_refused(index: int) -> None:
    store = NoiseStore(np.array([3, 10, 42]), SHAPE, RADIUS)
    with pytest.raises(IndexError):
        store.put(torch.tensor([index]), noise(1))
    with pytest.raises(IndexError):
        store.get(torch.tensor([index]), noise(1))
    assert store.visited.sum() == 0


def test_zero_noise_that_was_written_is_not_a_start() -> None:
    store = NoiseStore(np.array([0, 1]), SHAPE, RADIUS)
    store.put(torch.tensor([1]), torch.zeros(1, *SHAPE))
    made = store.get(torch.tensor([0, 1]), noise(2))
    assert made[0].any()
    assert not made[1].any()


def test_a_memory_map_equals_the_device(tmp_path: Path) -> None:
    indices, (first, second) = np.array([7, 2, 9, 4]), (noise(3), noise(2, seed=1))
    scratch = tmp_path / "scratch"
    stores = [NoiseStore(indices, SHAPE, RADIUS), NoiseStore(indices, SHAPE, RADIUS, scratch=scratch)]
    for store in stores:
        store.put(torch.tensor([9, 2, 7]), first)
        store.put(torch.tensor([4, 2]), second)
    assert torch.equal(*(store.get(torch.from_numpy(indices), noise(4)) for store in stores))
    sums = [store.save(tmp_path / f"{number}", 0) for number, store in enumerate(stores)]
    assert sums[0] == sums[1]
    if (maps := Path("/proc/self/maps")).exists():
        assert str(scratch) in maps.read_text()
    assert list(scratch.iterdir()) == []  # nothing is left, even if the process is killed now
    again = NoiseStore(indices, SHAPE, RADIUS, scratch=scratch)  # scratch is not a state
    assert again.visited.sum() == 0
    assert torch.equal(again.get(torch.tensor([9]), first[:1]), first[:1])
    again.load(Snapshot(tmp_path / "1", RADIUS, sums[1]))
    assert torch.equal(*(store.get(torch.from_numpy(indices), noise(4)) for store in (stores[0], again)))


class LargestResult(TorchDispatchMode):
    """Notes the bytes of the largest tensor that an operation returns."""

    largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        sizes = [tensor.nbytes for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        self.largest = max([self.largest, *sizes])
        return result


@pytest.mark.parametrize("mapped", [False, True])
def test_snapshots_are_written_and_read_in_slabs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool) -> None:
    """No tensor and no array grows with the number of samples."""
    slab, count, shape = 2**16, 500, (3, 48, 48)
    monkeypatch.setattr("salm_lightning.noise.store.SLAB", slab, raising=False)
    store = NoiseStore(np.arange(count), shape, RADIUS, scratch=tmp_path if mapped else None)
    written = np.setdiff1d(np.arange(count), [0, 7, 499])
    for part in np.array_split(written, 20):
        delta = torch.from_numpy(part)[:, None, None, None].expand(-1, *shape) % 101 * RADIUS / 127
        store.put(torch.from_numpy(part), delta)
    other = NoiseStore(np.arange(count)[::-1].copy(), shape, RADIUS, scratch=tmp_path if mapped else None)
    with LargestResult() as results:
        store.save(tmp_path / "step=0", 0)  # torch imports hundreds of modules at a mode's first operations
        tracemalloc.start()
        sums = store.save(tmp_path / "step=1", 0)
        other.load(Snapshot(tmp_path / "step=1", RADIUS, sums))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert results.largest <= slab
    assert peak < 4 * slab < count * math.prod(shape) / 10
    saved = np.load(tmp_path / "step=1" / "rank=0.noise.npy")
    np.testing.assert_array_equal(saved, np.broadcast_to((written % 101)[:, None, None, None], (len(written), *shape)))
    missing = torch.full((1, *shape), RADIUS)
    for index in (0, 1, 250, 499):
        expected = missing if index in (0, 499) else torch.full_like(missing, index % 101 * RADIUS / 127)
        torch.testing.assert_close(other.get(torch.tensor([index]), missing), expected, rtol=0, atol=1e-8)


def saved(folder: Path, shards: list[np.ndarray], written: np.ndarray, delta: Tensor) -> dict[str, str]:
    """Save a snapshot of ranks that own ``shards``, in which the samples ``written`` have noise."""
    sums = {}
    for rank, shard in enumerate(shards):
        store, mine = NoiseStore(shard, SHAPE, RADIUS), np.intersect1d(shard, written)
        store.put(torch.from_numpy(mine), delta[mine])
        sums |= store.save(folder, rank)
    return sums


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 1), (1, 3), (3, 2), (12, 1)])
def test_a_snapshot_is_re_sharded(tmp_path: Path, before: int, after: int) -> None:
    count, delta, start = 25, noise(25), noise(25, seed=1)
    mixed = np.random.default_rng(0).permutation(count)
    written = np.sort(mixed[:17])
    sums = saved(tmp_path, [mixed[rank::before] for rank in range(before)], written, delta)
    assert len(sums) == 2 * before
    assert {path.name for path in tmp_path.iterdir()} == set(sums)
    known = np.isin(np.arange(count), written)
    snapshot, seen = Snapshot(tmp_path, RADIUS, sums), 0
    for rank in range(after):
        shard = np.sort(mixed[::-1][rank::after])
        store = NoiseStore(shard, SHAPE, RADIUS)
        store.put(torch.from_numpy(shard), noise(len(shard), seed=2))  # what was there goes
        store.load(snapshot)
        expected = np.where(known[shard][:, None, None, None], rounded(delta[shard]), start[shard].numpy())
        np.testing.assert_allclose(store.get(torch.from_numpy(shard), start[shard]), expected, rtol=0, atol=1e-8)
        seen += store.visited.sum()
    assert seen == len(written)


def test_reading_a_snapshot_keeps_the_order_asked_for(tmp_path: Path) -> None:
    delta = noise(10)
    sums = saved(tmp_path, [np.array([0, 2, 4, 6]), np.array([1, 3, 5, 7])], np.array([1, 2, 6, 7]), delta)
    values, known = Snapshot(tmp_path, RADIUS, sums).read(np.array([7, 3, 2, 999, 6, 7]))
    assert known.tolist() == [True, False, True, False, True, True]
    unit = RADIUS / 127
    for row, index in ((0, 7), (2, 2), (4, 6), (5, 7)):
        np.testing.assert_array_equal(values[row], np.rint(delta[index].numpy() / np.float32(unit)))
    assert not values[[1, 3]].any()


def test_saving_leaves_no_temporary_files_and_is_repeatable(tmp_path: Path) -> None:
    store = NoiseStore(np.arange(4), SHAPE, RADIUS)
    store.put(torch.arange(4), noise(4))
    first = store.save(tmp_path / "step=1", 0)
    assert store.save(tmp_path / "step=1", 0) == first
    assert sorted(path.name for path in (tmp_path / "step=1").iterdir()) == ["rank=0.indices.npy", "rank=0.noise.npy"]


@pytest.mark.parametrize("name", ["rank=0.noise.npy", "rank=0.indices.npy"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "other"])
def test_a_damaged_snapshot_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    sums = saved(tmp_path, [np.arange(6)], np.arange(6), noise(6))
    Snapshot(tmp_path, RADIUS, sums)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-8])
    elif damage == "remove":
        path.unlink()
    else:
        saved(tmp_path, [np.arange(5)], np.arange(5), noise(6, seed=3))
    with pytest.raises(ReleaseError, match="is missing" if damage == "remove" else "is not the file that the checkpoint names"):
        Snapshot(tmp_path, RADIUS, sums)


@pytest.mark.parametrize(
    "name",
    ["../rank=0.noise.npy", "/etc/passwd", "rank=0.noise.npy/../../x", "rank=0.noise.npz", "rank=-1.noise.npy", "noise.npy", "",
     "rank=0.noise.npy\n"],
)  # fmt: skip
def test_hostile_file_names_are_refused(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside.npy"
    outside.write_bytes(b"")
    with pytest.raises(ReleaseError, match="names a noise file"):
        Snapshot(tmp_path, RADIUS, {name: "0" * 64})


@pytest.mark.parametrize("name", ["..", "step=1/../../x", "/tmp", "step=", "step=-1", "step=1.ckpt", "", "step=1\n", "step=x"])
def test_hostile_folder_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ReleaseError, match="expected 'step=N'"):
        snapshot_folder(tmp_path, name)
    assert snapshot_folder(tmp_path, "step=12") == tmp_path / "noise" / "step=12"


def test_pickles_are_not_read(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    np.save(tmp_path / "rank=0.noise.npy", np.array([Hostile()], dtype=object), allow_pickle=True)
    np.save(tmp_path / "rank=0.indices.npy", np.arange(1))
    sums = {path.name: file_sha256(path) for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="object"):
        Snapshot(tmp_path, RADIUS, sums)
    assert not (tmp_path / "executed").exists()
