"""Folders of images as people have them: junk that programs leave behind, splits, turned and deep images, broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salm_lightning.data.combined import support_of_folder
from salm_lightning.data.image_folder import image_classes, read_image
from salm_lightning.data.mapped import Scratch
from salm_lightning.errors import DataError

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(RAMP + number).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def test_what_programs_leave_behind_is_neither_a_class_nor_an_image(folder: Path) -> None:
    for junk in (".ipynb_checkpoints/x.png", "cat/.ipynb_checkpoints/0-checkpoint.png", "cat/._0.png", "__MACOSX/cat/0.png"):
        (folder / junk).parent.mkdir(parents=True, exist_ok=True)
        (folder / junk).write_bytes(b"junk")
    (folder / "cat/Thumbs.db").write_bytes(b"junk")
    (folder / "cat/more").mkdir()
    Image.fromarray(RAMP).save(folder / "cat/more/4.PNG")
    classes = image_classes(folder, "support")
    assert list(classes) == ["cat", "dog"]
    assert [path.name for path in classes["cat"]] == ["0.png", "1.png", "2.png", "3.png", "4.PNG"]
    splits, names = support_of_folder(folder, 8, None, 0, Scratch())
    assert names == ("cat", "dog")
    assert sum(map(len, splits.values())) == 9


@pytest.mark.parametrize("name", ["train", "Test", "val"])
def test_splits_are_not_taken_for_classes(folder: Path, name: str) -> None:
    (folder / name / "cat").mkdir(parents=True)
    with pytest.raises(
        DataError, match=rf"support=.*photos holds the folders {name}, which are splits and no classes; .*{name}\."
    ):
        image_classes(folder, "support")


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, ending: str) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * 257 + 100).save(tmp_path / f"deep.{ending}")
    read = read_image(tmp_path / f"deep.{ending}", "support")
    np.testing.assert_array_equal(read, np.repeat(RAMP[..., None], 3, axis=2))


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_turned_photos_are_read_upright(tmp_path: Path, ending: str) -> None:
    stored = np.zeros((8, 16), np.uint8)
    stored[:, :8] = 255
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / f"turned.{ending}", **({"tiffinfo": {0x0112: 6}} if ending == "tif" else {"exif": exif}))
    read = read_image(tmp_path / f"turned.{ending}", "support")
    assert read.shape == (16, 8, 3)
    assert read[:7].min() > 200
    assert read[9:].max() < 50


@pytest.mark.parametrize(("kind", "what"), [(np.float32, "floating-point"), (np.int32, "32-bit")])
def test_numbers_of_an_unknown_range_are_refused_by_name(tmp_path: Path, kind: type, what: str) -> None:
    Image.fromarray(RAMP.astype(kind) / kind(255)).convert("F" if kind is np.float32 else "I").save(tmp_path / "scan.tif")
    with pytest.raises(DataError, match=rf"support: .*scan\.tif holds {what} numbers"):
        read_image(tmp_path / "scan.tif", "support")


def test_a_broken_file_is_named(folder: Path) -> None:
    whole = (folder / "dog/2.png").read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"no image"):
        (folder / "dog/2.png").write_bytes(broken)
        with pytest.raises(DataError, match=r"support: .*dog/2\.png cannot be read"):
            support_of_folder(folder, 8, None, 0, Scratch())
