"""Files of any container: what is refused before a pixel is decoded, in one line, and what turning does."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from salm_lightning.data import formats
from salm_lightning.data.formats import UnsupportedImage
from salm_lightning.files import beside, replacing


def picture(mode: str = "RGB", size: tuple[int, int] = (20, 12)) -> Image.Image:
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(30, 220, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def saved(mode: str = "RGB", form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture(mode).save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><p>404", "is a web page"),
        ("\ufeff<html>".encode(), "is a web page"),
        (b"no picture", "is text"),
        (b"GIF89a" + bytes(20), "is a GIF"),
        (bytes(128) + b"DICM", "does not say how it is coded"),
        (bytes.fromhex("0800050043530a00") + bytes(20), "is a DICOM file without its preamble"),
        (b"\x1f\x8b" + bytes(20), "is packed with gzip"),
        (bytes(20), "is of an unknown kind"),
    ],
)
def test_what_is_no_image_is_refused_by_its_content(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "scan 'ü'\n.jpg"
    path.write_bytes(content)
    for call in (formats.facts, formats.read, formats.pixels_and_kept):
        with pytest.raises(UnsupportedImage) as error:
            call(path)
        assert str(error.value).startswith(f"{tmp_path}/scan 'ü'\\n.jpg {reason}")
        assert "\n" not in str(error.value)
        assert "; " in str(error.value)
        assert error.value.path == path
        assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def long_file(path: Path) -> None:
    with path.open("wb") as stream:
        stream.write(b"\xff\xd8\xff")
        stream.truncate(2**31 + 1)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Path.mkdir, "is no file"),
        (os.mkfifo, "is no file"),
        (lambda path: None, r"cannot be read \("),
        (long_file, "has 2,147,483,649 bytes"),
    ],
    ids=["folder", "pipe", "missing", "large"],
)
def test_what_cannot_be_opened_is_refused(make: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    make(tmp_path / "a.png")
    for call in (formats.facts, formats.read):
        with pytest.raises(UnsupportedImage, match=rf"a\.png {reason}"):
            call(tmp_path / "a.png")


def test_the_content_decides_and_says_so(tmp_path: Path) -> None:
    for name, misnamed in (("a.jpg", True), ("a.PNG", False), ("a", False)):
        (tmp_path / name).write_bytes(saved())
        known = formats.facts(tmp_path / name)
        assert (known.container, known.misnamed) == ("PNG", misnamed)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_is_pillows_and_turning_back_undoes_it(orientation: int) -> None:
    image = picture()
    image.getexif()[0x112] = orientation
    pixels = np.asarray(image)[None]
    turned = formats.upright(pixels, orientation)
    np.testing.assert_array_equal(turned[0], np.asarray(ImageOps.exif_transpose(image)))
    np.testing.assert_array_equal(formats.stored(turned, orientation), pixels)
    np.testing.assert_array_equal(formats.upright(pixels[..., 0], orientation), turned[..., 0])


def test_write_refuses_what_breaks_its_promise(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved())
    pixels = formats.read(path)
    for wrong in (pixels[:, 1:], pixels.astype(np.uint16), pixels + np.uint8(9)):
        with pytest.raises(ValueError, match="the pixels"):
            formats.write(path, wrong, tmp_path / "b.png", 8)
    assert not (tmp_path / "b.png").exists()


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    name = "ä" * 125 + "x.png"
    assert len(os.fsencode(name)) == 255
    (tmp_path / name).write_bytes(saved())
    (tmp_path / "out").mkdir()
    formats.write(tmp_path / name, formats.read(tmp_path / name), tmp_path / "out" / name, 0)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    with replacing(tmp_path / "out" / name) as temporary:
        assert temporary == beside(tmp_path / "out" / name)
        temporary.write_bytes(b"")
