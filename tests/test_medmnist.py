from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import medmnist
import numpy as np
import pytest
from fakes import write_fake_npz

from salm_lightning.data import MEDMNIST, DatasetInfo, MedMNISTDataModule, NpzDataModule, Task
from salm_lightning.data.catalogue import INFO
from salm_lightning.data.sums import file_sums
from salm_lightning.errors import ConfigurationError, DataError
from salm_lightning.main import main
from salm_lightning.release import PoisonedDataModule, verify_release

BREAST_MD5 = "750601b1f35ba3300ea97c75c52ff8f6"


def test_the_twelve_datasets_and_what_is_known_of_them() -> None:
    short = ["path", "chest", "derma", "oct", "pneumonia", "retina", "breast", "blood", "tissue", "organa", "organc", "organs"]
    assert list(MEDMNIST) == [f"{name}mnist" for name in short]
    tasks = {name: info.task for name, info in MEDMNIST.items() if info.task is not Task.MULTI_CLASS}
    assert tasks == {
        "chestmnist": Task.MULTI_LABEL,
        "pneumoniamnist": Task.BINARY,
        "breastmnist": Task.BINARY,
        "retinamnist": Task.ORDINAL,
    }
    classes = {name: info.num_classes for name, info in MEDMNIST.items()}
    assert (classes["pathmnist"], classes["chestmnist"], classes["organamnist"], classes["breastmnist"]) == (9, 14, 11, 2)
    assert {name for name, info in MEDMNIST.items() if info.channels == 3} == {
        "pathmnist",
        "dermamnist",
        "retinamnist",
        "bloodmnist",
    }
    assert MEDMNIST["breastmnist"].class_names == ("malignant", "normal, benign")


@pytest.mark.parametrize(("size", "file"), [(28, "pathmnist.npz"), (64, "pathmnist_64.npz"), (224, "pathmnist_224.npz")])
def test_everything_is_known_without_the_file(tmp_path: Path, size: int, file: str) -> None:
    data = MedMNISTDataModule("pathmnist", size=size, root=tmp_path)
    assert (data.num_classes, data.channels, data.image_size, data.task) == (9, 3, size, Task.MULTI_CLASS)
    assert data.source_path == tmp_path / file


def test_the_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SALM_DATA_ROOT", str(tmp_path))
    assert MedMNISTDataModule("pathmnist").source_path == tmp_path / "pathmnist.npz"
    monkeypatch.delenv("SALM_DATA_ROOT")
    assert MedMNISTDataModule("pathmnist").source_path == Path.home() / ".medmnist" / "pathmnist.npz"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "BloodMNIST"}, "name='BloodMNIST' is not known; did you mean 'bloodmnist'.*Choices: pathmnist, "),
        ({"name": "nodulemnist3d"}, "name='nodulemnist3d' is not known"),
        ({"name": "pathmnist", "size": 32}, "size=32 is not offered by MedMNIST. Choices: 28, 64, 128, 224"),
        ({"name": "pathmnist", "batch_size": 0}, "batch_size=0 is too small"),
        ({"name": "pathmnist", "chunk_size": -1}, "chunk_size=-1 is too small"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MedMNISTDataModule(**settings)


class Download:
    """Stands in for a dataset class of medmnist, which downloads when it is made."""

    def __init__(self, error: Exception | None = None, partial: bool = False) -> None:
        self.error, self.partial, self.calls = error, partial, 0

    def __call__(self, split: str, download: bool, root: str, size: int) -> None:
        assert download
        self.calls += 1
        file = Path(root) / ("breastmnist.npz" if size == 28 else f"breastmnist_{size}.npz")
        if self.partial:
            file.write_bytes(b"PK half of")
        if self.error is not None:
            raise self.error
        info = MEDMNIST["breastmnist"]
        write_fake_npz(file, DatasetInfo(info.name, info.task, info.class_names, info.channels, size))


@pytest.mark.filterwarnings("ignore:.*not the official MedMNIST file")
@pytest.mark.parametrize(("size", "file"), [(28, "breastmnist.npz"), (64, "breastmnist_64.npz")])
def test_a_file_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, file: str) -> None:
    download = Download()
    monkeypatch.setattr(medmnist, "BreastMNIST", download)
    for _ in range(2):
        data = MedMNISTDataModule("breastmnist", size=size, root=tmp_path / "new" / "root")
        data.prepare_data()
    assert download.calls == 1
    assert [entry.name for entry in (tmp_path / "new" / "root").iterdir()] == [file]
    assert data.describe()["num_samples"] == {"train": 40, "val": 12, "test": 16}


@pytest.mark.parametrize("error", [RuntimeError("Automatic download failed!"), OSError("no route to host")])
def test_without_a_network_the_message_says_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(medmnist, "BreastMNIST", Download(error, partial=True))
    with pytest.raises(DataError) as caught:
        MedMNISTDataModule("breastmnist", root=tmp_path).prepare_data()
    for part in ("breastmnist.npz", str(tmp_path), INFO["breastmnist"]["url"], "SALM_DATA_ROOT", "cannot be downloaded"):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_not_downloaded_when_that_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download = Download()
    monkeypatch.setattr(medmnist, "PathMNIST", download)
    data = MedMNISTDataModule("pathmnist", size=64, root=tmp_path, download=False)
    with pytest.raises(
        DataError, match=r"pathmnist_64\.npz: no such file, and download=False\. Put pathmnist_64\.npz from https"
    ):
        data.prepare_data()
    with pytest.raises(DataError, match=r"no such file\. Put pathmnist_64\.npz from"):
        data.setup("fit")
    assert download.calls == 0


def test_a_file_with_another_checksum_is_taken_with_one_warning(tmp_path: Path) -> None:
    write_fake_npz(tmp_path / "breastmnist.npz", MEDMNIST["breastmnist"])
    data = MedMNISTDataModule("breastmnist", root=tmp_path)
    with pytest.warns(UserWarning, match="is not the official MedMNIST file") as caught:
        data.prepare_data()
    assert BREAST_MD5 in str(caught[0].message)
    assert file_sums(tmp_path / "breastmnist.npz").md5 in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.prepare_data()
    assert len(data.split("train")) == 40


def test_the_official_file_gives_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fake_npz(tmp_path / "breastmnist_64.npz", MEDMNIST["breastmnist"])
    monkeypatch.setitem(INFO["breastmnist"], "MD5_64", file_sums(tmp_path / "breastmnist_64.npz").md5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MedMNISTDataModule("breastmnist", size=64, root=tmp_path).prepare_data()


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    write_fake_npz(tmp_path / "breastmnist_64.npz", MEDMNIST["breastmnist"])
    with pytest.raises(DataError, match=r"\(40, 28, 28\), but breastmnist with size=64"):
        MedMNISTDataModule("breastmnist", size=64, root=tmp_path).setup()


def test_any_archive_in_the_layout(tmp_path: Path) -> None:
    info = DatasetInfo("mine", Task.MULTI_CLASS, ("0", "1", "2"), channels=3, size=12)
    stored = write_fake_npz(tmp_path / "mine.npz", info)
    data = NpzDataModule(tmp_path / "mine.npz", batch_size=16)
    assert data.info == info
    assert data.source_path == tmp_path / "mine.npz"
    np.testing.assert_array_equal(data.split("test").images, stored["test_images"])
    assert NpzDataModule(str(tmp_path / "mine.npz"), task=Task.ORDINAL).task is Task.ORDINAL


def test_paths_that_are_no_archive_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder; an \.npz archive in MedMNIST's layout is taken"):
        NpzDataModule(tmp_path)
    with pytest.raises(DataError, match=r"mine\.npz: no such file"):
        NpzDataModule(tmp_path / "mine.npz")
    with pytest.raises(ConfigurationError, match="task='multiclass' is not known; did you mean 'multi-class'"):
        NpzDataModule(tmp_path / "mine.npz", task="multiclass")  # type: ignore[arg-type]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "sizes", "official"),
    [
        ("breastmnist", (546, 78, 156), True),
        ("retinamnist", (1080, 120, 400), True),
        ("bloodmnist", (11959, 1712, 3421), False),
    ],
)
def test_real_files(real_data_root: Path, name: str, sizes: tuple[int, int, int], official: bool) -> None:
    data = MedMNISTDataModule(name, root=real_data_root, download=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.prepare_data()
    assert bool(caught) is not official
    data.setup("fit")
    assert tuple(data.describe()["num_samples"].values()) == sizes
    with np.load(real_data_root / f"{name}.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(data.split("train").images, stored["train_images"])
        np.testing.assert_array_equal(data.split("test").labels, stored["test_labels"])
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (128, MEDMNIST[name].channels, 28, 28)


def test_any_finding_makes_chest_binary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = write_fake_npz(tmp_path / "chestmnist.npz", MEDMNIST["chestmnist"], (60, 12, 12), train_labels=sparse_findings())
    data = MedMNISTDataModule("chestmnist", root=tmp_path, any_finding=True)
    assert (data.info.name, data.task, data.num_classes) == ("chestmnist-any", Task.BINARY, 2)
    expected = np.array([[int(sum(row) > 0)] for row in arrays["train_labels"].tolist()])
    assert np.array_equal(data.split("train").labels, expected)
    assert 0 < expected.mean() < 1
    arguments = [
        "fit", "--data", "MedMNISTDataModule", "--data.name", "chestmnist", "--data.any_finding", "true", "--data.root", str(tmp_path),
        "--model", "NoiseGeneratorModule", "--model.method", "SALM", "--model.width", "0.125", "--trainer.max_steps", "2",
        "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path), "--run", "g",
    ]  # fmt: skip
    assert main(arguments) == 0
    release = tmp_path / "lightning_logs/g/protected"
    assert main(["verify", str(release), "--source", str(tmp_path / "chestmnist.npz")]) == 0
    assert "aligned with the source" in capsys.readouterr().out
    assert PoisonedDataModule(release).task is Task.BINARY
    other = write_fake_npz(tmp_path / "other.npz", MEDMNIST["chestmnist"], (60, 12, 12), train_labels=sparse_findings(1))
    assert other["train_labels"].any()
    checks = {check.name: check.ok for check in verify_release(release, tmp_path / "other.npz")}
    assert not checks["labels"]


def sparse_findings(seed: int = 0) -> np.ndarray:
    """Return 14 labels for 60 images, about half of which show none."""
    return (np.random.default_rng(seed).random((60, 14)) < 0.05).astype(np.uint8)


def test_any_finding_needs_several_labels(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="any_finding=True needs several labels per image, and bloodmnist has one"):
        MedMNISTDataModule("bloodmnist", root=tmp_path, any_finding=True)
