"""What users name as images: opened, told from others, and found again from a manifest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import write_fake_npz

from salm_lightning.data import MEDMNIST, MedMNISTDataModule, NpzDataModule, SyntheticDataModule
from salm_lightning.data.original import images_of_release, named_images
from salm_lightning.data.sums import FileSum, file_sums
from salm_lightning.errors import ConfigurationError, DataError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SALM_DATA_ROOT", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    write_fake_npz(tmp_path / "breastmnist.npz", MEDMNIST["breastmnist"])
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*is not the official MedMNIST file")
@pytest.mark.parametrize(
    ("word", "kind", "name"),
    [
        ("breastmnist", MedMNISTDataModule, "breastmnist"),
        ("BreastMNIST", MedMNISTDataModule, "breastmnist"),
        ("~/breastmnist.npz", NpzDataModule, "breastmnist"),
        ("Synthetic", SyntheticDataModule, "synthetic"),
    ],
)
def test_users_name_images_in_their_words(root: Path, word: str, kind: type, name: str) -> None:
    original = named_images(word, batch_size=16)
    assert type(original.load()) is kind
    assert original.info.name == name
    assert original.batch_size == 16


def test_a_word_for_nothing_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"^source='brestmnist' is neither .*did you mean 'breastmnist'\?"):
        named_images("brestmnist", argument="source")
    with pytest.raises(ConfigurationError, match="size=64 is for MedMNIST names"):
        named_images("mine.npz", size=64)


def test_a_file_is_identified_by_its_own_sum_and_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "breastmnist.npz"
    os.utime(path, (1, 1))
    monkeypatch.setattr("time.time_ns", lambda: path.stat().st_ctime_ns + 10**10)
    original = named_images(str(path))
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert original.checksum() == expected
    opened: list[Path] = []
    monkeypatch.setattr(Path, "open", lambda self, *mode: opened.append(self))
    assert original.source_file == FileSum("breastmnist.npz", expected)
    assert file_sums(root / ".." / root.name / "breastmnist.npz").sha256 == expected
    assert opened == []
    monkeypatch.undo()
    with path.open("ab") as file:
        file.write(b"x")
    assert original.checksum() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_change_within_the_same_tick_is_seen(tmp_path: Path) -> None:
    sums = []
    for content in (b"one", b"two"):
        (tmp_path / "file").write_bytes(content)
        os.utime(tmp_path / "file", (10**9, 10**9))
        sums.append(file_sums(tmp_path / "file").sha256)
    assert sums == [hashlib.sha256(content).hexdigest() for content in (b"one", b"two")]


def test_drawn_images_are_identified_by_their_bytes() -> None:
    first, again, other = (
        SyntheticDataModule(num_classes=2, size=16, train_size=5, val_size=2, test_size=2, seed=s) for s in (0, 0, 1)
    )
    parts = [getattr(first.split(name), kind).tobytes() for name in ("train", "val", "test") for kind in ("images", "labels")]
    assert first.checksum() == hashlib.sha256(b"".join(parts)).hexdigest() == again.checksum()
    assert other.checksum() != first.checksum()
    assert first.source_file is None
    assert first.word == "synthetic"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_classes": 3, "channels": 1, "imbalance": 2.5, "background": "dark"},
        {"multi_label": True, "size": 20},
    ],
    ids=["default", "single label", "multi-label"],
)
def test_drawn_images_are_drawn_again_from_what_a_manifest_keeps(options: dict[str, Any]) -> None:
    first = SyntheticDataModule(**{"size": 16, "train_size": 12, "val_size": 8, "test_size": 9, "seed": 7, **options})
    again = images_of_release("synthetic", first.describe(), {"seed": 7}).load()
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(again.split(name).images, first.split(name).images)
        np.testing.assert_array_equal(again.split(name).labels, first.split(name).labels)


def test_a_name_is_opened_as_the_release_had_it(root: Path) -> None:
    dataset = {"size": 64, "labels": "any finding", "task": "binary-class"}
    images = images_of_release("chestmnist", dataset, {}, root)
    assert images.source_path == root / "chestmnist_64.npz"
    assert images.num_classes == 2
    with pytest.raises(ConfigurationError, match="its labels were derived from several per image"):
        images_of_release(str(root / "breastmnist.npz"), dataset, {})
    assert images.source_file is None  # not downloaded yet
