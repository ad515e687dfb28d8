"""JPEG: noise as changes of the quantised coefficients, shrunk block by block until every decoded value is within the bound.

A block that does not change keeps its coefficients, and so decodes to what it was: plain decoding and encoding changes nearly all values.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from salm_lightning.data.formats import embedded, progressive
from salm_lightning.data.formats.base import Codec, Facts, Pixels, UnsupportedImage, check_size
from salm_lightning.data.formats.huffman import ZIGZAG, Component, Table, by_mcu, read_scan, tables, write_scan

_SAMPLINGS = {(1, 1): "4:4:4", (2, 1): "4:2:2", (1, 2): "4:4:0", (2, 2): "4:2:0"}
_REFUSED = {0xC3: "is lossless JPEG", 0xC9: "is coded arithmetically", 0xCA: "is coded arithmetically"}
_SEQUENTIAL, _PROGRESSIVE, _DHT, _SOS, _DQT, _DRI = 0xC0, 0xC2, 0xC4, 0xDA, 0xDB, 0xDD
_FRAMES = {*range(0xC0, 0xD0)} - {_DHT, 0xC8, 0xCC}
_APP0, _APP1, _APP2, _ADOBE, _COMMENT = 0xE0, 0xE1, 0xE2, 0xEE, 0xFE
_EXIF = b"Exif\0\0"
_LONG = {b"http://ns.adobe.com/xmp/extension/\0": 75, b"Photoshop 3.0\0": 14}
"""Beginnings of segments whose content goes on in further ones, and how long their own heads are."""
_AIMED, _TURNS = 16, 120
"""Turns in which the aim is corrected alone, and all of them; after the last one nothing is changed."""
_SHRUNK, _LEAST = 0.9, 0.1
"""Factor of the changes of an MCU in a further turn, and the share of them under which there are none."""
_MARGIN = 0.5
"""How far within the bound values are aimed that were beyond it."""
_LARGEST = 1023
"""Largest coefficient of 8-bit pixels."""
_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]], np.float32)
_COSINES = np.array(
    [[np.cos((2 * x + 1) * u * np.pi / 16) / (2 if u else 8**0.5) for x in range(8)] for u in range(8)], np.float32
)


class _Segment(NamedTuple):
    marker: int
    data: bytes
    scan: bytes = b""
    """What follows the header of a scan."""


@dataclass
class _Frame:
    height: int
    width: int
    components: list[Component]
    quantisation: dict[int, NDArray[np.float32]]
    coloured: bool
    """Whether its planes are luminance and two colours, and not red, green and blue."""
    pairs: dict[int, tuple[Table, Table]] = field(default_factory=dict)
    """Tables of DC and AC by component; those of progressive files have too few symbols."""


class Jpeg(Codec):
    """Grey and colour, coded by Huffman, with 8 bits, 4:4:4, 4:2:2, 4:4:0 or 4:2:0; a progressive file is no longer so."""

    container = "JPEG"
    endings = (".jpg", ".jpeg", ".jpe", ".jfif")
    signatures = (b"\xff\xd8\xff",)

    def facts(self, stream: BinaryIO) -> Facts:
        """Walk over the segments."""
        stream.seek(0)
        content = stream.read()
        segments, end = _walk(content)
        marker, head = _frame_header(segments)
        if marker > _PROGRESSIVE:
            raise UnsupportedImage(_REFUSED.get(marker, "is a rare kind of JPEG"), "store it as PNG")
        if head[0] != 8:
            raise UnsupportedImage(f"has {head[0]} bits", "store it as PNG with 16 bits")
        planes = head[5]
        if planes not in (1, 3) or len(head) < 6 + 3 * planes:
            raise UnsupportedImage("is CMYK or of planes that are no colours", "convert it to RGB or grey")
        sampling = [(head[7 + 3 * plane] >> 4, head[7 + 3 * plane] & 15) for plane in range(planes)]
        if planes == 3 and (sampling[0] not in _SAMPLINGS or sampling[1:] != [(1, 1), (1, 1)]):
            words = ", ".join(f"{across}x{down}" for across, down in sampling)
            raise UnsupportedImage(f"has a rare sampling ({words})", "store it as PNG, or as JPEG with 4:4:4 or 4:2:0")
        exif = next((segment.data[6:] for segment in segments if _is_exif(segment)), b"")
        return check_size(
            Facts(
                *("JPEG", int.from_bytes(head[1:3], "big"), int.from_bytes(head[3:5], "big"), planes, 8),
                orientation=embedded.orientation(exif),
                thumbnails=_carried(segments)[1] + len(embedded.pictures(content[end:])),
                detail=("grey" if planes == 1 else _SAMPLINGS[sampling[0]]) + (", progressive" if marker == _PROGRESSIVE else ""),
            )
        )

    def decode(self, content: bytes, facts: Facts) -> tuple[Pixels, None]:
        """Decode the bare picture with Pillow, after a walk through its codes: Pillow makes up what is missing."""
        segments, _ = _walk(content)
        _read_frame(segments)
        return _pixels(segments, facts), None

    def encode(self, content: bytes, facts: Facts, pixels: Pixels, radius: int, secret: bytes = b"") -> bytes:
        """Change coefficients, and less of them where values come out beyond the bound, until there are none."""
        segments, _ = _walk(content)
        carried, frame, before = _carried(segments)[0], _read_frame(segments), _pixels(segments, facts)[0].astype(np.int16)
        target = _tiles(pixels[0] - before, frame).astype(np.float32)
        blocks = [by_mcu(component) for component in frame.components]
        originals = [block.copy() for block in blocks]
        share = np.ones(target.shape[:2], np.float32)
        todo = np.ones(share.shape, np.bool_)
        for turn in range(_TURNS + 1):
            if turn == _TURNS:
                share[...], todo[...] = 0, True
            for block, original, change in zip(blocks, originals, _coefficients(frame, target[todo]), strict=True):
                step, old = np.rint(change * share[todo][:, None, None, None]).astype(np.int32), original[todo]
                block[todo] = np.where(step == 0, old, np.clip(old + step, -_LARGEST, _LARGEST))
            made = _assembled(carried, frame)
            changed = _tiles(_pixels(_walk(made)[0], facts)[0] - before, frame)
            todo = np.abs(changed).reshape(*share.shape, -1).max(axis=-1) > radius
            if not todo.any():
                break
            target[todo] -= changed[todo] - np.clip(changed[todo], _MARGIN - radius, radius - _MARGIN)
            if turn >= _AIMED:
                todo = _with_helpers(todo, share)
                share[todo] = np.where(share[todo] < _LEAST, 0, share[todo] * _SHRUNK)
        return made

    def without_noise(self, facts: Facts, still: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return whole blocks, of all whose pixels a change of one is a change; colours that are subsampled reach two pixels further."""
        wide, high = next((pair for pair, name in _SAMPLINGS.items() if facts.detail.startswith(name)), (1, 1))
        _, rows, columns = np.nonzero(still)
        found = np.zeros_like(still)
        for down in (-2, 0, 2) if high == 2 else (0,):
            for across in (-2, 0, 2) if wide == 2 else (0,):
                blocks = np.stack([np.maximum(rows + down, 0) // (8 * high), np.maximum(columns + across, 0) // (8 * wide)])
                for row, column in np.unique(blocks, axis=1).T.tolist():
                    found[:, row * 8 * high : (row + 1) * 8 * high, column * 8 * wide : (column + 1) * 8 * wide] = True
        return found

    def parts(self, content: bytes, *, blank: bool) -> list[tuple[str, bytes]]:
        """Return the segments but for those that say how the pixels are coded, and what follows the end."""
        segments, end = _walk(content)
        carried = _carried(segments)[0] if blank else segments
        named = [(_name(segment), segment.data) for segment in carried if segment.marker not in (_DHT, _DRI, _SOS)]
        return named + ([] if blank or not content[end:] else [("bytes behind the end", content[end:])])


def _walk(content: bytes) -> tuple[list[_Segment], int]:
    """Return the segments between the start and the end of the picture, and where that is."""
    segments: list[_Segment] = []
    at = 2
    while True:
        while content[at : at + 2] == b"\xff\xff":
            at += 1
        head = content[at : at + 4]
        if head[:2] == b"\xff\xd9":
            return segments, at + 2
        length = int.from_bytes(head[2:], "big")
        if head[:1] not in (b"", b"\xff") or (len(head) == 4 and length < 2):
            raise UnsupportedImage("is damaged (a segment does not begin where it should)", "copy it again")
        if len(head) < 4 or at + 2 + length > len(content):
            raise UnsupportedImage("is cut off", "copy it again")
        data, at = content[at + 4 : at + 2 + length], at + 2 + length
        scan = b""
        if head[1] == _SOS:
            behind = embedded.next_marker(content, at)
            scan, at = content[at:behind], behind
        segments.append(_Segment(head[1], data, scan))


def _frame_header(segments: list[_Segment]) -> tuple[int, bytes]:
    frames = [segment for segment in segments if segment.marker in _FRAMES]
    if len(frames) != 1 or len(frames[0].data) < 6 or all(segment.marker != _SOS for segment in segments):
        raise UnsupportedImage("is damaged (it has no frame, several, or no pixels)", "copy it again")
    return frames[0].marker, frames[0].data


def _is_exif(segment: _Segment) -> bool:
    return segment.marker == _APP1 and segment.data.startswith(_EXIF)


def _name(segment: _Segment) -> str:
    if _APP0 <= segment.marker < _APP0 + 16:
        word = segment.data[:20].split(b"\0")[0].decode("latin-1")
        return f"APP{segment.marker - _APP0} {word if word.isprintable() else ''}".strip()
    names = {_COMMENT: "comment", _DQT: "quantisation", **dict.fromkeys(_FRAMES, "frame"), _PROGRESSIVE: "progressive frame"}
    return names.get(segment.marker, f"segment {segment.marker:02X}")


def _carried(segments: list[_Segment]) -> tuple[list[_Segment], int]:
    """Return the segments without pictures in them, and the number of those."""
    joined, found = _blanked_across(segments)
    carried = []
    for number, segment in enumerate(segments):
        marker, data = segment.marker, segment.data
        kept: tuple[bytes | None, int] = (data, 0)
        if number in joined:
            kept = joined[number], 0
        elif marker == _APP0 and data.startswith(b"JFIF\0") and len(data) > 14:
            kept = data[:12] + b"\0\0", 1
        elif marker == _PROGRESSIVE:
            segment = segment._replace(marker=_SEQUENTIAL)
        elif (marker == _APP0 and data.startswith(b"JFXX\0")) or (marker == _APP2 and data.startswith(b"MPF\0")):
            kept = None, marker == _APP0
        elif _is_exif(segment):
            exif, pictures = embedded.blank_exif(data[6:])
            kept = _EXIF + exif, pictures
        elif (_APP0 <= marker < _APP0 + 16 and not data.startswith(b"ICC_PROFILE")) or marker == _COMMENT:
            kept = embedded.blank(data)
        found += kept[1]
        carried += [] if kept[0] is None else [segment._replace(data=kept[0])]
    return carried, found


def _blanked_across(segments: list[_Segment]) -> tuple[dict[int, bytes], int]:
    """Return segments without pictures, by number, of what goes on from one segment to the next, and the number of pictures."""
    made, found = {}, 0
    for name, head in _LONG.items():
        members = [number for number, segment in enumerate(segments) if segment.data.startswith(name)]
        rest, pictures = embedded.blank(b"".join(segments[number].data[head:] for number in members))
        found += pictures
        for number in members:
            data = segments[number].data
            made[number], rest = data[:head] + rest[: max(len(data) - head, 0)], rest[max(len(data) - head, 0) :]
    return made, found


def _read_frame(segments: list[_Segment]) -> _Frame:
    """Read all coefficients."""
    kind, head = _frame_header(segments)
    height, width, planes = int.from_bytes(head[1:3], "big"), int.from_bytes(head[3:5], "big"), head[5]
    fields = [head[6 + 3 * plane : 9 + 3 * plane] for plane in range(planes)]
    frame = _Frame(height, width, _components(height, width, fields), {}, _is_coloured(segments, bytes(one[0] for one in fields)))
    known: dict[int, Table] = {}
    interval, scanned = 0, False
    for segment in segments:
        if segment.marker == _DQT and scanned:
            raise ValueError("the quantisation changes between scans")
        if segment.marker == _DQT:
            frame.quantisation.update(_quantisation(segment.data))
        elif segment.marker == _DHT:
            known.update(tables(segment.data))
        elif segment.marker == _DRI:
            interval = int.from_bytes(segment.data[:2], "big")
        elif segment.marker == _SOS:
            _read_scan(segment, frame, known, interval, is_progressive=kind == _PROGRESSIVE)
            scanned = True
    if kind != _PROGRESSIVE and len(frame.pairs) < planes:
        raise ValueError("planes are missing")
    return frame


def _read_scan(segment: _Segment, frame: _Frame, known: dict[int, Table], interval: int, *, is_progressive: bool) -> None:
    data, planes = segment.data, segment.data[0]
    named = {data[1 + 2 * place]: data[2 + 2 * place] for place in range(planes)}
    some = [component for component in frame.components if component.number in named]
    if not some or [component.number for component in some] != list(named) or len(data) < 4 + 2 * planes:
        raise ValueError("a scan has planes that are not there")
    numbers = [(named[component.number] >> 4, 0x10 | named[component.number] & 15) for component in some]
    if is_progressive:
        pairs = [(known.get(dc), known.get(ac)) for dc, ac in numbers]
        progressive.read_scan(segment.scan, some, pairs, interval, data[1 + 2 * planes :])
    elif any(component.number in frame.pairs for component in some):
        raise ValueError("a scan has planes again")
    else:
        found = [(known[dc], known[ac]) for dc, ac in numbers]
        read_scan(segment.scan, some, found, interval)
        frame.pairs.update({component.number: pair for component, pair in zip(some, found, strict=True)})


def _components(height: int, width: int, fields: list[bytes]) -> list[Component]:
    single = len(fields) == 1
    factors = [(1, 1) if single else (one[1] >> 4, one[1] & 15) for one in fields]
    most_across, most_down = max(across for across, _ in factors), max(down for _, down in factors)
    columns, rows = _blocks(width, most_across), _blocks(height, most_down)
    components = []
    for one, (across, down) in zip(fields, factors, strict=True):
        shown = (_blocks(height * down, most_down), _blocks(width * across, most_across))
        blocks = np.zeros((rows * down, columns * across, 64), np.int32)
        components.append(Component(one[0], across, down, one[2], shown, blocks))
    return components


def _blocks(pixels: int, factor: int) -> int:
    """Return how many blocks there are for so many pixels, when one value stands for ``factor`` of them."""
    return -(-pixels // (8 * factor))


def _is_coloured(segments: list[_Segment], names: bytes) -> bool:
    """Return what libjpeg takes three planes for."""
    if any(segment.marker == _APP0 and segment.data.startswith(b"JFIF\0") for segment in segments):
        return True
    adobe = [segment.data for segment in segments if segment.marker == _ADOBE and segment.data.startswith(b"Adobe")]
    return adobe[-1][11:12] != b"\0" if adobe else names != b"RGB"


def _quantisation(data: bytes) -> dict[int, NDArray[np.float32]]:
    found, at = {}, 0
    while at < len(data):
        length = 128 if data[at] >> 4 else 64
        values = np.frombuffer(data[at + 1 : at + 1 + length], ">u2" if length == 128 else "u1").astype(np.float32)
        if len(values) < 64 or not values.all():
            raise ValueError("a quantisation table is damaged")
        found[data[at] & 15] = values
        at += 1 + length
    return found


def _tiles(values: NDArray[Any], frame: _Frame) -> NDArray[Any]:
    """Return an image's values by MCU, ``[rows of MCUs, columns of MCUs, height, width, planes]``, continued beyond its edges."""
    rows, columns, down, across, _ = by_mcu(frame.components[0]).shape
    missing = (rows * down * 8 - frame.height, columns * across * 8 - frame.width)
    wide = np.pad(values, ((0, missing[0]), (0, missing[1]), (0, 0)), "edge")
    return np.ascontiguousarray(wide.reshape(rows, down * 8, columns, across * 8, -1).swapaxes(1, 2))


def _coefficients(frame: _Frame, tiles: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return a change of some MCUs' pixels as one of their coefficients, in steps of the quantisation, not rounded."""
    planes = tiles @ _TO_YCC.T if len(frame.components) == 3 and frame.coloured else tiles
    most_down, most_across = frame.components[0].down, frame.components[0].across
    made = []
    for plane, component in enumerate(frame.components):
        down, across = most_down // component.down, most_across // component.across
        parts = [planes[:, row::down, column::across, plane] for row in range(down) for column in range(across)]
        mean = np.sum(parts, axis=0) / len(parts)
        blocks = mean.reshape(len(mean), component.down, 8, component.across, 8).swapaxes(2, 3)
        waves = (_COSINES @ blocks @ _COSINES.T).reshape(*blocks.shape[:3], 64)
        made.append(waves[..., ZIGZAG] / frame.quantisation[component.table])
    return made


def _with_helpers(beyond: NDArray[np.bool_], share: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the MCUs that break the bound, and the neighbours of those that do not change any more: subsampled colours reach over."""
    helpless = np.pad(beyond & (share == 0), 1)
    rows, columns = share.shape
    around = [helpless[row : row + rows, column : column + columns] for row in range(3) for column in range(3)]
    made: NDArray[np.bool_] = np.logical_or.reduce([beyond, *around])
    return made


def _pixels(segments: list[_Segment], facts: Facts) -> Pixels:
    """Decode what the pixels need, and no more: no reader sees the other segments."""
    bare = [segment for segment in segments if segment.marker < _APP0 or segment.data.startswith((b"JFIF\0", b"Adobe"))]
    with Image.open(io.BytesIO(_joined(bare)), formats=["JPEG"]) as image:
        return np.asarray(image).reshape(facts.shape)


def _joined(segments: list[_Segment]) -> bytes:
    made = [b"\xff\xd8"]
    for marker, data, scan in segments:
        made += [bytes([0xFF, marker]), (len(data) + 2).to_bytes(2, "big"), data, scan]
    return b"".join([*made, b"\xff\xd9"])


def _assembled(segments: list[_Segment], frame: _Frame) -> bytes:
    """Return a file of one scan in the place of the first one."""
    pairs = [frame.pairs[component.number] for component in frame.components if frame.pairs]
    scan = write_scan(frame.components, pairs) if pairs else None
    if scan is None or max(len({pair[kind].source for pair in pairs}) for kind in (0, 1)) > 2:
        pairs = [_common_tables()[min(plane, 1)] for plane in range(len(frame.components))]
        scan = write_scan(frame.components, pairs)
        if scan is None:
            raise UnsupportedImage("has coefficients that no JPEG of 8 bits has", "store it as PNG")
    sources: dict[tuple[int, bytes], int] = {}
    for pair in pairs:
        for kind, one in enumerate(pair):
            sources.setdefault((kind, one.source), sum(known == kind for known, _ in sources))
    made = []
    for marker, data, _ in segments:
        if marker == _SOS and scan:
            codes = b"".join(bytes([kind << 4 | number]) + source for (kind, source), number in sources.items())
            made.append(_Segment(_DHT, codes))
            names = b"".join(
                bytes([component.number, sources[0, dc.source] << 4 | sources[1, ac.source]])
                for component, (dc, ac) in zip(frame.components, pairs, strict=True)
            )
            made.append(_Segment(_SOS, bytes([len(pairs)]) + names + b"\0\x3f\0", scan))
            scan = b""
        elif marker not in (_SOS, _DHT, _DRI):
            made.append(_Segment(marker, data))
    return _joined(made)


@lru_cache(maxsize=1)
def _common_tables() -> tuple[tuple[Table, Table], tuple[Table, Table]]:
    """Return the standard's example tables, which have every symbol, for luminance and colours; libjpeg has them."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG")
    found = {name: one for segment in _walk(stream.getvalue())[0] if segment.marker == _DHT for name, one in tables(segment.data)}
    return (found[0x00], found[0x10]), (found[0x01], found[0x11])
