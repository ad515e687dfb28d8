"""The noise per sample: quantisation, access by global index, snapshots and re-sharding."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from salm_lightning.errors import ReleaseError
from salm_lightning.noise.store import (
    NoiseStore,
    Snapshot,
    check_files,
    dequantise,
    merge_checksums,
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
    assert store.visited() == 2
    made = store.get(torch.tensor([10, 3, 1000]), start[:3])
    np.testing.assert_allclose(made[0], rounded(delta[1]), rtol=0, atol=1e-8)
    assert torch.equal(made[1], start[1])
    np.testing.assert_allclose(made[2], rounded(delta[0]), rtol=0, atol=1e-8)
    store.put(torch.tensor([10]), delta[4:])
    np.testing.assert_allclose(store.get(torch.tensor([10]), start[:1])[0], rounded(delta[4]), rtol=0, atol=1e-8)
    assert store.visited() == 2


@pytest.mark.parametrize("index", [0, 5, 41, 43])
def test_samples_of_other_ranks_are_refused(index: int) -> None:
    store = NoiseStore(np.array([3, 10, 42]), SHAPE, RADIUS)
    with pytest.raises(IndexError):
        store.put(torch.tensor([index]), noise(1))
    with pytest.raises(IndexError):
        store.get(torch.tensor([index]), noise(1))
    assert store.visited() == 0


def test_zero_noise_that_was_written_is_not_a_start() -> None:
    store = NoiseStore(np.array([0, 1]), SHAPE, RADIUS)
    store.put(torch.tensor([1]), torch.zeros(1, *SHAPE))
    made = store.get(torch.tensor([0, 1]), noise(2))
    assert made[0].any()
    assert not made[1].any()


def test_a_memory_map_equals_the_device(tmp_path: Path) -> None:
    indices, (first, second) = np.array([7, 2, 9, 4]), (noise(3), noise(2, seed=1))
    path = tmp_path / "scratch" / "rank=0.npy"
    stores = [NoiseStore(indices, SHAPE, RADIUS), NoiseStore(indices, SHAPE, RADIUS, scratch=path)]
    for store in stores:
        store.put(torch.tensor([9, 2, 7]), first)
        store.put(torch.tensor([4, 2]), second)
    assert torch.equal(*(store.get(torch.from_numpy(indices), noise(4)) for store in stores))
    sums = [store.save(tmp_path / f"{number}", 0) for number, store in enumerate(stores)]
    assert sums[0] == sums[1]
    assert np.load(path, mmap_mode="r").dtype == np.int8
    again = NoiseStore(indices, SHAPE, RADIUS, scratch=path)  # scratch is not a state
    assert again.visited() == 0
    assert torch.equal(again.get(torch.tensor([9]), first[:1]), first[:1])


def saved(folder: Path, shards: list[np.ndarray], written: np.ndarray, delta: Tensor) -> dict[str, str]:
    """Save a snapshot of ranks that own ``shards``, in which the samples ``written`` have noise."""
    parts = []
    for rank, shard in enumerate(shards):
        store, mine = NoiseStore(shard, SHAPE, RADIUS), np.intersect1d(shard, written)
        store.put(torch.from_numpy(mine), delta[mine])
        parts.append(store.save(folder, rank))
    return merge_checksums([*parts, None])


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 1), (1, 3), (3, 2), (12, 1)])
def test_a_snapshot_is_re_sharded(tmp_path: Path, before: int, after: int) -> None:
    count, delta, start = 25, noise(25), noise(25, seed=1)
    mixed = np.random.default_rng(0).permutation(count)
    written = np.sort(mixed[:17])
    sums = saved(tmp_path, [mixed[rank::before] for rank in range(before)], written, delta)
    assert len(sums) == 2 * before
    assert {path.name for path in tmp_path.iterdir()} == set(sums)
    known = np.isin(np.arange(count), written)
    snapshot, seen = Snapshot(tmp_path, sums), 0
    for rank in range(after):
        shard = np.sort(mixed[::-1][rank::after])
        store = NoiseStore(shard, SHAPE, RADIUS)
        store.put(torch.from_numpy(shard), noise(len(shard), seed=2))  # what was there goes
        store.load(snapshot)
        expected = np.where(known[shard][:, None, None, None], rounded(delta[shard]), start[shard].numpy())
        np.testing.assert_allclose(store.get(torch.from_numpy(shard), start[shard]), expected, rtol=0, atol=1e-8)
        seen += store.visited()
    assert seen == len(written)


def test_reading_a_snapshot_keeps_the_order_asked_for(tmp_path: Path) -> None:
    delta = noise(10)
    saved(tmp_path, [np.array([0, 2, 4, 6]), np.array([1, 3, 5, 7])], np.array([1, 2, 6, 7]), delta)
    values, known = Snapshot(tmp_path).read(np.array([7, 3, 2, 999, 6, 7]))
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
    Snapshot(tmp_path, sums)
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
        Snapshot(tmp_path, sums)


@pytest.mark.parametrize(
    "name",
    ["../rank=0.noise.npy", "/etc/passwd", "rank=0.noise.npy/../../x", "rank=0.noise.npz", "rank=-1.noise.npy", "noise.npy", "",
     "rank=0.noise.npy\n"],
)  # fmt: skip
def test_hostile_file_names_are_refused(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside.npy"
    outside.write_bytes(b"")
    with pytest.raises(ReleaseError, match="names a noise file"):
        check_files(tmp_path, {name: "0" * 64})


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
    with pytest.raises(ValueError, match="object"):
        Snapshot(tmp_path)
    assert not (tmp_path / "executed").exists()
