"""Folders of images at the working size: decoded once and exactly, split by patients, and seen by every command that takes data."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salm_lightning.data import FolderDataModule, Task
from salm_lightning.data.folder import read_folder
from salm_lightning.data.holdout import holdout
from salm_lightning.data.survey import survey
from salm_lightning.data.working import at_working_size, decode
from salm_lightning.errors import ConfigurationError, DataError
from salm_lightning.main import main
from salm_lightning.release import Manifest

RNG = np.random.default_rng(0)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Images of two classes and several shapes, without splits."""
    for number in range(20):
        for name, base in (("a", 60), ("b", 160)):
            shape = (16 + number % 3, 20)
            save(tmp_path / "scans" / name / f"{number}.png", (base + RNG.integers(0, 60, shape)).astype(np.uint8))
    return tmp_path / "scans"


def table(root: Path, rows: list[str], head: str = "file,label,patient") -> Path:
    for row in rows:
        save(root / f"{row.partition(',')[0]}.png", RNG.integers(0, 256, (9, 9), np.uint8))
    (root / "labels.csv").write_text("\n".join([head, *rows]))
    return root


def test_images_are_scaled_as_pillow_does(scans: Path) -> None:
    data = FolderDataModule(scans, size=12).load()
    assert (data.task, data.num_classes, data.channels, data.image_size) == (Task.BINARY, 2, 1, 12)
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [32, 8, 8]
    for row, image in zip(data.working.images, data.survey.folder.images, strict=True):
        with Image.open(scans / image.path) as file:
            np.testing.assert_array_equal(row, np.asarray(file.resize((12, 12), Image.Resampling.BILINEAR)))


def test_the_working_size_is_at_most_that_of_the_images(scans: Path) -> None:
    assert FolderDataModule(scans).image_size == 17
    with pytest.raises(ConfigurationError, match="size=7 is out of range"):
        FolderDataModule(scans, size=7)


def test_depth_is_mapped_by_the_range(scans: Path) -> None:
    for path in scans.rglob("*.png"):
        save(path, RNG.integers(1000, 3001, (12, 12)).astype(np.uint16))
    data = FolderDataModule(scans, size=12, range="1500:2500").load()
    with Image.open(scans / data.survey.folder.images[0].path) as file:
        expected = np.rint((np.clip(np.asarray(file).astype(float), 1500, 2500) - 1500) * 255 / 1000)
    np.testing.assert_array_equal(data.working.images[0], expected)
    tails = FolderDataModule(scans, size=12).load().working.values
    pixels = np.concatenate([np.asarray(Image.open(path)).ravel() for path in scans.rglob("*.png")])
    np.testing.assert_allclose(tails, np.percentile(pixels, (0.5, 99.5)), atol=3)
    assert data.describe()["folder"]["range"] == "1500:2500"
    with pytest.raises(ConfigurationError, match=r"range=3 is no range .*30000:34000"):
        FolderDataModule(scans, range="3")


def test_turned_images_are_seen_upright(scans: Path) -> None:
    image = Image.fromarray(np.repeat(np.uint8([[0], [255]]), 8, axis=1).repeat(4, axis=0))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(scans / "a/0.png", exif=exif)
    data = FolderDataModule(scans, size=8).load()
    (row,) = (row for row, image in zip(data.working.images, data.survey.folder.images, strict=True) if image.path == "a/0.png")
    assert row[:, :3].min() == 255
    assert row[:, 5:].max() == 0


def test_grey_and_colour_are_one_way_for_a_folder(scans: Path) -> None:
    grey = np.repeat(RNG.integers(0, 256, (12, 12, 1), np.uint8), 3, axis=2)
    for number in range(20):
        save(scans / "a" / f"{number}.png", grey + np.uint8(number))
    assert FolderDataModule(scans).channels == 1
    save(scans / "a/0.png", RNG.integers(0, 256, (12, 12, 3), np.uint8))
    assert FolderDataModule(scans).load().split("train").images.shape[1:] == (16, 16, 3)
    assert at_working_size(np.zeros((2, 5, 7, 1), np.uint8), 8, 3).shape == (2, 8, 8, 3)


def test_a_second_look_decodes_nothing(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = survey(read_folder(scans))
    first = decode(found, 8, 1)
    monkeypatch.setattr("salm_lightning.data.formats.pixels_and_kept", None)
    again = decode(found, 8, 1)
    np.testing.assert_array_equal(first.images, again.images)
    assert first.sums == again.sums


def test_a_killed_decoding_goes_on(scans: Path, tmp_path: Path) -> None:
    program = (
        "import salm_lightning.data.working as w\nfrom salm_lightning.data.folder import read_folder\n"
        "from salm_lightning.data.survey import survey\nimport time\nfrom pathlib import Path\n"
        f"found = survey(read_folder({str(scans)!r}))\n"
        "w._AT_ONCE, w._KEEP, read = 4, 0.0, w.formats.pixels_and_kept\n"
        "def slowly(path):\n    print('one', flush=True)\n    time.sleep(0.05)\n    return read(path)\n"
        "w.formats.pixels_and_kept = slowly\nw.in_processes = lambda work, tasks, few: map(work, tasks)\n"
        f"found = w.decode(found, 8, 1, place=Path({str(tmp_path / 'place')!r}))\n"
        "print(int(found.images.sum()))\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    for _ in range(12):
        assert killed.stdout is not None
        killed.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert 10 < done.count("one") < 40
    assert int(done[-1]) == int(decode(survey(read_folder(scans)), 8, 1).images.sum())


def test_damage_and_changes_are_noticed(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salm_lightning.data.survey._SAMPLE", 1)
    whole = (scans / "a/3.png").read_bytes()
    at = whole.index(b"IDAT") + 40
    (scans / "a/3.png").write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    with pytest.raises(DataError, match=r"^1 images cannot be read: a/3\.png is damaged"):
        FolderDataModule(scans).load()
    (scans / "a/3.png").write_bytes(whole)
    data = FolderDataModule(scans).load()
    before = data.checksum()
    time.sleep(0.01)
    os.utime(scans / "a/3.png")
    with pytest.raises(DataError, match="was changed or removed after it was opened"):
        data.checksum()
    assert FolderDataModule(scans).load().checksum() == before


def test_a_full_disk_is_named(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"Images cannot be kept in .*No space left .*Set SALM_CACHE_DIR"):
        FolderDataModule(scans).load()


def test_two_at_once_decode_once(scans: Path) -> None:
    program = (
        "import sys, salm_lightning.data.working as w\nfrom salm_lightning.data.folder import read_folder\n"
        "from salm_lightning.data.survey import survey\nimport time\n"
        f"found = survey(read_folder({str(scans)!r}))\nread, count = w.formats.pixels_and_kept, []\n"
        "def slowly(path):\n    count.append(path)\n    time.sleep(0.05)\n    return read(path)\n"
        "w.formats.pixels_and_kept = slowly\nw.decode(found, 8, 1)\nprint(len(count))\n"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ends = [run.communicate(timeout=200) for run in runs]
    assert sorted(int(out) for out, _ in ends) == [0, 40]


def test_a_folder_with_problems_is_refused_in_one_line(scans: Path) -> None:
    (scans / "a/bad.png").touch()
    with pytest.raises(
        DataError, match=r"cannot be protected as it is \(is empty: 1\)\. salm-cli inspect .*scans lists them"
    ) as refused:
        FolderDataModule(scans)
    assert "\n" not in str(refused.value)


def test_twins_in_two_splits_are_found_in_other_containers(scans: Path) -> None:
    for split in ("train", "test"):
        (scans / split).mkdir()
    (scans / "a").rename(scans / "train/a")
    (scans / "b").rename(scans / "train/b")
    for number in range(3):
        save(scans / "test/a" / f"{number}.png", RNG.integers(0, 256, (9, 9), np.uint8))
    with Image.open(scans / "train/b/1.png") as file:
        (scans / "test/b").mkdir()
        file.save(scans / "test/b/1.tif")
    with pytest.raises(DataError, match=r"1 images that are in several splits: train/b/1\.png as test/b/1\.tif"):
        FolderDataModule(scans).load()
    FolderDataModule(scans, allow_leak=True).load()


@pytest.mark.parametrize("seed", range(3))
def test_the_holdout_keeps_patients_together_and_classes_apart(tmp_path: Path, seed: int) -> None:
    rows = [f"{number},{'xyz'[number % 3 if number % 7 else 2]},p{number // 4}" for number in range(120)]
    folder = read_folder(table(tmp_path, rows))
    held = holdout(folder, 0.25, seed)
    assert held.sum() == pytest.approx(30, abs=8)
    images = folder.images
    assert not {images[n].group for n in np.flatnonzero(held)} & {images[n].group for n in np.flatnonzero(~held)}
    for part in (held, ~held):
        assert {images[n].labels for n in np.flatnonzero(part)} == {(0,), (1,), (2,)}
    np.testing.assert_array_equal(held, holdout(folder, 0.25, seed))
    assert (held != holdout(folder, 0.25, seed + 1)).any()


def test_the_holdout_is_stratified_without_patients(tmp_path: Path) -> None:
    rows = [f"{number},{'x' if number < 40 else 'y' if number < 98 else 'z'}" for number in range(100)]
    held = holdout(read_folder(table(tmp_path, rows, "file,label")), 0.2, 0)
    counts = np.bincount([image.labels[0] for image, out in zip(read_folder(tmp_path).images, held, strict=True) if out])
    assert counts.tolist() == [8, 12, 1]


def test_several_labels_and_all_protected(tmp_path: Path) -> None:
    rows = [f"{number},{'|'.join(w for bit, w in enumerate('xyz') if number >> bit & 1)}" for number in range(64)]
    data = FolderDataModule(table(tmp_path, rows, "file,labels"), size=8, protects="all").load()
    assert data.task is Task.MULTI_LABEL
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [64, 13, 13]
    assert data.split("train").labels.sum(axis=0).tolist() == [32, 32, 32]
    assert data.describe()["folder"] == {"holdout": 0.2, "holdout_seed": 0, "protects": "all"}


def test_labels_are_a_part_of_what_data_are(tmp_path: Path) -> None:
    rows = [f"{number},{'xy'[number % 2]}" for number in range(12)]
    before = FolderDataModule(table(tmp_path, rows, "file,label"), size=8).load().checksum()
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows[1:], "0,y"]))
    assert FolderDataModule(tmp_path, size=8).load().checksum() != before


def test_every_command_sees_a_folder(scans: Path, workplace: None, capsys: pytest.CaptureFixture[str]) -> None:
    fit = "--model.width 0.1 --trainer.max_steps 2 --trainer.accelerator cpu --trainer.default_root_dir runs"
    data = f"--config dataset/folder.yaml --data.path {scans} --data.size 8 --data.holdout 0.3"
    assert main(shlex.split(f"fit --config method/em.yaml {data} {fit}")) == 0
    (release,) = Path("runs").rglob("protected")
    assert Manifest.read(release).dataset["folder"] == {"holdout": 0.3, "holdout_seed": 0}
    assert f"salm-cli verify {release} --source {scans}" in capsys.readouterr().out
    assert main(shlex.split(f"verify {release} --source {scans}")) == 0
    os.utime(scans / "a/1.png")
    assert main(shlex.split(f"verify {release} --source {scans}")) == 0
    save(scans / "a/1.png", np.zeros((9, 9), np.uint8))
    assert main(shlex.split(f"verify {release} --source {scans}")) == 1
    assert "FAIL source" in capsys.readouterr().out
    assert main(shlex.split(f"fit --config victim.yaml --data {scans} {fit}")) == 0


def test_options_of_folders_are_for_folders(workplace: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split("protect synthetic --label_column x")) == 2
    assert "label_column=x is for folders of images, and data=synthetic is none" in capsys.readouterr().err
