"""Image files that anybody may have changed: an error of ours that names the file, or an image; nothing else, in bounded memory."""

from __future__ import annotations

import resource
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_damage import change
from test_formats import saved
from test_formats_dicom import files_of_pydicom
from test_formats_jpeg import coarse, jpeg
from test_formats_jpeg import scene as photograph
from test_formats_png import EXIF_WITH_THUMBNAIL, noisy, with_chunks
from test_formats_tiff import scene, tiff

from salm_lightning.data import formats

CASES = 1500
ROOM = 2**29
SMALL = photograph((40, 24))
FILES: dict[str, Callable[[], list[bytes]]] = {
    "png": lambda: [
        with_chunks(saved("RGBA"), (b"eXIf", EXIF_WITH_THUMBNAIL), (b"tEXt", b"a\0b")),
        saved("L"),
        saved("RGB"),
    ],
    "jpeg": lambda: [
        jpeg(SMALL, subsampling=2, exif=b"Exif\0\0" + EXIF_WITH_THUMBNAIL, comment=b"x"),
        jpeg(SMALL, subsampling=0, optimize=True),
        jpeg(SMALL.convert("L")),
        jpeg(SMALL, progressive=True),
    ],
    "tiff": lambda: [
        tiff(scene((24, 30, 3)), compression="lzw", predictor=True, rowsperstrip=5),
        tiff(scene((2, 24, 30), 16), tile=(16, 16), compression="zlib", bigtiff=True),
        tiff(scene((24, 30)), byteorder=">", description="text" * 9),
    ],
    "dicom": lambda: [
        files_of_pydicom()[name].read_bytes()
        for name in (
            "MR_small_implicit.dcm",
            "MR_small_RLE.dcm",
            "MR_small_jpeg_ls_lossless.dcm",
            "SC_rgb_small_odd_big_endian.dcm",
        )
    ],
}


def crossed(rng: np.random.Generator, content: bytes, kind: str) -> bytes:
    """Return changed bytes; of a PNG, whose sums would hide the rest, in half of the cases with sums that are right."""
    made = change(rng, content)
    if kind == "png" and rng.integers(2):
        at = 8
        while at + 12 <= len(made):
            length = min(int.from_bytes(made[at : at + 4], "big"), len(made))
            body = made[at + 4 : at + 8 + length]
            made = made[: at + 8 + length] + zlib.crc32(body).to_bytes(4, "big") + made[at + 12 + length :]
            at += 12 + length
    return made


@pytest.mark.parametrize("kind", FILES)
def test_changed_files_give_an_error_of_ours_or_an_image(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salm_lightning.files.flush", lambda path: None)
    rng = np.random.default_rng(11)
    path, target = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
    contents, read = FILES[kind](), 0
    refused: list[str] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cases = CASES // 3 if kind == "dicom" else CASES  # which is decoded more slowly
    for _ in range(cases):
        path.write_bytes(crossed(rng, contents[rng.integers(len(contents))], kind))
        begin = time.monotonic()
        try:
            known = formats.facts(path)
            pixels = formats.read(path)
        except formats.UnsupportedImage as error:
            refused.append(str(error))
            continue
        finally:
            assert time.monotonic() - begin < 5
        read += 1
        assert pixels.shape == known.shape
        if read % 10 == 0 and pixels.size < 10**6:
            try:
                written = formats.write(path, coarse(pixels) if kind == "jpeg" else noisy(path), target, 8)
            except formats.UnsupportedImage:
                continue
            assert written.largest <= 8
            assert formats.unexplained(path, target) == []
            if kind != "dicom":
                with warnings.catch_warnings(), Image.open(target) as image:
                    warnings.simplefilter("ignore")
                    image.load()
    assert read > cases // 200
    assert all(str(path) in line and "\n" not in line and len(line) < 400 for line in refused)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < ROOM
