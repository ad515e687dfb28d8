"""PNG: exact pixels by another reader, every other byte as it was, and what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from test_formats import picture, saved

from salm_lightning.data import formats
from salm_lightning.data.formats import UnsupportedImage

EXIF_WITH_THUMBNAIL = (
    b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHLL", 0x112, 3, 1, 6) + struct.pack("<L", 26)
    + b"\x02\0" + struct.pack("<HHLL", 0x201, 4, 1, 56) + struct.pack("<HHLL", 0x202, 4, 1, 400) + bytes(4)
    + saved("L", "JPEG")[:400].ljust(400, b"\7") + b"after"
)  # fmt: skip


def chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Return what a PNG holds: a walk of this test's own."""
    found, at = [], 8
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 12 + length]))
        at += length + 12
    return found


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def plain(pixels: np.ndarray, bits: int, colour: int, interlaced: int = 0) -> bytes:
    """Return a PNG of rows without filters, made by hand; interlaced only for one pixel."""
    rows = pixels.astype(">u2" if bits == 16 else "u1").reshape(len(pixels), -1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    width = pixels.shape[1] * 8 // bits if bits < 8 else pixels.shape[1]
    header = struct.pack(">IIBBBBB", width, len(pixels), bits, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def with_chunks(content: bytes, *added: tuple[bytes, bytes], last: bool = False) -> bytes:
    """Return a PNG with more chunks, behind its header or before its end."""
    at = len(content) - 12 if last else 33
    return content[:at] + b"".join(chunk(*one) for one in added) + content[at:]


def noisy(path: Path, radius: int = 8) -> np.ndarray:
    pixels, known, still = formats.read(path), formats.facts(path), formats.pixels_and_kept(path)[1]
    noise = np.random.default_rng(0).integers(-radius, radius + 1, pixels.shape).astype(np.int32)
    return formats.added(pixels, noise, known, still)


def by_opencv(path: Path) -> np.ndarray:
    """Return all planes [H, W, planes] in PNG's order of colours."""
    array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert array is not None
    array = array.reshape(*array.shape[:2], -1)
    return array[..., [2, 1, 0, 3][: array.shape[-1]]] if array.shape[-1] > 1 else array


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("colour", "planes"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_pixels_are_exact_by_opencv_and_all_other_bytes_stay(bits: int, colour: int, planes: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 2**bits, (13, 17, planes)).astype(np.uint16 if bits == 16 else np.uint8)
    if planes in (2, 4):
        pixels[3:6, :, -1] = 0
    extras = [(b"gAMA", b"\0\0\xb1\x8f"), (b"tEXt", b"Comment\0caf\xe9"), (b"vpAg", b"private"), (b"eXIf", b"MM\0*broken")]
    source, target = tmp_path / "a.png", tmp_path / "b.png"
    source.write_bytes(
        with_chunks(with_chunks(plain(pixels, bits, colour), *extras), (b"zTXt", b"late\0\0" + zlib.compress(b"x")), last=True)
    )
    known = formats.facts(source)
    assert known.shape == (1, 13, 17, 3 if planes > 2 else 1)
    assert (known.bits, known.alpha, known.orientation) == (bits, planes in (2, 4), 1)
    np.testing.assert_array_equal(formats.read(source)[0], pixels[..., : known.channels])

    made = noisy(source)
    written = formats.write(source, made, target, 8)
    assert (written.largest, written.noise_kept, written.changed) == (8, 1.0, ())
    np.testing.assert_array_equal(formats.read(target), made)
    expected = made[0] if planes in (1, 3) else np.concatenate([made[0], pixels[..., -1:]], axis=-1)
    if planes == 2:  # OpenCV makes four of them
        expected = expected[..., [0, 0, 0, 1]]
    np.testing.assert_array_equal(by_opencv(target), expected)
    before, after = ([one for one in chunks(path.read_bytes()) if one[0] != b"IDAT"] for path in (source, target))
    assert before == after
    assert formats.differences(source, target) == []


def test_fully_transparent_pixels_are_kept_out(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = picture("RGBA")
    image.putpixel((4, 5), (1, 2, 3, 0))
    image.save(path)
    still = formats.pixels_and_kept(path)[1]
    assert still is not None
    assert np.argwhere(still).tolist() == [[0, 5, 4]]
    pixels = formats.read(path)
    pixels[0, 5, 4, 0] += 1
    with pytest.raises(ValueError, match="keep their values"):
        formats.write(path, pixels, tmp_path / "b.png", 8)
    picture("RGBA").save(path)
    assert formats.pixels_and_kept(path)[1] is None


def test_changes_of_anything_else_are_named(tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    first.write_bytes(with_chunks(saved("RGBA"), (b"tEXt", b"a\0b"), (b"gAMA", b"\0\0\0\1")))
    image = picture("RGBA")
    image.putalpha(7)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    second.write_bytes(with_chunks(stream.getvalue(), (b"tEXt", b"a\0c"), (b"sRGB", b"\0")))
    words = ["chunk tEXt differs", "chunk gAMA is gone", "chunk sRGB is new", "alpha differs"]
    assert formats.differences(first, second) == words
    assert formats.unexplained(first, second) == words


def test_an_interlaced_file_is_written_without(tmp_path: Path) -> None:
    path, out = tmp_path / "a.png", tmp_path / "b.png"
    path.write_bytes(plain(np.array([[77]]), 8, 0, interlaced=1))  # of one pixel, all passes but the first are empty
    assert formats.facts(path).detail == "grey, interlaced"
    written = formats.write(path, np.array([[[[79]]]], np.uint8), out, 8)
    assert written.changed == ("chunk IHDR differs",)
    assert formats.read(out).item() == 79
    assert formats.unexplained(path, out) == []


def test_pictures_in_metadata_are_left_out(tmp_path: Path) -> None:
    path, out = tmp_path / "a.png", tmp_path / "b.png"
    thumbnail = saved("L", "JPEG")
    profile = f"\nexif\n{len(thumbnail)}\n{thumbnail.hex()}".encode()
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", f"<image>{'/9j/' + 'Q' * 400}</image>")
    info.add_itxt("packed", f"<image>{'/9j/' + 'Q' * 400}</image>", zip=True)
    info.add_text("Raw profile type exif", profile.decode(), zip=True)
    info.add_text("Comment", "stays")
    content = with_chunks(saved(pnginfo=info), (b"eXIf", EXIF_WITH_THUMBNAIL))
    path.write_bytes(content + b"an older, larger picture")
    known = formats.facts(path)
    assert (known.thumbnails, known.orientation) == (4, 6)
    written = formats.write(path, noisy(path), out, 8)
    assert sorted(written.changed) == [
        "bytes behind the end is gone", "chunk eXIf differs", "chunk iTXt differs", "chunk iTXt is gone", "chunk zTXt is gone",
    ]  # fmt: skip
    made = out.read_bytes()
    assert len([1 for kind, _ in chunks(made) if kind != b"IDAT"]) == 5
    (exif,) = [data for kind, data in chunks(made) if kind == b"eXIf"]
    assert exif[:22] == EXIF_WITH_THUMBNAIL[:22]
    assert exif[-9:-4] == b"after"
    assert not any(exif[56:-9])
    with Image.open(out) as image:
        assert image.getexif()[0x112] == 6
        assert image.getexif().get_ifd(1) == {}
        assert image.text["XML:com.adobe.xmp"] == "<image>" + " " * 404 + "</image>"  # type: ignore[attr-defined]
    assert formats.facts(out).thumbnails == 0
    assert formats.unexplained(path, out) == []
    assert formats.differences(path, out) == list(written.changed)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (saved("P"), "has a palette"),
        (saved("1"), "has 2 levels"),
        (plain(np.full((4, 4), 0xF0), 4, 0), "has 16 levels"),
        (with_chunks(saved("L"), (b"tRNS", b"\0\1")), "makes one colour transparent"),
        (saved(save_all=True, append_images=[picture().rotate(180)]), "is an animation"),
        (saved()[:-20], "is cut off"),
        (saved()[:20], "is cut off"),
        (saved()[:8], "is cut off"),
        (saved()[:8] + chunk(b"IEND", b""), "is damaged"),
        (saved().replace(b"IHDR\0\0\0\x14", b"IHDR\0\0\0\x15"), "is damaged"),
        (saved()[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)) + saved()[33:], "has 30000 x 30000 pixels"),
        (saved()[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 3, 8, 2, 0, 0, 0)) + saved()[33:], "has no pixels"),
    ],
)  # fmt: skip
def test_refusals_come_from_the_headers_alone(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UnsupportedImage, match=rf"a\.png {reason}.*; .*\.$"):
        formats.facts(path)


def test_damage_within_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    short = plain(np.zeros((5, 5)), 8, 0).replace(struct.pack(">II", 5, 5), struct.pack(">II", 5, 50))
    header = chunk(b"IHDR", chunks(short)[0][1][:-4])
    for content in (saved()[:60] + b"\0\0" + saved()[62:], short[:8] + header + short[33:]):
        path.write_bytes(content)
        formats.facts(path)
        with pytest.raises(UnsupportedImage, match="is damaged"):
            formats.read(path)


def test_sixteen_bit_colour_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(plain(np.zeros((2, 2, 3)), 16, 2))
    monkeypatch.setattr("salm_lightning.data.formats.png.find_spec", lambda name: None)
    with pytest.raises(UnsupportedImage, match=r"pip install 'salm-lightning\[tiff\]'"):
        formats.facts(path)


@pytest.mark.real_data
def test_sixteen_bit_ct_is_exact(real_data_root: Path, tmp_path: Path) -> None:
    for path in sorted((real_data_root / "owners/ct_png16_derived").glob("*.png"))[:3]:
        np.testing.assert_array_equal(formats.read(path)[0], by_opencv(path))
        made = noisy(path, 190)
        assert formats.write(path, made, tmp_path / "b.png", 190).changed == ()
        np.testing.assert_array_equal(by_opencv(tmp_path / "b.png"), made[0])


def test_an_interlaced_file_that_another_program_wrote(tmp_path: Path) -> None:
    """Adam7's passes by hand, so that every one of them has pixels."""
    pixels = np.random.default_rng(2).integers(0, 256, (9, 11))
    data = b""
    for row, column, down, across in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        data += b"".join(b"\0" + bytes(line) for line in pixels[row::down, column::across].tolist() if line)
    header = struct.pack(">IIBBBBB", 11, 9, 8, 0, 0, 0, 1)
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b""))
    np.testing.assert_array_equal(formats.read(path)[0, ..., 0], pixels)
    np.testing.assert_array_equal(by_opencv(path)[..., 0], pixels)
    made = noisy(path)
    formats.write(path, made, tmp_path / "b.png", 8)
    np.testing.assert_array_equal(by_opencv(tmp_path / "b.png"), made[0])
