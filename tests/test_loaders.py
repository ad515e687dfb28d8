from __future__ import annotations

import pickle
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from fakes import fake_arrays, write_fake_npz
from torch.utils.data import DataLoader

import salm_lightning.data.datamodule as datamodule_file
from salm_lightning.data import SPLITS, Batch, DatasetInfo, ImageDataModule, NpzDataModule, Split, Task, loaders
from salm_lightning.data.arrays import to_tensor
from salm_lightning.data.batches import chunk_indices, evaluation_batches, permutation, stratified_shard
from salm_lightning.data.loaders import DeviceReader, MappedReader, TrainLoader
from salm_lightning.data.mapped import MappedRows
from salm_lightning.errors import ConfigurationError

RGB = DatasetInfo("cells", Task.MULTI_CLASS, ("a", "b", "c"), channels=3, size=8)
GREY = DatasetInfo("scans", Task.BINARY, ("no", "yes"), channels=1, size=8)
FINDINGS = DatasetInfo("chest", Task.MULTI_LABEL, ("x", "y", "z"), channels=1, size=8)


class MemoryDataModule(ImageDataModule):
    """Random images in memory."""

    def __init__(self, info: DatasetInfo = RGB, sizes: tuple[int, int, int] = (53, 13, 17), **settings: Any) -> None:
        super().__init__(info, **settings)
        self.sizes = sizes

    def load_splits(self) -> dict[str, Split]:
        arrays = fake_arrays(self.info, self.sizes)
        return {name: Split(arrays[f"{name}_images"], arrays[f"{name}_labels"]) for name in SPLITS}


def on_rank(data: ImageDataModule, rank: int, world: int, limit: int | float = 1.0) -> ImageDataModule:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world, strategy=strategy, limit_train_batches=limit)  # type: ignore[assignment]
    return data


def indices(batches: Any) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches]


def flat(batches: Any) -> list[int]:
    return list(chain.from_iterable(indices(batches)))


def assert_holds_what_the_split_has(batch: Batch, split: Split, task: Task) -> None:
    """Compare a batch with the stored arrays, image by image."""
    assert batch.images.dtype == torch.uint8
    for image, label, index in zip(batch.images, batch.labels, batch.indices, strict=True):
        stored = split.images[index]
        stored = stored[None] if stored.ndim == 2 else np.moveaxis(stored, -1, 0)
        np.testing.assert_array_equal(image.numpy(), stored)
        expected = split.labels[index] if task is Task.MULTI_LABEL else split.labels[index, 0]
        np.testing.assert_array_equal(label.numpy(), expected)


# --- permutations and shards ---------------------------------------------------------------------------------------------------


def test_permutations_are_fixed_for_all_time() -> None:
    """Other values would change the order of the batches of every stored run."""
    assert permutation(10, 0, "epoch", 0).tolist() == [9, 3, 6, 7, 5, 1, 2, 4, 0, 8]
    assert sorted(permutation(1000, 3, "epoch", 7)) == list(range(1000))
    draws = {tuple(permutation(20, *key)) for key in [(0, "epoch", 0), (1, "epoch", 0), (0, "shard", 0), (0, "epoch", 1)]}
    assert len(draws) == 4


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("info", [RGB, FINDINGS], ids=lambda info: info.name)
def test_shards_cover_every_image_once_and_are_stratified(world: int, info: DatasetInfo) -> None:
    labels = fake_arrays(info, (101, 1, 1))["train_labels"]
    shards = [stratified_shard(labels, seed=5, rank=rank, world=world) for rank in range(world)]
    assert sorted(np.concatenate(shards)) == list(range(101))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert all((np.diff(shard) > 0).all() for shard in shards)
    for row in np.unique(labels, axis=0):
        counts = [int((labels[shard] == row).all(axis=1).sum()) for shard in shards]
        assert max(counts) - min(counts) <= 1


def test_shards_depend_on_the_seed() -> None:
    labels = fake_arrays(RGB, (101, 1, 1))["train_labels"]
    assert stratified_shard(labels, 0, 0, 2).tolist() == stratified_shard(labels, 0, 0, 2).tolist()
    assert stratified_shard(labels, 0, 0, 2).tolist() != stratified_shard(labels, 1, 0, 2).tolist()


def test_more_ranks_than_images_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="4 ranks cannot share 3 images; use at most 3 devices"):
        stratified_shard(np.zeros((3, 1), np.uint8), 0, 0, 4)
    with pytest.raises(ConfigurationError, match="4 ranks cannot share a split of 3 images"):
        evaluation_batches(3, 8, 0, 4)


# --- training batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resident", ["device", "mapped"])
@pytest.mark.parametrize("info", [RGB, GREY, FINDINGS], ids=lambda info: info.name)
def test_batches_hold_the_images_and_labels_of_their_indices(resident: Any, info: DatasetInfo) -> None:
    data = MemoryDataModule(info, batch_size=8, resident=resident, num_workers=0)
    loader = data.train_dataloader()
    assert isinstance(loader.read, DeviceReader if resident == "device" else MappedReader)
    batches = list(loader)
    assert len(batches) == len(loader) == 6
    for batch in batches:
        assert_holds_what_the_split_has(batch, data.split("train"), info.task)
        assert len(batch.indices) == 8
    seen = flat(batches)
    assert len(set(seen)) == len(seen) == 48


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2)])
def test_both_loaders_yield_the_same_batches(workers: int, rank: int, world: int) -> None:
    one = on_rank(MemoryDataModule(batch_size=8, resident="device"), rank, world).train_dataloader()
    other = on_rank(MemoryDataModule(batch_size=8, resident="mapped", num_workers=workers), rank, world).train_dataloader()
    for _ in range(2):
        for expected, found in zip(one, other, strict=True):
            assert all(torch.equal(left, right) for left, right in zip(expected, found, strict=True))


def test_every_epoch_has_its_own_order_and_drops_other_images() -> None:
    loader = MemoryDataModule(batch_size=8).train_dataloader()
    epochs = [flat(loader) for _ in range(20)]
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert set().union(*epochs) == set(range(53))
    again = MemoryDataModule(batch_size=8).train_dataloader()
    assert [flat(again) for _ in range(20)] == epochs
    assert flat(MemoryDataModule(batch_size=8, seed=1).train_dataloader()) != epochs[0]


@pytest.mark.parametrize("resident", ["device", "mapped"])
def test_a_shard_smaller_than_a_batch_is_one_batch(resident: Any) -> None:
    data = MemoryDataModule(sizes=(5, 1, 1), batch_size=8, resident=resident, num_workers=0)
    (batch,) = data.train_dataloader()
    assert sorted(batch.indices.tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("count", "batch_size", "world"), [(53, 8, 2), (64, 16, 4), (9, 8, 2), (9, 16, 2), (17, 6, 3), (3, 3, 3)]
)
def test_all_ranks_yield_equally_many_batches_and_share_no_image(count: int, batch_size: int, world: int) -> None:
    seen: list[int] = []
    lengths = set()
    for rank in range(world):
        loader = on_rank(MemoryDataModule(sizes=(count, 3, 3), batch_size=batch_size), rank, world).train_dataloader()
        batches = indices(loader)
        assert len(batches) == len(loader)
        lengths.add(len(batches))
        assert all(len(set(batch)) == len(batch) >= 1 for batch in batches)
        seen += chain.from_iterable(batches)
    assert len(lengths) == 1
    assert len(set(seen)) == len(seen)


def test_a_batch_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"batch_size=9 is the total over all ranks.* multiple of their number, 2"):
        on_rank(MemoryDataModule(batch_size=9), 0, 2).train_dataloader()


@pytest.mark.parametrize("resident", ["device", "mapped"])
def test_nothing_is_drawn_from_the_global_generators(resident: Any) -> None:
    data = MemoryDataModule(batch_size=8, resident=resident, num_workers=1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for loader in (data.train_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert len(list(loader)) == len(loader)
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])


# --- position and resume -------------------------------------------------------------------------------------------------------


def loader_of(resident: Any, world: int = 1, limit: int | float = 1.0) -> TrainLoader:
    data = MemoryDataModule(batch_size=8, resident=resident, num_workers=2 if resident == "mapped" else 0)
    return on_rank(data, 0, world, limit).train_dataloader()


@pytest.mark.parametrize("resident", ["device", "mapped"])
@pytest.mark.parametrize("done", [0, 1, 4, 5, 6, 7, 12, 13])
def test_a_loader_goes_on_where_its_state_was_taken(resident: Any, done: int) -> None:
    def stream(loader: Any) -> Any:
        while True:
            yield from loader

    whole = indices(islice(stream(loader_of("device")), 20))
    first = loader_of(resident)
    part = indices(islice(stream(first), done)) if done else []
    assert part == whole[:done]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    second = loader_of(resident)
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert indices(islice(stream(second), 20 - done)) == whole[done:]


def test_an_iterator_that_is_never_asked_moves_nothing() -> None:
    loader, expected = loader_of("device"), indices(loader_of("device"))
    iter(loader)
    iter(loader)
    assert indices(loader) == expected


def test_a_pass_that_was_left_on_its_way_goes_on() -> None:
    whole = loader_of("device")
    epochs = [indices(whole), indices(whole)]
    loader = loader_of("device")
    assert indices(islice(loader, 2)) == epochs[0][:2]
    assert indices(loader) == epochs[0][2:]
    assert indices(loader) == epochs[1]


def test_on_another_number_of_ranks_the_next_epoch_starts() -> None:
    loader = loader_of("device")
    assert len(indices(islice(loader, 2))) == 2
    moved = loader_of("device", world=2)
    moved.load_state_dict(loader.state_dict())
    assert (moved.state_dict()["epoch"], moved.state_dict()["position"]) == (1, 0)
    reference = loader_of("device", world=2)
    assert indices(reference) != (second := indices(reference))
    assert indices(moved) == second


def test_at_the_end_of_an_epoch_another_number_of_ranks_skips_nothing() -> None:
    loader = loader_of("device")
    list(loader)
    moved = loader_of("device", world=2)
    moved.load_state_dict(loader.state_dict())
    assert moved.state_dict()["epoch"] == 1


@pytest.mark.parametrize(("limit", "last"), [(2, 2), (0.5, 3), (1.0, 6), (100, 6)])
def test_a_pass_that_the_trainer_cuts_short_counts_as_finished(limit: int | float, last: int) -> None:
    loader = loader_of("device", limit=limit)
    list(islice(loader, last))
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (1, 0)


class Recorder(pl.LightningModule):
    """Learns nothing of interest; remembers which images it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []
        self.evaluated: list[int] = []

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        assert batch.images.dtype == torch.float32
        self.seen.append(batch.indices.tolist())
        return self.weight * batch.images.mean()

    def validation_step(self, batch: Batch, _: int) -> None:
        self.evaluated += batch.indices.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, steps: int, checkpoint: Path | None = None, resident: Any = "device", **settings: Any) -> Recorder:
    module = Recorder()
    saver = pl.callbacks.ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, callbacks=[saver], enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0, check_val_every_n_epoch=None,
        val_check_interval=4, **settings,
    )  # fmt: skip
    data = MemoryDataModule(batch_size=8, resident=resident, num_workers=1)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("resident", "settings"),
    [
        pytest.param("device", {}, id="device-whole"),
        pytest.param("device", {"limit_train_batches": 4}, id="device-limited"),
        pytest.param("mapped", {}, id="mapped-whole", marks=pytest.mark.slow),
        pytest.param("mapped", {"limit_train_batches": 4}, id="mapped-limited"),
    ],
)
def test_a_resumed_fit_sees_the_batches_of_the_uninterrupted_one(tmp_path: Path, settings: dict[str, Any], resident: Any) -> None:
    whole = fit(tmp_path, 15, resident=resident, **settings)
    assert len(whole.seen) == 15
    per_epoch = settings.get("limit_train_batches", 6)
    reference = loader_of("device", limit=per_epoch)
    expected = [batch for _ in range(4) for batch in indices(islice(reference, per_epoch))][:15]
    assert whole.seen == expected
    for step in (3, 4, 6, 7, 8, 12):
        rest = fit(tmp_path / "again", 15, tmp_path / f"step={step}.ckpt", resident, **settings)
        assert rest.seen == whole.seen[step:], f"resumed at step {step}"


# --- evaluation, last pass, residency ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "world"), [(n, world) for n in (1, 2, 7, 16, 17, 33, 40) for world in (1, 2, 3, 4) if world <= n]
)
@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_evaluation_counts_every_image_once_in_equally_many_batches(count: int, batch_size: int, world: int) -> None:
    ranks = [evaluation_batches(count, batch_size, rank, world) for rank in range(world)]
    assert sorted(np.concatenate([np.concatenate(batches) for batches in ranks])) == list(range(count))
    assert len({len(batches) for batches in ranks}) == 1
    sizes = [len(batch) for batches in ranks for batch in batches]
    assert min(sizes) >= 1
    assert max(sizes) <= batch_size + (world > 1)


@pytest.mark.parametrize("resident", ["device", "mapped"])
@pytest.mark.parametrize("name", ["val", "test"])
def test_evaluation_loaders_go_in_order(resident: Any, name: str) -> None:
    data = MemoryDataModule(batch_size=4, resident=resident, num_workers=0)
    loader = data.val_dataloader()[0] if name == "val" else data.test_dataloader()
    assert isinstance(loader.read, DeviceReader if resident == "device" else MappedReader)
    for _ in range(2):
        batches = list(loader)
        assert flat(batches) == list(range(13 if name == "val" else 17))
        for batch in batches:
            assert_holds_what_the_split_has(batch, data.split(name), RGB.task)


def test_the_last_pass_has_fixed_chunks_with_a_filled_tail() -> None:
    data = MemoryDataModule(chunk_size=10)
    batches = list(data.predict_dataloader())
    assert data.num_chunks == len(batches) == 6
    assert flat(batches[:5]) == list(range(50))
    assert indices(batches[5:]) == [[50, 51, 52, 50, 50, 50, 50, 50, 50, 50]]
    for batch in batches:
        assert_holds_what_the_split_has(batch, data.split("train"), RGB.task)
    assert chunk_indices(0, 10, 10).tolist() == list(range(10))


def test_ranks_share_the_pending_chunks() -> None:
    def chunks(pending: list[int] | None, rank: int, world: int) -> list[int]:
        data = on_rank(MemoryDataModule(chunk_size=10), rank, world)
        return [int(batch.indices[0]) // 10 for batch in data.variant(predicted=pending).predict_dataloader()]

    assert sorted(chunks(None, 0, 2) + chunks(None, 1, 2)) == [0, 1, 2, 3, 4, 5]
    assert (chunks([1, 4, 5], 0, 2), chunks([1, 4, 5], 1, 2)) == ([1, 5], [4])
    assert (chunks([], 0, 2), chunks([3], 1, 2)) == ([], [])


def test_a_variant_has_its_own_settings_and_the_same_images() -> None:
    data = MemoryDataModule(batch_size=8)
    order = flat(data.train_dataloader())
    other = data.variant(seed=5)
    assert flat(other.train_dataloader()) == flat(MemoryDataModule(batch_size=8, seed=5).train_dataloader()) != order
    assert flat(data.train_dataloader()) == order
    assert flat(data.variant(predicted="test").predict_dataloader()) == list(range(17))
    assert flat(data.predict_dataloader())[:53] == list(range(53))
    assert other.split("test") is data.split("test")


def test_images_become_floats_between_zero_and_one_and_round_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    data = MemoryDataModule(GREY)
    batch = data.on_after_batch_transfer(Batch(levels, torch.zeros(1), torch.zeros(1)), 0)
    assert batch.images.dtype == torch.float32
    assert (batch.images.min(), batch.images.max()) == (0.0, 1.0)
    assert torch.equal((batch.images * 255).round().to(torch.uint8), levels)
    assert torch.equal(data.on_after_batch_transfer(batch, 0).images, batch.images)
    assert levels.flatten()[255] == 255


def test_images_stay_on_the_device_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = MemoryDataModule(resident="auto")
    monkeypatch.setattr(datamodule_file, "RESIDENT_LIMIT", 53 * 8 * 8 * 3)
    assert isinstance(data.train_dataloader().read, DeviceReader)
    monkeypatch.setattr(datamodule_file, "RESIDENT_LIMIT", 53 * 8 * 8 * 3 - 1)
    assert isinstance(data.train_dataloader().read, MappedReader)
    assert isinstance(data.test_dataloader().read, DeviceReader)
    assert isinstance(on_rank(data, 0, 2).train_dataloader().read, DeviceReader)


def test_images_move_to_the_device_in_slabs_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []

    def spy(images: np.ndarray) -> torch.Tensor:
        moved.append(images.nbytes)
        return to_tensor(images)

    slab = 5 * 8 * 8 * 3 + 1
    monkeypatch.setattr("salm_lightning.data.loaders._SLAB", slab)
    monkeypatch.setattr("salm_lightning.data.loaders.to_tensor", spy)
    data = MemoryDataModule(resident="device", batch_size=8)
    for batch in data.train_dataloader():
        assert_holds_what_the_split_has(batch, data.split("train"), Task.MULTI_CLASS)
    assert max(moved) <= slab
    assert sum(moved) == 54 * 8 * 8 * 3  # the first image twice, for its shape


def test_test_images_can_be_watched_beside_the_validation_images() -> None:
    assert [flat(loader) for loader in MemoryDataModule().val_dataloader()] == [list(range(13))]
    data = MemoryDataModule()
    data.prepare_images(lambda: None, (), monitor_test=True)
    assert [flat(loader) for loader in data.val_dataloader()] == [list(range(13)), list(range(17))]


def test_a_memory_map_travels_to_workers_by_its_name(tmp_path: Path) -> None:
    info = DatasetInfo("set", Task.MULTI_CLASS, ("0", "1", "2"), channels=3, size=32)
    write_fake_npz(tmp_path / "set.npz", info, sizes=(64, 3, 3))
    split = NpzDataModule(tmp_path / "set.npz", resident="mapped").split("train")
    assert isinstance(split.images, np.memmap)
    reader = MappedReader(split, Task.MULTI_CLASS)
    message = pickle.dumps(reader)
    assert len(message) < split.images.nbytes / 20
    copy = pickle.loads(message)
    assert isinstance(copy._images, MappedRows)
    assert_holds_what_the_split_has(copy[np.array([5, 63, 0])], split, Task.MULTI_CLASS)


def test_some_rows_of_a_memory_map_are_read_when_asked_for(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    rows = np.array([7, 2, 3, 8])
    some = MappedRows(np.load(tmp_path / "images.npy", mmap_mode="r"), rows)
    expected = images[rows]
    assert (len(some), some.shape, some.dtype) == (4, expected.shape, np.uint8)
    for key in (2, -1, slice(1, 3), slice(None, None, 2), np.array([3, 0, 0]), np.array([True, False, True, False])):
        np.testing.assert_array_equal(some[key], expected[key])
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(some))[key], expected[key])
    with pytest.raises(IndexError):
        some[4]


@pytest.mark.parametrize("resident", ["device", "mapped"])
def test_loaders_read_some_rows_of_a_memory_map(tmp_path: Path, resident: str) -> None:
    arrays = fake_arrays(RGB, (53, 13, 17))
    np.save(tmp_path / "images.npy", arrays["train_images"])
    rows = np.flatnonzero(arrays["train_labels"][:, 0] != 1)
    data = MemoryDataModule(resident=resident, batch_size=8, chunk_size=8)
    data.setup()
    some = MappedRows(np.load(tmp_path / "images.npy", mmap_mode="r"), rows)
    split = data._splits["train"] = Split(some, arrays["train_labels"][rows])
    for loader in (data.train_dataloader(), data.predict_dataloader()):
        for batch in loader:
            assert_holds_what_the_split_has(batch, split, Task.MULTI_CLASS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 is too small; give a whole number of at least 1"),
        ({"chunk_size": 0}, "chunk_size=0 is too small"),
        ({"num_workers": -1}, "num_workers=-1 is too small; .* at least 0"),
        ({"resident": "devise"}, "resident='devise' is not known; did you mean 'device'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MemoryDataModule(**settings)


def test_what_a_manifest_needs() -> None:
    data = MemoryDataModule()
    assert data.describe() == {
        "name": "cells",
        "size": 8,
        "channels": 3,
        "task": "multi-class",
        "class_names": ["a", "b", "c"],
        "num_samples": {"train": 53, "val": 13, "test": 17},
    }
    assert (data.num_classes, data.channels, data.image_size, data.task) == (3, 3, 8, Task.MULTI_CLASS)
    with pytest.raises(ConfigurationError, match="split='tests' is not known; did you mean 'test'"):
        data.split("tests")


@pytest.mark.parametrize(("free", "workers"), [(2**30, 2), (60_000, 1), (10_000, 0)])
def test_no_more_workers_than_the_shared_memory_has_room_for(monkeypatch: pytest.MonkeyPatch, free: int, workers: int) -> None:
    asked: list[int] = []

    def loader(reader: Any, *, sampler: Any, num_workers: int, **options: Any) -> Any:
        asked.append(num_workers)
        return DataLoader(reader, sampler=sampler, num_workers=0, **options)

    monkeypatch.setattr(loaders, "DataLoader", loader)
    monkeypatch.setattr(loaders.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    images = np.zeros((20, 28, 28), np.uint8)  # 784 bytes: 7,840 a batch, 23,520 in flight
    read = loaders.MappedReader(Split(images, np.zeros((20, 1), np.int64)), Task.BINARY, num_workers=2)
    assert len(list(read([np.arange(10), np.arange(10, 20)]))) == 2
    assert asked == [workers]
