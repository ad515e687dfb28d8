"""Protecting some samples only: who is chosen, what the release holds, what verify and the victims make of it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from fakes import write_fake_npz

from salm_lightning.data import MEDMNIST, Task
from salm_lightning.data.base import DatasetInfo
from salm_lightning.errors import ConfigurationError, ReleaseError
from salm_lightning.main import main
from salm_lightning.modules import NoiseGeneratorModule
from salm_lightning.noise.methods import EM
from salm_lightning.noise.selection import Selection
from salm_lightning.release import Manifest, PoisonedDataModule
from salm_lightning.release.manifest import Coverage

INFO = DatasetInfo("toy", Task.MULTI_CLASS, ("red", "green", "blue"), 3, 28)
LABELS = np.repeat([0, 1, 2], [50, 30, 7])[np.random.default_rng(0).permutation(87)][:, None]


@pytest.mark.parametrize("percent", [20, 40, 60, 80, 100])
def test_the_same_share_of_every_class(percent: int) -> None:
    mask = Selection(percent=percent).mask(LABELS, INFO)
    for number, count in enumerate((50, 30, 7)):
        assert abs(mask[LABELS[:, 0] == number].sum() - count * percent / 100) < 1


@pytest.mark.parametrize("percent", [20, 40, 60, 80])
def test_rare_combinations_of_labels_are_taken_at_the_same_rate(percent: int) -> None:
    labels = np.array([[int(bit) for bit in f"{number:011b}"] for number in range(2048)])
    share = Selection(percent=percent).mask(labels, INFO).mean()
    assert abs(share - percent / 100) < 0.05  # 4.5 standard deviations


def test_larger_shares_contain_smaller_ones_and_seeds_differ() -> None:
    small, large = (Selection(percent=percent).mask(LABELS, INFO) for percent in (20, 60))
    assert large[small].all()
    assert (Selection(percent=20, seed=1).mask(LABELS, INFO) != small).any()


@pytest.mark.parametrize("classes", [["blue", "red"], [2, 0], ["blue", 0]])
def test_classes_by_name_and_number(classes: list[int | str]) -> None:
    assert np.array_equal(Selection(classes).mask(LABELS, INFO), LABELS[:, 0] != 1)


def test_several_labels() -> None:
    labels = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 1, 0]])
    assert Selection(["red", "blue"]).mask(labels, INFO).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Selection(percent=0), "percent=0"),
        (lambda: Selection(percent=101), "percent=101"),
        (lambda: Selection([]), r"classes=\[\] selects nothing"),
        (lambda: Selection(["gren"]).mask(LABELS, INFO), "did you mean 'green'"),
        (lambda: Selection([3]).mask(LABELS, INFO), "class=3 does not exist; toy has the classes 0 to 2"),
        (lambda: Selection(percent=1).mask(LABELS[:5], INFO), "selects none of the 5"),
    ],
)
def test_bad_input(make, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_class_wise_noise_takes_whole_classes() -> None:
    NoiseGeneratorModule(EM(noise_per="class"), 3, width=0.125, selection=Selection([0, 1]))
    with pytest.raises(ConfigurationError, match=r"selection\.percent=40 leaves some images of a class clean"):
        NoiseGeneratorModule(EM(noise_per="class"), 3, width=0.125, selection=Selection(percent=40))


def test_coverage_keeps_the_mask() -> None:
    mask = Selection(percent=40).mask(LABELS, INFO)
    coverage = Coverage.of(87, mask)
    assert np.array_equal(coverage.mask(), mask)
    assert coverage.selected == mask.sum()
    assert Coverage.of(87, None) == Coverage(87, 87, 87)


@pytest.mark.parametrize("selection", ["####", base64.b64encode(b"\xff").decode(), base64.b64encode(b"\x00" * 11).decode()])
def test_a_wrong_mask_is_refused(selection: str) -> None:
    with pytest.raises(ReleaseError, match=r"coverage\.selection"):
        Coverage(87, 87, 30, selection).mask()


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a release of BloodMNIST's layout with 40 percent of two classes protected, and its source."""
    folder = tmp_path_factory.mktemp("selection")
    source = folder / "bloodmnist.npz"
    write_fake_npz(source, _blood(), (80, 16, 16))
    arguments = [
        "--data", "MedMNISTDataModule", "--data.name", "bloodmnist", "--data.root", str(folder),
        "--data.batch_size", "32", "--data.chunk_size", "32",
        "--model", "NoiseGeneratorModule", "--model.method", "SALM", "--model.width", "0.125", "--model.selection.percent", "40",
        "--model.selection.classes", "[1, basophil]", "--trainer.max_steps", "4", "--trainer.accelerator", "cpu",
        "--trainer.default_root_dir", str(folder), "--run", "run",
    ]  # fmt: skip
    assert main(["fit", *arguments]) == 0
    return folder / "lightning_logs" / "run" / "protected", source


def _blood() -> DatasetInfo:
    known = MEDMNIST["bloodmnist"]
    return DatasetInfo("bloodmnist", known.task, known.class_names, known.channels, 28)


def test_only_the_selected_change(release: tuple[Path, Path]) -> None:
    folder, source = release
    with np.load(source) as before, np.load(folder / "bloodmnist.npz") as after:
        changed = (before["train_images"] != after["train_images"]).reshape(80, -1).any(axis=1)
        labels = before["train_labels"][:, 0]
    mask = Manifest.read(folder).coverage.mask()
    assert np.array_equal(changed, mask)
    assert set(labels[changed]) == {0, 1}
    assert [int(changed[labels == number].sum()) for number in (0, 1)] == [4, 4]


def test_verify_knows_the_selection(release: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder, source = release
    assert main(["verify", str(folder), "--source", str(source)]) == 0
    printed = capsys.readouterr().out
    assert "8 of them selected" in printed
    assert "72 training images untouched" in printed


def test_verify_finds_a_change_outside(release: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A manifest that names other images than those that carry noise does not pass."""
    folder, source = release
    copy = tmp_path / "protected"
    copy.mkdir()
    for entry in folder.iterdir():
        (copy / entry.name).write_bytes(entry.read_bytes())
    values = json.loads((copy / "manifest.json").read_text())
    other = ~Manifest.read(folder).coverage.mask()
    other[np.flatnonzero(other)[8:]] = False
    values["coverage"]["selection"] = Coverage.of(80, other).selection
    (copy / "manifest.json").write_text(json.dumps(values))
    assert main(["verify", str(copy), "--source", str(source)]) != 0
    assert "8 images that were not selected differ" in capsys.readouterr().out


@pytest.mark.parametrize(("part", "count"), [("all", 80), ("protected", 8), ("clean", 72)])
def test_victims_see_the_part_they_ask_for(release: tuple[Path, Path], part: str, count: int) -> None:
    folder, _ = release
    assert len(PoisonedDataModule(folder, part=part).split("train")) == count


@pytest.mark.parametrize("part", ["protected", "clean"])
def test_a_part_of_a_memory_mapped_release_is_not_copied(
    release: tuple[Path, Path], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = release
    monkeypatch.setenv("SALM_CACHE_DIR", str(tmp_path))
    train = PoisonedDataModule(folder, part=part, resident="mapped").split("train")
    assert not isinstance(train.images, np.ndarray)
    with np.load(folder / "bloodmnist.npz") as arrays:
        rows = Manifest.read(folder).coverage.mask() == (part == "protected")
        np.testing.assert_array_equal(train.images[:], arrays["train_images"][rows])
        np.testing.assert_array_equal(train.labels, arrays["train_labels"][rows])
