"""TIFF: the tree of tags carried over verbatim, with new pixels in each page's strips or tiles, coded as the old ones were.

The file is laid out anew, so that nothing stays in it that no tag leads to, such as the old pixels.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from salm_lightning.data.formats import embedded
from salm_lightning.data.formats.base import Codec, Facts, Pixels, UnsupportedImage, check_size
from salm_lightning.data.formats.tags import SIZES, Directory, Lazy, Tiff

_KIND, _OLD_KIND, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS, _FILL_ORDER = 254, 255, 256, 257, 258, 259, 262, 266
_DESCRIPTION, _STRIPS, _TURNED, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANES, _PREDICTOR = 270, 273, 274, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _SUBTREES, _EXTRA, _FORMAT = 322, 323, 324, 325, 330, 338, 339
_OLD_JPEG, _OLD_JPEG_BYTES, _ICC, _LAYERS = 513, 514, 34675, 37724
_TREES = (34665, 34853, 40965)
"""Tags that hold the position of a directory: EXIF, GPS, and interoperability."""
_POINTING = {33628: "a MetaMorph stack", 34412: "a Zeiss LSM", 50706: "a camera's raw file (DNG)"}
"""Tags of makers whose values are positions that nobody else knows."""
_NAMES = {
    **{
        _KIND: "NewSubfileType",
        _WIDTH: "ImageWidth",
        _HEIGHT: "ImageLength",
        _BITS: "BitsPerSample",
        _DESCRIPTION: "ImageDescription",
    },
    **{_SUBTREES: "SubIFDs", _LAYERS: "ImageSourceData", 34377: "Photoshop", 700: "XMP", 34665: "EXIF", 34853: "GPS"},
}
_CODINGS = {1: "not compressed", 5: "LZW", 8: "deflate", 32946: "deflate"}
_COLOUR_WORDS = {
    0: "black where it should be white (WhiteIsZero)",
    3: "a palette",
    4: "a mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELAB",
    32803: "raw",
}
_PIXEL_TAGS = (_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES)


@dataclass(frozen=True)
class _Tag:
    kind: int
    number: int
    value: bytes | dict[int, _Tag]
    """Bytes as in the file, or a directory's tags."""


_Tags = dict[int, _Tag]


class _Shape(NamedTuple):
    """How a page's pixels are cut: one shape for all pieces but those that are cut off at the edge of an image of strips."""

    height: int
    width: int
    samples: int
    bits: int
    compression: int
    predictor: int
    separate: bool
    rows: int
    columns: int
    tiled: bool


class TiffFile(Codec):
    """Grey and RGB with 8 or 16 bits, in strips or tiles, plain, LZW or deflate, any number of pages of one kind, BigTIFF too."""

    container = "TIFF"
    endings = (".tif", ".tiff")
    signatures = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

    def facts(self, stream: BinaryIO) -> Facts:
        """Walk over the directories."""
        tiff = Tiff(Lazy(stream))
        pages, dropped = _pages(tiff)
        _refuse_hidden_pages(tiff, pages)
        shapes = [_shape(tiff, page) for page in pages]
        first = shapes[0]
        if any(shape[:4] != first[:4] for shape in shapes):
            raise UnsupportedImage("has pages of several sizes or kinds", "store each page as a file of its own")
        if any(shape.compression == 5 for shape in shapes) and find_spec("imagecodecs") is None:
            raise UnsupportedImage("is compressed with LZW", "run pip install 'salm-lightning[tiff]', which reads it")
        words = [_CODINGS[first.compression], "tiles" if first.tiled else "", "BigTIFF" if tiff.big else ""]
        known = check_size(
            Facts(
                *("TIFF", first.height, first.width, first.samples, first.bits, len(pages)),
                orientation=_only(tiff, pages[0], _TURNED, 1) if 1 <= _only(tiff, pages[0], _TURNED, 1) <= 8 else 1,
                thumbnails=dropped + sum(_blank(_tree(tiff, page))[1] for page in pages),
                detail=", ".join(filter(None, words)),
            )
        )
        for page, shape in zip(pages, shapes, strict=True):
            _pieces(tiff, page, shape)
        return known

    def decode(self, content: bytes, facts: Facts) -> tuple[Pixels, None]:
        """Decode the pieces of all pages, each of which has to have its full length."""
        tiff = Tiff(content)
        pixels = np.empty(facts.shape, np.uint8 if facts.bits == 8 else np.uint16)
        for number, page in enumerate(_pages(tiff)[0]):
            shape = _shape(tiff, page)
            places = list(_places(shape))
            for (plane, row, column), (at, length) in zip(places, _pieces(tiff, page, shape), strict=True):
                piece = _decoded(content[at : at + length], shape, row, tiff.order)
                target = pixels[number, row : row + shape.rows, column : column + shape.columns, _planes(shape, plane)]
                target[...] = piece[: target.shape[0], : target.shape[1]]
        return pixels, None

    def encode(self, content: bytes, facts: Facts, pixels: Pixels, radius: int, secret: bytes = b"") -> bytes:
        """Lay the file out anew."""
        tiff = Tiff(content)
        made = []
        for number, page in enumerate(_pages(tiff)[0]):
            shape = _shape(tiff, page)
            pieces = [
                _encoded(
                    pixels[number, row : row + shape.rows, column : column + shape.columns, _planes(shape, plane)],
                    shape,
                    tiff.order,
                )
                for plane, row, column in _places(shape)
            ]
            made.append((_blank(_tree(tiff, page))[0], pieces))
        return _laid_out(tiff, made)

    def parts(self, content: bytes, *, blank: bool) -> list[tuple[str, bytes]]:
        """Return the tags of all pages, those of directories within them too, as they are in the file."""
        tiff = Tiff(content)
        links = {page.link for page in _pages(tiff)[0]}
        named = [("byte order", content[:2]), ("version", b"BigTIFF" if tiff.big else b"TIFF")]
        for directory in tiff.chain():
            if directory.link in links:
                tree = _tree(tiff, directory)
                named += [("page", b""), *_named(_blank(tree)[0] if blank else tree)]
            elif not blank:
                named += [("small page", b"".join(tiff.raw(entry) for entry in directory.entries.values()))]
        return named


def _pages(tiff: Tiff) -> tuple[list[Directory], int]:
    """Return the pages that count, and the number of those that hold a smaller picture."""
    pages, small = [], 0
    for directory in tiff.chain():
        kind, old = _only(tiff, directory, _KIND, 0), _only(tiff, directory, _OLD_KIND, 1)
        if kind & 4:
            raise UnsupportedImage("has a page that is a mask", "store its image alone")
        if kind & 1 or old == 2:
            small += 1
        else:
            pages.append(directory)
    if not pages:
        raise UnsupportedImage("has no page but for thumbnails", "store its image as TIFF or PNG")
    return pages, small


def _only(tiff: Tiff, directory: Directory, tag: int, default: int) -> int:
    """Return a tag's only value, or the one that all are equal to."""
    entry = directory.entries.get(tag)
    if entry is None:
        return default
    values = set(tiff.values(entry)) if entry.number <= 64 else set()
    if len(values) != 1:
        raise UnsupportedImage(f"is damaged or of a rare kind (tag {tag} has values that differ)", "store it as PNG")
    return values.pop()


def _shape(tiff: Tiff, page: Directory) -> _Shape:
    """Return how the pixels of a page are stored, and refuse what is not taken."""
    entries = page.entries

    def value(tag: int, default: int = 0) -> int:
        return _only(tiff, page, tag, default)

    for tag, words in _POINTING.items():
        if tag in entries:
            raise UnsupportedImage(f"is {words}", "store its images as plain TIFF")
    if value(_FORMAT, 1) != 1:
        words = {2: "signed integers", 3: "floating-point numbers"}.get(value(_FORMAT), "numbers of an unknown kind")
        raise UnsupportedImage(f"holds {words}", "store it with 8 or 16 bits without sign, scaled to a range that you know")
    bits, samples, compression, colours = value(_BITS, 1), value(_SAMPLES, 1), value(_COMPRESSION, 1), value(_COLOURS, -1)
    if bits not in (8, 16):
        raise UnsupportedImage(f"has {bits} bits a value", "store it with 8 or 16 bits")
    if compression not in _CODINGS:
        words = {6: "JPEG", 7: "JPEG", 32773: "PackBits", 50000: "Zstandard"}.get(compression, f"method {compression}")
        raise UnsupportedImage(f"is compressed with {words}", "store it plain, or compressed with deflate or LZW")
    if colours not in (1, 2):
        raise UnsupportedImage(
            f"has colours that are {_COLOUR_WORDS.get(colours, 'unknown')}", "convert it to RGB, or to grey with 0 as black"
        )
    if samples != {1: 1, 2: 3}[colours] or _EXTRA in entries:
        raise UnsupportedImage(f"has {samples} values a pixel, such as alpha", "store it as grey or RGB alone")
    if value(_FILL_ORDER, 1) != 1 or value(_PREDICTOR, 1) not in (1, 2):
        raise UnsupportedImage("stores its bits in a rare order", "store it again with usual settings")
    tiled = _TILES in entries
    height, width = value(_HEIGHT), value(_WIDTH)
    rows, columns = (value(_TILE_HEIGHT), value(_TILE_WIDTH)) if tiled else (min(value(_ROWS, height), height), width)
    predictor = value(_PREDICTOR, 1) if compression != 1 else 1
    shape = _Shape(
        height, width, samples, bits, compression, predictor, value(_PLANES, 1) == 2 and samples > 1, rows, columns, tiled
    )
    check_size(Facts("TIFF", height, width, samples, bits))
    check_size(Facts("TIFF", rows, columns, samples, bits))
    return shape


def _refuse_hidden_pages(tiff: Tiff, pages: list[Directory]) -> None:
    """Refuse files whose further images no directory describes, but a text."""
    entry = pages[0].entries.get(_DESCRIPTION)
    text = tiff.raw(entry)[:4096] if entry else b""
    images = re.match(rb"ImageJ=.*\nimages=0*([2-9]|[1-9]\d)", text, re.DOTALL)
    if len(pages) == 1 and (images or b'"truncated": true' in text):
        raise UnsupportedImage("holds images that only its description tells of", "store it again with a directory for each page")


def _pieces(tiff: Tiff, page: Directory, shape: _Shape) -> list[tuple[int, int]]:
    """Return where the pieces of a page are, all of which have to lie within the file."""
    tags = (_TILES, _TILE_BYTES) if shape.tiled else (_STRIPS, _STRIP_BYTES)
    entries = [page.entries.get(tag) for tag in tags]
    needed = -(-shape.height // shape.rows) * -(-shape.width // shape.columns) * (shape.samples if shape.separate else 1)
    if any(entry is None or entry.number != needed for entry in entries):
        raise UnsupportedImage("is damaged (it has more or fewer pieces than its size asks for)", "copy it again")
    at, lengths = (tiff.values(entry) for entry in entries if entry)
    pieces = list(zip(at, lengths, strict=True))
    if any(place < 8 or length < 1 for place, length in pieces):
        raise UnsupportedImage("is damaged (a piece of it has no place)", "copy it again")
    if any(place + length > len(tiff.content) for place, length in pieces):
        raise UnsupportedImage("is cut off", "copy it again")
    return pieces


def _places(shape: _Shape) -> Iterator[tuple[int, int, int]]:
    """Yield the plane, first row and first column of the pieces, in their order."""
    for plane in range(shape.samples if shape.separate else 1):
        for row in range(0, shape.height, shape.rows):
            for column in range(0, shape.width, shape.columns):
                yield plane, row, column


def _planes(shape: _Shape, plane: int) -> slice:
    return slice(plane, plane + 1) if shape.separate else slice(None)


def _decoded(piece: bytes, shape: _Shape, row: int, order: str) -> NDArray[Any]:
    """Return the pixels of a piece."""
    rows = shape.rows if shape.tiled else min(shape.rows, shape.height - row)
    samples = 1 if shape.separate else shape.samples
    width = shape.columns * samples * shape.bits // 8
    length = rows * width
    if shape.compression == 5:
        import imagecodecs

        piece = bytes(imagecodecs.lzw_decode(piece, out=length))
    elif shape.compression != 1:
        unpacked = zlib.decompressobj()
        piece = unpacked.decompress(piece, shape.rows * width + 1)  # some programs fill up the last one
        if not unpacked.eof:
            raise UnsupportedImage("is damaged (a piece of it does not end where it should)", "copy it again")
    if len(piece) < length:
        raise UnsupportedImage("is damaged (a piece of it is too short)", "copy it again")
    array = np.frombuffer(piece[:length], f"{order}u{shape.bits // 8}").reshape(rows, shape.columns, samples)
    array = array.astype(array.dtype.newbyteorder("="))
    return np.cumsum(array, axis=1, dtype=array.dtype) if shape.predictor == 2 else array


def _encoded(pixels: NDArray[Any], shape: _Shape, order: str) -> bytes:
    """Return a piece of pixels, those of a tile continued to its full size."""
    if shape.tiled:
        missing = (shape.rows - pixels.shape[0], shape.columns - pixels.shape[1])
        pixels = np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), "edge")
    if shape.predictor == 2:
        pixels = np.concatenate([pixels[:, :1], pixels[:, 1:] - pixels[:, :-1]], axis=1)
    plain = pixels.astype(f"{order}u{shape.bits // 8}").tobytes()
    if shape.compression == 5:
        import imagecodecs

        return bytes(imagecodecs.lzw_encode(plain))
    return plain if shape.compression == 1 else zlib.compress(plain)


def _tree(tiff: Tiff, directory: Directory) -> _Tags:
    """Return a directory's tags without the places of its pixels, with the directories that they lead to."""
    tags: _Tags = {}
    for tag, entry in directory.entries.items():
        if tag in _TREES:
            inner = tiff.directory(tiff.values(entry)[0])
            tags[tag] = _Tag(entry.kind, entry.number, _tree(tiff, inner))
        elif tag in (*_PIXEL_TAGS, _OLD_JPEG, _SUBTREES):  # positions, which say nothing in another file
            tags[tag] = _Tag(entry.kind, entry.number, b"")
        else:
            tags[tag] = _Tag(entry.kind, entry.number, tiff.raw(entry))
    return tags


def _blank(tags: _Tags) -> tuple[_Tags, int]:
    """Return tags without pictures in them, and their number."""
    made: _Tags = {}
    found = 0
    for tag, one in tags.items():
        if tag in (_SUBTREES, _OLD_JPEG, _OLD_JPEG_BYTES, _LAYERS):
            found += one.number if tag == _SUBTREES else tag in (_OLD_JPEG, _LAYERS)
            continue
        value: bytes | _Tags = one.value
        number = 0
        if isinstance(value, dict):
            value, number = _blank(value)
        elif tag != _ICC and one.kind in (1, 2, 7):
            value, number = embedded.blank(value)
        made[tag] = _Tag(one.kind, one.number, value)
        found += number
    return made, found


def _named(tags: _Tags, within: str = "") -> list[tuple[str, bytes]]:
    named: list[tuple[str, bytes]] = []
    for tag, one in tags.items():
        if tag in _PIXEL_TAGS:
            continue
        name = f"{within}tag {tag}" + (f" ({_NAMES[tag]})" if tag in _NAMES else "")
        if isinstance(one.value, dict):
            named += [(name, b""), *_named(one.value, f"{name}, ")]
        else:
            named.append((name, struct.pack("<HQ", one.kind, one.number) + one.value))
    return named


def _laid_out(tiff: Tiff, pages: list[tuple[_Tags, list[bytes]]]) -> bytes:
    """Return a file of pages: for each its pieces, its tags' values, and its directory."""
    made = bytearray(b"II" if tiff.order == "<" else b"MM")
    made += struct.pack(tiff.order + "HHH", 43, 8, 0) if tiff.big else struct.pack(tiff.order + "H", 42)
    width = struct.calcsize("=" + tiff.wide)
    link = len(made)
    made += bytes(width)
    for tags, pieces in pages:
        places = []
        for piece in pieces:
            places.append(_appended(made, piece))
        for tag, values in (
            (_STRIPS, places),
            (_TILES, places),
            (_STRIP_BYTES, [*map(len, pieces)]),
            (_TILE_BYTES, [*map(len, pieces)]),
        ):
            if tag in tags:
                packed = struct.pack(f"{tiff.order}{len(values)}{tiff.wide}", *values)
                tags = {**tags, tag: _Tag(16 if tiff.big else 4, len(values), packed)}
        at = _directory(tiff, made, tags)
        struct.pack_into(tiff.order + tiff.wide, made, link, at)
        link = len(made) - width
    if not tiff.big and len(made) >= 2**32:
        raise UnsupportedImage("would become larger than TIFF's 4 GiB", "store it as BigTIFF")
    return bytes(made)


def _appended(made: bytearray, data: bytes) -> int:
    """Add bytes at an even place, and return it."""
    made += bytes(len(made) % 2)
    made += data
    return len(made) - len(data)


def _directory(tiff: Tiff, made: bytearray, tags: _Tags) -> int:
    """Add a directory, behind the values that have no room in it, and return its place; no other follows it."""
    width, inline = struct.calcsize("=" + tiff.wide), 8 if tiff.big else 4
    entries = []
    for tag, one in tags.items():
        value = one.value
        if isinstance(value, dict):
            value = struct.pack(f"{tiff.order}{'Q' if SIZES[one.kind] == 8 else 'L'}", _directory(tiff, made, value))
        if len(value) > inline:
            value = struct.pack(tiff.order + tiff.wide, _appended(made, value))
        entries.append(struct.pack(f"{tiff.order}HH{tiff.wide}", tag, one.kind, one.number) + value.ljust(inline, b"\0"))
    count = struct.pack(tiff.order + ("Q" if tiff.big else "H"), len(entries))
    return _appended(made, count + b"".join(entries) + bytes(width))
