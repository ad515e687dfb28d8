"""TIFF: pixels exact by tifffile and OpenCV, every tag as it was, and nothing left of the old pixels and of small pictures."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage
import tifffile
from PIL import Image
from test_formats import saved
from test_formats_png import noisy

from salm_lightning.data import formats
from salm_lightning.data.formats import UnsupportedImage

PIECES = (273, 279, 324, 325)
LENGTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


def scene(shape: tuple[int, ...], bits: int = 8) -> np.ndarray:
    """Return smooth shapes that compress, a value that does not repeat in noise."""
    rng = np.random.default_rng(4)
    flat = np.add.outer(
        np.arange(shape[-3] if shape[-1] in (3, 4) else shape[-2]), np.arange(shape[-2] if shape[-1] in (3, 4) else shape[-1])
    )
    flat = flat[..., None] if shape[-1] in (3, 4) else flat
    return ((flat * (300 if bits == 16 else 1) + rng.integers(0, 3, shape)) % 2**bits).astype(
        np.uint8 if bits == 8 else np.uint16
    )


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    colour = pixels.shape[-1] == 3 or options.get("planarconfig") == "separate"
    tifffile.imwrite(stream, pixels, **{"photometric": "rgb" if colour else "minisblack", "metadata": None, **options})
    return stream.getvalue()


def tree(content: bytes, start: int | None = None) -> list[dict[int, object]]:
    """Return the tags of the directories that follow each other, with those in them: a walk of this test's own."""
    order = "<" if content[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", content, 2)[0] == 43
    wide, count, room = ("Q", "Q", 8) if big else ("L", "H", 4)
    (at,) = struct.unpack_from(order + wide, content, 8 if big else 4) if start is None else (start,)
    pages = []
    while at:
        (number,) = struct.unpack_from(order + count, content, at)
        at += struct.calcsize("=" + count)
        tags: dict[int, object] = {}
        for _ in range(number):
            tag, kind, values = struct.unpack_from(f"{order}HH{wide}", content, at)
            place = at + 4 + room
            if LENGTHS[kind] * values > room:
                (place,) = struct.unpack_from(order + wide, content, place)
            tags[tag] = (kind, values, content[place : place + LENGTHS[kind] * values])
            if tag in (34665, 34853):
                (inner,) = struct.unpack_from(order + "L", content, place)
                tags[tag] = tree(content, inner)[0]
            at += 4 + 2 * room
        pages.append({tag: value for tag, value in tags.items() if tag not in PIECES})
        (at,) = struct.unpack_from(order + wide, content, at)
        if start is not None:
            break
    return pages


def check(source: Path, target: Path, expected: np.ndarray) -> formats.Written:
    """Write noise, and read it back by tifffile; the pages' own shape is kept."""
    made = noisy(source)
    written = formats.write(source, made, target, 8)
    assert (written.largest, written.noise_kept) == (8, 1.0)
    np.testing.assert_array_equal(formats.read(source).reshape(expected.shape), expected)
    stored = np.stack([page.asarray() for page in tifffile.TiffFile(target).pages])
    if stored.ndim == 4 and stored.shape[1] == 3:
        stored = np.moveaxis(stored, 1, -1)
    np.testing.assert_array_equal(stored.reshape(made.shape), made)
    assert formats.unexplained(source, target) == []
    assert formats.differences(source, target) == list(written.changed)
    return written


@pytest.mark.parametrize("shape", [(33, 50), (33, 50, 3), (3, 33, 50), (2, 33, 50, 3)])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("options", [
    {}, {"compression": "lzw"}, {"compression": "zlib", "predictor": True}, {"compression": "lzw", "predictor": True, "byteorder": ">"},
    {"tile": (16, 32), "compression": "zlib"}, {"tile": (16, 16), "byteorder": ">"}, {"bigtiff": True, "rowsperstrip": 7},
    {"bigtiff": True, "byteorder": ">", "compression": "lzw", "rowsperstrip": 5}, {"compression": "adobe_deflate", "rowsperstrip": 1},
])  # fmt: skip
def test_pixels_are_exact_and_tags_stay(options: dict[str, object], bits: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    source, target = tmp_path / "a.tif", tmp_path / "b.tif"
    pixels = scene(shape, bits)
    extra = [(65000, "s", 0, "a private tag", True), (65001, "B", 5, b"12345", True), (270, "s", 0, "described", True)]
    pages = pixels if len(shape) - (shape[-1] == 3) == 3 else pixels[None]
    with tifffile.TiffWriter(source, bigtiff=bool(options.get("bigtiff")), byteorder=options.get("byteorder")) as writer:  # type: ignore[arg-type]
        for page in pages:
            writer.write(
                page,
                photometric="rgb" if shape[-1] == 3 else "minisblack",
                metadata=None,
                extratags=extra,
                resolution=(300, 300),
                **{name: value for name, value in options.items() if name not in ("bigtiff", "byteorder")},  # type: ignore[arg-type]
            )
    known = formats.facts(source)
    assert (known.pages, known.height, known.width, known.bits) == (len(pages), 33, 50, bits)
    assert check(source, target, pixels).changed == ()
    assert tree(source.read_bytes()) == tree(target.read_bytes())
    for number in range(len(pages)):
        ours = cv2.imreadmulti(str(target), number, 1, flags=cv2.IMREAD_UNCHANGED)[1][0]
        theirs = noisy(source)[number]
        np.testing.assert_array_equal(ours, theirs[..., ::-1] if shape[-1] == 3 else theirs[..., 0])


def test_planes_one_after_the_other(tmp_path: Path) -> None:
    source = tmp_path / "a.tif"
    pixels = scene((33, 50, 3))
    source.write_bytes(
        tiff(np.moveaxis(pixels, -1, 0), planarconfig="separate", compression="lzw", predictor=True, rowsperstrip=8)
    )
    assert check(source, tmp_path / "b.tif", pixels).changed == ()
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "b.tif"))[..., ::-1], noisy(source)[0])


@pytest.mark.parametrize("compression", [None, "lzw"])
def test_exif_and_profiles_move_along(compression: str | None, tmp_path: Path) -> None:
    source, target = tmp_path / "a.tif", tmp_path / "b.tif"
    profile = saved("L", "JPEG") + b"profile"
    extra = [(34664, "I", 1, 0, True), (274, "H", 1, 6, True), (700, "B", 7, b"<xmp/>\n", True)]
    content = tiff(scene((33, 50, 3)), compression=compression, iccprofile=profile, extratags=extra)
    content = content.replace(struct.pack("<HHL", 34664, 4, 1), struct.pack("<HHL", 34665, 4, 1))
    content += bytes(len(content) % 2)
    at = len(content)  # of EXIF with a comment, and GPS in it
    comment, gps = b"ASCII\0\0\0a comment", struct.pack("<HHHL4sL", 1, 1, 2, 2, b"N\0\0\0", 0)
    exif = struct.pack("<HHHLLHHLLL", 2, 37510, 7, 17, at + 48, 34853, 4, 1, at + 30, 0)
    source.write_bytes(with_value(content, 34665, at) + exif + gps + comment)
    assert tree(source.read_bytes())[0][34665][37510][2] == comment  # type: ignore[index]
    assert (formats.facts(source).orientation, formats.facts(source).thumbnails) == (6, 0)
    assert check(source, target, scene((33, 50, 3))).changed == ()
    assert tree(source.read_bytes()) == tree(target.read_bytes())
    with Image.open(target) as image:
        assert image.getexif().get_ifd(0x8769)[0x9286] == comment
        assert image.info["icc_profile"] == profile


def test_small_pictures_are_left_out(tmp_path: Path) -> None:
    source, target = tmp_path / "a.tif", tmp_path / "b.tif"
    pixels, thumbnail = scene((64, 64)), saved("L", "JPEG")
    with tifffile.TiffWriter(source) as writer:
        extra = [(34377, "B", 0, b"8BIM" + thumbnail + b"8BIM", True), (37724, "B", 9, b"of layers", True)]
        writer.write(pixels, subifds=2, extratags=extra, metadata=None)
        writer.write(pixels[::2, ::2], subfiletype=1, metadata=None)
        writer.write(pixels[::4, ::4], subfiletype=1, metadata=None)
        writer.write(pixels[::8, ::8], subfiletype=1, metadata=None)
        writer.write(pixels[::-1], metadata=None)
    assert (formats.facts(source).pages, formats.facts(source).thumbnails) == (2, 5)
    written = check(source, target, np.stack([pixels, pixels[::-1]]))
    assert written.changed == (
        *(
            "tag 330 (SubIFDs) is gone",
            "tag 34377 (Photoshop) differs",
            "tag 37724 (ImageSourceData) is gone",
            "small page is gone",
        ),
    )
    content = target.read_bytes()
    assert len(tifffile.TiffFile(target).pages) == 2
    for old in (thumbnail[:100], b"of layers", pixels[8].tobytes(), pixels[::2, ::2][8].tobytes(), pixels[::4, ::4][8].tobytes()):
        assert old in source.read_bytes()
        assert old not in content
    assert formats.facts(target).thumbnails == 0


def test_pages_that_are_kinds_of_their_own_and_changes_are_named(tmp_path: Path) -> None:
    first, second = tmp_path / "a.tif", tmp_path / "b.tif"
    first.write_bytes(tiff(scene((33, 50)), description="one", software="this"))
    second.write_bytes(tiff(scene((33, 50)), description="two", byteorder=">"))
    differing = formats.unexplained(first, second)
    assert "byte order differs" in differing
    assert "tag 270 (ImageDescription) differs" in differing
    assert "tag 305 differs" in differing


def with_value(content: bytes, tag: int, value: int) -> bytes:
    """Return a TIFF of this machine's order with another number in its tag."""
    (at,) = struct.unpack_from("<L", content, 4)
    for place in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", content, at)[0], 12):
        if struct.unpack_from("<H", content, place)[0] == tag:
            return content[: place + 8] + struct.pack("<L", value) + content[place + 12 :]
    raise AssertionError(tag)


def pages_of_two_sizes() -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(scene((33, 50)), metadata=None)
        writer.write(scene((30, 50)), metadata=None)
    return stream.getvalue()


def rgba() -> bytes:
    stream = io.BytesIO()
    Image.new("RGBA", (9, 9)).save(stream, "TIFF")
    return stream.getvalue()


def by_pillow(mode: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 40)).convert(mode).save(stream, "TIFF", **options)
    return stream.getvalue()


PLAIN = tiff(scene((33, 50)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(scene((33, 50)).astype(np.float32)), "holds floating-point numbers"),
        (tiff(scene((33, 50)).astype(np.int16)), "holds signed integers"),
        (tiff(scene((33, 50)).astype(np.uint32)), "has 32 bits"),
        (by_pillow("1"), "has 1 bits"),
        (by_pillow("P"), "has colours that are a palette"),
        (by_pillow("CMYK"), "has colours that are CMYK"),
        (by_pillow("RGB", compression="jpeg"), "is compressed with JPEG"),
        (by_pillow("L", compression="packbits"), "is compressed with PackBits"),
        (tiff(scene((33, 50)), photometric="miniswhite"), "has colours that are black where it should be white"),
        (rgba(), "has 4 values a pixel"),
        (pages_of_two_sizes(), "has pages of several sizes"),
        (tiff(scene((33, 50)), subfiletype=1), "has no page but for thumbnails"),
        (with_value(tiff(scene((33, 50)), subfiletype=1), 254, 4), "has a page that is a mask"),
        (tiff(scene((33, 50)), extratags=[(34412, "B", 5, b"12345", True)]), "is a Zeiss LSM"),
        (tiff(scene((33, 50)), description="ImageJ=1.53\nimages=7\n"), "holds images that only its description tells of"),
        (PLAIN[:-20] if PLAIN.rindex(scene((33, 50)).tobytes()[-30:]) > 400 else PLAIN, "is cut off"),
        (PLAIN[:4], "is damaged"),
        (PLAIN[:60], "is damaged"),
        (with_value(PLAIN, 256, 30000)[:], "is damaged"),
        (with_value(with_value(PLAIN, 256, 30000), 257, 30000), "has 30000 x 30000 pixels"),
        (with_value(PLAIN, 256, 0), "has no pixels"),
        (with_value(PLAIN, 278, 8), "is damaged"),
    ],
)  # fmt: skip
def test_refusals_come_from_the_headers_alone(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(UnsupportedImage, match=rf"a\.tif {reason}.*; .*\.$"):
        formats.facts(path) if reason != "is damaged" else formats.read(path)


def test_lzw_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(scene((33, 50)), compression="lzw"))
    monkeypatch.setattr("salm_lightning.data.formats.tiff.find_spec", lambda name: None)
    with pytest.raises(UnsupportedImage, match=r"pip install 'salm-lightning\[tiff\]'"):
        formats.facts(tmp_path / "a.tif")
    (tmp_path / "a.tif").write_bytes(PLAIN)
    formats.facts(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", ["lzw", "zlib"])
def test_pieces_that_are_too_short_are_found(compression: str, tmp_path: Path) -> None:
    """Other readers fill up what is missing."""
    content = tiff(scene((33, 50)), compression=compression)
    for damaged in (with_value(with_value(content, 257, 66), 278, 66), content.replace(content[-60:-20], bytes(40))):
        (tmp_path / "a.tif").write_bytes(damaged)
        with pytest.raises(UnsupportedImage, match="is damaged"):
            formats.read(tmp_path / "a.tif")


def test_a_file_of_another_program(tmp_path: Path) -> None:
    source = Path(skimage.__file__).parent / "data/multipage.tif"
    pixels = tifffile.imread(source)
    check(source, tmp_path / "b.tif", pixels)
