"""JPEG: every decoded value within the bound by two readers, every other segment as it was, and the coefficients exact."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.fft
from PIL import Image
from test_formats import saved
from test_formats_png import EXIF_WITH_THUMBNAIL

from salm_lightning.data import formats
from salm_lightning.data.formats import UnsupportedImage
from salm_lightning.data.formats.huffman import ZIGZAG, write_scan
from salm_lightning.data.formats.jpeg import Jpeg, _read_frame, _walk

SAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}
RADIUS = 8


def scene(size: tuple[int, int] = (101, 67), mode: str = "RGB") -> Image.Image:
    """Return smooth shapes, some of which are black and white, as photographs have them."""
    rng = np.random.default_rng(5)
    small = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC).convert(mode)


def jpeg(image: Image.Image | None = None, **options: object) -> bytes:
    stream = io.BytesIO()
    (image or scene()).save(stream, "JPEG", **{"quality": 90, **options})
    return stream.getvalue()


def segments(content: bytes) -> list[tuple[int, bytes]]:
    """Return markers and what they hold, up to the first scan: a walk of this test's own."""
    found, at = [], 2
    while True:
        marker, length = struct.unpack_from(">xBH", content, at)
        found.append((marker, content[at + 4 : at + 2 + length]))
        at += 2 + length
        if marker == 0xDA:
            return found


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def with_segments(content: bytes, *added: tuple[int, bytes]) -> bytes:
    """Return a JPEG with more segments behind its first one."""
    at = 4 + struct.unpack_from(">H", content, 4)[0]
    return content[:at] + b"".join(segment(*one) for one in added) + content[at:]


def coarse(pixels: np.ndarray, side: int = 12) -> np.ndarray:
    """Return pixels with noise of a lower resolution."""
    noise = np.random.default_rng(0).choice([-RADIUS, RADIUS], (len(pixels), side, side, pixels.shape[-1])).astype(np.float32)
    height, width = pixels.shape[1:3]
    wide = [cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, -1) for one in noise]
    return np.clip(np.rint(pixels + np.stack(wide)), 0, 255).astype(np.uint8)


def by_opencv(path: Path) -> np.ndarray:
    array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    assert array is not None
    return array.astype(int)


def largest(first: Path, second: Path) -> tuple[int, int]:
    """Return the largest difference of decoded values, by Pillow and by OpenCV."""
    pillow = [np.asarray(Image.open(path)).astype(int) for path in (first, second)]
    return abs(pillow[0] - pillow[1]).max(), abs(by_opencv(first) - by_opencv(second)).max()


def check(source: Path, target: Path, made: np.ndarray, least: float) -> formats.Written:
    written = formats.write(source, made, target, RADIUS)
    assert max(largest(source, target)) <= RADIUS
    assert written.largest == largest(source, target)[0]
    assert formats.unexplained(source, target) == []
    assert formats.differences(source, target) == list(written.changed)
    assert least <= written.noise_kept <= 1.05
    return written


@pytest.mark.parametrize("quality", [60, 95])
@pytest.mark.parametrize("size", [(101, 67), (16, 16), (1, 1), (8, 33)])
@pytest.mark.parametrize("sampling", ["grey", *SAMPLINGS])
def test_every_value_is_within_the_bound_by_pillow_and_opencv(
    sampling: str, size: tuple[int, int], quality: int, tmp_path: Path
) -> None:
    source, target = tmp_path / "a.jpg", tmp_path / "b.jpg"
    options = {} if sampling == "grey" else {"subsampling": SAMPLINGS[sampling]}
    source.write_bytes(jpeg(scene(size, "L" if sampling == "grey" else "RGB"), quality=quality, comment=b"caf\xe9", **options))
    known, pixels = formats.facts(source), formats.read(source)
    assert (known.detail, known.shape) == (sampling, pixels.shape)
    np.testing.assert_array_equal(pixels[0].squeeze(-1) if sampling == "grey" else pixels[0], np.asarray(Image.open(source)))
    written = check(source, target, coarse(pixels), 0.25 if size == (101, 67) else -1)
    assert written.changed == ()
    before, after = ([one for one in segments(path.read_bytes()) if one[0] not in (0xC4, 0xDA)] for path in (source, target))
    assert before == after


@pytest.mark.parametrize("options", [{}, {"subsampling": 2, "optimize": True}, {"subsampling": 1}])
def test_without_noise_every_value_comes_back(options: dict[str, object], tmp_path: Path) -> None:
    source, target = tmp_path / "a.jpg", tmp_path / "b.jpg"
    source.write_bytes(jpeg(**options))
    assert formats.write(source, formats.read(source), target, 0).largest == 0
    assert largest(source, target) == (0, 0)
    assert target.stat().st_size <= source.stat().st_size


def test_a_bound_that_leaves_no_room_leaves_the_image_as_it_was(tmp_path: Path) -> None:
    source, target = tmp_path / "a.jpg", tmp_path / "b.jpg"
    source.write_bytes(jpeg(quality=30, subsampling=2))
    pixels = formats.read(source)
    made = np.where(pixels > 128, pixels - 1, pixels + 1).astype(np.uint8)
    written = formats.write(source, made, target, 1)
    assert (written.largest <= 1, written.noise_kept < 0.2) == (True, True)


@pytest.mark.parametrize("options", [
    [cv2.IMWRITE_JPEG_RST_INTERVAL, 2], [cv2.IMWRITE_JPEG_RST_INTERVAL, 7, cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_OPTIMIZE, 1],
    [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440], [cv2.IMWRITE_JPEG_LUMA_QUALITY, 20],
])  # fmt: skip
def test_files_of_other_encoders(options: list[int], tmp_path: Path) -> None:
    source = tmp_path / "a.jpg"
    cv2.imwrite(str(source), np.asarray(scene()), options)
    check(source, tmp_path / "b.jpg", coarse(formats.read(source)), 0.2)


@pytest.mark.parametrize("sampling", SAMPLINGS.values())
def test_planes_in_scans_of_their_own(sampling: int, tmp_path: Path) -> None:
    source, plain = tmp_path / "a.jpg", tmp_path / "c.jpg"
    plain.write_bytes(jpeg(subsampling=sampling))
    parts, _ = _walk(plain.read_bytes())
    frame = _read_frame(parts)
    scans = b""
    for component in (frame.components[number] for number in (1, 0, 2)):
        pair = frame.pairs[component.number]
        tables = bytes([component.number, 0x11 if component.number > 1 else 0])
        data = write_scan([component], [pair])
        assert data is not None
        scans += segment(0xDA, b"\1" + tables + b"\0\x3f\0") + data
    head = plain.read_bytes()
    source.write_bytes(head[: head.index(b"\xff\xda")] + scans + b"\xff\xd9")
    assert largest(source, plain) == (0, 0)  # Pillow and OpenCV read ours as theirs
    check(source, tmp_path / "b.jpg", coarse(formats.read(source)), 0.25)


def test_red_green_and_blue_without_conversion(tmp_path: Path) -> None:
    """Adobe's marker says that the planes are no luminance."""
    source = tmp_path / "a.jpg"
    content = jpeg(subsampling=0)
    adobe = segment(0xEE, b"Adobe\0\x64\0\0\0\0\0")
    source.write_bytes(content[:2] + adobe + content[20:])
    assert 0xE0 not in [marker for marker, _ in segments(source.read_bytes())]
    check(source, tmp_path / "b.jpg", coarse(formats.read(source)), 0.3)


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2, "quality": 97}, {}], ids=str)
def test_a_progressive_file_is_written_as_a_sequential_one(options: dict[str, int], tmp_path: Path) -> None:
    source, target, plain = tmp_path / "a.jpg", tmp_path / "b.jpg", tmp_path / "c.jpg"
    image = scene() if options else scene(mode="L")
    source.write_bytes(jpeg(image, progressive=True, comment=b"kept", **options))
    plain.write_bytes(jpeg(image, comment=b"kept", **options))
    assert formats.facts(source).detail.endswith(", progressive")
    frames = [_read_frame(_walk(path.read_bytes())[0]) for path in (source, plain)]
    for first, second in zip(*(frame.components for frame in frames), strict=True):
        rows, columns = first.shown
        np.testing.assert_array_equal(first.blocks[:rows, :columns], second.blocks[:rows, :columns])
    written = check(source, target, coarse(formats.read(source)), 0.25)
    assert written.changed == ("progressive frame is gone", "frame is new")
    assert formats.write(source, formats.read(source), target, 0).largest == 0
    assert largest(source, target) == (0, 0)
    with Image.open(target) as made:
        assert "progressive" not in made.info


@pytest.mark.parametrize("sampling", [0, 2])
def test_coefficients_are_those_that_the_pixels_come_from(sampling: int) -> None:
    """A decoder of this test's own, in floats, with Pillow's colours beside it."""
    content = jpeg(subsampling=sampling)
    frame = _read_frame(_walk(content)[0])
    planes = []
    for component in frame.components:
        waves = np.zeros(component.blocks.shape)
        waves[..., ZIGZAG] = component.blocks * frame.quantisation[component.table]
        blocks = scipy.fft.idctn(waves.reshape(*waves.shape[:2], 8, 8), axes=(2, 3), norm="ortho") + 128
        plane = blocks.swapaxes(1, 2).reshape(blocks.shape[0] * 8, -1)
        planes.append(np.kron(plane, np.ones((sampling, sampling)))[:67, :101] if sampling and planes else plane[:67, :101])
    image = Image.open(io.BytesIO(content))
    image.draft("YCbCr", image.size)
    assert image.mode == "YCbCr"
    error = np.abs(np.stack(planes, -1).clip(0, 255) - np.asarray(image))
    assert error[..., 0].max() <= 1.01
    assert error[..., 1:].max() <= (1.01 if sampling == 0 else 40)  # Pillow's colours are smooth


def test_pictures_in_metadata_are_left_out(tmp_path: Path) -> None:
    source, target = tmp_path / "a.jpg", tmp_path / "b.jpg"
    thumbnail = saved("L", "JPEG")
    xmp = b"http://ns.adobe.com/xap/1.0/\0<a>/9j/" + b"Q" * 300 + b"</a>"
    more = [
        b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + part for part in (b"<b>/9j/" + b"R" * 900, b"R" * 300 + b"</b>")
    ]
    icc = b"ICC_PROFILE\0\1\1" + thumbnail
    added = [
        (0xE0, b"JFXX\0\x10" + thumbnail), (0xE1, b"Exif\0\0" + EXIF_WITH_THUMBNAIL), (0xE1, xmp), *((0xE1, part) for part in more),
        (0xE2, b"MPF\0II*\0"), (0xE2, icc), (0xFE, b"kept"),
        (0xED, b"Photoshop 3.0\0" + thumbnail[:200]), (0xED, b"Photoshop 3.0\0" + thumbnail[200:] + b"8BIM"),
    ]  # fmt: skip
    plain = jpeg()
    small = segment(0xE0, plain[6:18] + b"\2\1" + bytes(6))
    content = with_segments(plain[:2] + small + plain[20:], *added) + b"\0\0" + jpeg()
    source.write_bytes(content)
    known = formats.facts(source)
    assert (known.orientation, known.thumbnails) == (6, 7)
    written = check(source, target, coarse(formats.read(source)), 0.25)
    assert [words.removeprefix("APP1 http://ns.adobe.com/") for words in written.changed] == [
        *("APP0 JFIF differs", "APP0 JFXX is gone", "APP1 Exif differs", " differs", " differs", " differs"),
        *("APP2 MPF is gone", "APP13 Photoshop 3.0 differs", "APP13 Photoshop 3.0 differs", "bytes behind the end is gone"),
    ]
    made = target.read_bytes()
    assert made.count(thumbnail) == 1  # in the ICC profile, which is none of ours
    assert all(thumbnail[at : at + 40] not in made.replace(thumbnail, b"") for at in (20, len(thumbnail) - 60))
    assert (0xE2, icc) in segments(made)
    assert (0xFE, b"kept") in segments(made)
    assert b"QQQQ" not in made
    assert b"RRRR" not in made
    assert made.endswith(b"\xff\xd9")
    assert made.count(b"\xff\xd9") == 2
    assert formats.facts(target).thumbnails == 0
    with Image.open(target) as image:
        assert image.getexif()[0x112] == 6
        assert image.getexif().get_ifd(1) == {}


def with_frame(content: bytes, marker: int = 0xC0, **fields: int) -> bytes:
    """Return a JPEG with another marker of its frame, precision, height, width or sampling."""
    at = content.index(b"\xff\xc0")
    frame = bytearray(content[at : at + 19])
    frame[1] = marker
    frame[4] = fields.get("bits", frame[4])
    frame[11] = fields.get("sampling", frame[11])
    frame[5:9] = struct.pack(">HH", fields.get("height", 67), fields.get("width", 101))
    return content[:at] + frame + content[at + 19 :]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (jpeg(scene(mode="CMYK")), "is CMYK"),
        (with_frame(jpeg(), 0xC9), "is coded arithmetically"),
        (with_frame(jpeg(), 0xC3), "is lossless JPEG"),
        (with_frame(jpeg(), 0xC7), "is a rare kind of JPEG"),
        (with_frame(jpeg(), 0xC1, bits=12), "has 12 bits"),
        (with_frame(jpeg(), sampling=0x41), "has a rare sampling"),
        (with_frame(jpeg(), height=30000, width=30000), "has 30000 x 30000 pixels"),
        (with_frame(jpeg(), height=0), "has no pixels"),
        (jpeg()[:-2], "is cut off"),
        (jpeg()[:300], "is cut off"),
        (jpeg()[:3], "is cut off"),
        (jpeg()[:2] + b"\xff\xd9", "is damaged"),
        (jpeg()[:20] + b"abcd" + jpeg()[20:], "is damaged"),
    ],
)
def test_refusals_come_from_the_headers_alone(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(UnsupportedImage, match=rf"a\.jpg {reason}.*; .*\.$"):
        formats.facts(path)


def test_a_single_plane_whose_sampling_says_nothing(tmp_path: Path) -> None:
    source = tmp_path / "a.jpg"
    source.write_bytes(with_frame(jpeg(scene(mode="L")), sampling=0x22))
    check(source, tmp_path / "b.jpg", coarse(formats.read(source)), 0.25)


def test_damage_within_is_found_when_it_is_read(tmp_path: Path) -> None:
    """Pillow makes up what is missing, and says nothing."""
    path = tmp_path / "a.jpg"
    content = jpeg()
    for damaged in (content[:-400] + b"\xff\xd9", with_frame(content, height=670), content[:-900] + b"\0" * 500 + content[-400:]):
        path.write_bytes(damaged)
        formats.facts(path)
        Image.open(path).load()
        with pytest.raises(UnsupportedImage, match=r"a\.jpg is damaged"):
            formats.read(path)


def test_headers_are_read_without_the_pixels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    monkeypatch.setattr(Jpeg, "decode", None)
    assert formats.facts(tmp_path / "a.jpg").shape == (1, 67, 101, 3)


@pytest.mark.real_data
def test_cell_images_and_camera_images(real_data_root: Path, tmp_path: Path) -> None:
    cells = sorted((real_data_root / "pbc_folder").glob("*/*/*.jpg"))[::300]
    cameras = sorted((real_data_root / "owners/exif_jpeg/orientation").glob("landscape_[26].jpg"))
    for path in [*cells, *cameras, real_data_root / "owners/exif_jpeg/BlueSquare.jpg"]:
        written = check(path, tmp_path / "b.jpg", coarse(formats.read(path), 64), 0.25)
        assert bool(written.changed) == bool(formats.facts(path).thumbnails)
    assert formats.facts(cameras[1]).orientation == 6
