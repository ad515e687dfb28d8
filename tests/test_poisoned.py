"""The DataModule of a victim: it reads what was released, refuses anything else, and leaves val and test clean."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from salm_lightning.data.base import Task
from salm_lightning.data.medmnist import MedMNISTDataModule, NpzDataModule
from salm_lightning.data.synthetic import SyntheticDataModule
from salm_lightning.errors import ConfigurationError, DataError, ReleaseError
from salm_lightning.main import main
from salm_lightning.release import PoisonedDataModule, write_release

SETTINGS = {"method": "EM", "seed": 0}
BOUND = {"norm": "linf", "radius": 8}


def make_arrays(size: int = 12, channels: int = 3, labels: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in {"train": 23, "val": 5, "test": 7}.items():
        row = (size, size) if channels == 1 else (size, size, channels)
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *row), dtype=np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 2, (count, labels)) if labels > 1 else np.arange(count)[:, None] % 4
    return arrays


@pytest.fixture
def release(tmp_path: Path) -> Path:
    arrays = make_arrays()
    np.savez(tmp_path / "tiny.npz", **arrays)
    write_release(tmp_path / "protected", NpzDataModule(tmp_path / "tiny.npz"), [arrays["train_images"] ^ 3], SETTINGS, BOUND)
    (tmp_path / "tiny.npz").unlink()  # a release stands alone
    return tmp_path / "protected"


def test_train_is_protected_and_the_rest_clean(release: Path) -> None:
    data = PoisonedDataModule(release)
    assert (data.num_classes, data.channels, data.image_size, data.task) == (4, 3, 12, Task.MULTI_CLASS)
    assert data.source_path == release / "tiny.npz"
    assert data.manifest.settings == SETTINGS
    arrays = make_arrays()
    np.testing.assert_array_equal(data.split("train").images, arrays["train_images"] ^ 3)
    for split in ("val", "test"):
        np.testing.assert_array_equal(data.split(split).images, arrays[f"{split}_images"])
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(data.split(split).labels, arrays[f"{split}_labels"])


def test_batches_hold_the_protected_image_of_each_index(release: Path) -> None:
    data = PoisonedDataModule(release, batch_size=8)
    batch = next(iter(data.train_dataloader()))
    expected = (make_arrays()["train_images"] ^ 3)[batch.indices.numpy()].transpose(0, 3, 1, 2)
    assert torch.equal(batch.images, torch.from_numpy(expected.copy()))
    seen = torch.cat([batch.images for batch in data.test_dataloader()])
    assert torch.equal(seen, torch.from_numpy(make_arrays()["test_images"].transpose(0, 3, 1, 2).copy()))


def test_memory_mapped_reading_gives_the_same(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALM_CACHE_DIR", str(tmp_path / "cache"))
    images = PoisonedDataModule(release, resident="mapped", num_workers=0).split("train").images
    assert isinstance(images, np.memmap)
    np.testing.assert_array_equal(images, make_arrays()["train_images"] ^ 3)


def test_what_is_known_of_the_dataset_survives_the_release(tmp_path: Path) -> None:
    arrays = make_arrays(64, 1, labels=14)
    np.savez(tmp_path / "chestmnist_64.npz", **arrays)
    source = MedMNISTDataModule("chestmnist", 64, tmp_path, download=False)
    write_release(tmp_path / "protected", source, [arrays["train_images"]], SETTINGS, BOUND)
    data = PoisonedDataModule(tmp_path / "protected")
    assert data.info == source.info
    assert data.task is Task.MULTI_LABEL
    assert data.describe() == source.describe()


def test_a_changed_byte_is_refused(release: Path) -> None:
    path = release / "tiny.npz"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ReleaseError, match=r"checksum.*Get it again"):
        PoisonedDataModule(release).setup("fit")


def test_an_exchanged_archive_is_refused(release: Path) -> None:
    np.savez(release / "tiny.npz", **make_arrays())
    with pytest.raises(ReleaseError, match="checksum"):
        PoisonedDataModule(release).setup("fit")


def test_a_missing_archive_is_refused(release: Path) -> None:
    (release / "tiny.npz").unlink()
    with pytest.raises(ReleaseError, match=r"files: expected .*tiny\.npz"):
        PoisonedDataModule(release).setup("fit")


def test_a_manifest_that_names_another_file_is_refused(release: Path) -> None:
    manifest = json.loads((release / "manifest.json").read_text())
    manifest["archive"]["name"] = "../../etc/passwd"
    (release / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ReleaseError, match=r"must be 'tiny\.npz'"):
        PoisonedDataModule(release)


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_text("x"), lambda path: None])
def test_what_is_no_release_is_refused(tmp_path: Path, make: object) -> None:
    make(tmp_path / "folder")
    with pytest.raises(ReleaseError, match=r"is not a protected dataset: it has no manifest\.json"):
        PoisonedDataModule(tmp_path / "folder")


@pytest.fixture
def withheld(tmp_path: Path) -> Path:
    """A release of the training images alone; its originals lie beside it."""
    arrays = make_arrays()
    np.savez(tmp_path / "tiny.npz", **arrays)
    folder = tmp_path / "protected"
    write_release(folder, NpzDataModule(tmp_path / "tiny.npz"), [arrays["train_images"] ^ 3], SETTINGS, BOUND, publish="train")
    return folder


def test_without_originals_a_release_of_training_images_cannot_measure(withheld: Path) -> None:
    data = PoisonedDataModule(withheld)
    np.testing.assert_array_equal(data.split("train").images, make_arrays()["train_images"] ^ 3)
    for stage in ("fit", "validate", "test"):
        with pytest.raises(ConfigurationError, match=r"publishes training images alone.*--data\.original tiny"):
            PoisonedDataModule(withheld).setup(stage)


def test_clean_splits_come_from_the_originals_where_they_are_withheld(withheld: Path) -> None:
    data = PoisonedDataModule(withheld, original=str(withheld.parent / "tiny.npz"), batch_size=8)
    data.setup("fit")
    np.testing.assert_array_equal(data.split("train").images, make_arrays()["train_images"] ^ 3)
    for split in ("val", "test"):
        np.testing.assert_array_equal(data.split(split).images, make_arrays()[f"{split}_images"])
    assert len(next(iter(data.val_dataloader()[0])).images) == 5
    np.savez_compressed(withheld.parent / "other.npz", **make_arrays())
    with pytest.raises(DataError, match=r"is not what .*protected was made from: its SHA-256"):
        PoisonedDataModule(withheld, original=str(withheld.parent / "other.npz")).setup("test")


def test_drawn_splits_are_drawn_again_where_they_are_withheld(tmp_path: Path) -> None:
    drawn = SyntheticDataModule(num_classes=2, size=16, train_size=9, val_size=4, test_size=5, seed=3)
    images = [np.array(drawn.split("train").images) ^ 1]
    write_release(tmp_path / "protected", drawn, images, {"method": "EM", "seed": 3}, BOUND, publish="train")
    data = PoisonedDataModule(tmp_path / "protected", original="synthetic")
    data.setup("fit")
    np.testing.assert_array_equal(data.split("test").images, drawn.split("test").images)


def test_a_copy_of_a_release_trains_wherever_it_lies(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "given/to a partner"
    shutil.copytree(release, copy)
    shutil.rmtree(release)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    config = (
        "--config victim.yaml --model.width 0.0625 --trainer.max_steps 1 --trainer.accelerator cpu --trainer.precision 32-true"
    )
    assert main(["fit", *config.split(), "--config", str(copy / "datamodule.yaml"), "--run", "copy"]) in (0, None)
    config_of_run = yaml.safe_load((tmp_path / "work/lightning_logs/copy/config.yaml").read_text())
    assert config_of_run["data"]["init_args"]["root"] == str(copy)
