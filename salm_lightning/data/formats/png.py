"""PNG: every chunk carried over verbatim, with new pixels between them."""

from __future__ import annotations

import io
import zlib
from importlib.util import find_spec
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from salm_lightning.data.formats import embedded
from salm_lightning.data.formats.base import Codec, Facts, Pixels, UnsupportedImage, check_size

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_KINDS = {_GREY: ("grey", 1), _RGB: ("RGB", 3), _GREY_ALPHA: ("grey with alpha", 2), _RGB_ALPHA: ("RGB with alpha", 4)}
_INTERLACED = ", interlaced"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


class _Chunk(NamedTuple):
    kind: bytes
    at: int
    """Where its data begins."""
    length: int


class Png(Codec):
    """Grey and RGB with 8 or 16 bits, with or without alpha, interlaced or not; one picture without a palette."""

    container = "PNG"
    endings = (".png",)
    signatures = (_SIGNATURE,)

    def facts(self, stream: BinaryIO) -> Facts:
        """Walk over the chunks."""
        chunks = list(_walk(stream))
        height, width, bits, kind, interlaced = _header(stream, chunks)
        kinds = {chunk.kind for chunk in chunks}
        if b"acTL" in kinds:
            raise UnsupportedImage("is an animation (APNG)", "store each of its pictures as a PNG of its own")
        if kind == _PALETTE:
            raise UnsupportedImage("has a palette, in which noise has no place", "convert it to RGB or grey with 8 bits")
        if kind not in _KINDS or bits not in (1, 2, 4, 8, 16):
            raise UnsupportedImage(f"is damaged (colour type {kind}, {bits} bits)", "copy it again")
        if bits < 8:
            raise UnsupportedImage(
                f"has {2**bits} levels, too few for noise that is hard to see", "convert it to grey with 8 bits"
            )
        if b"tRNS" in kinds:
            raise UnsupportedImage(
                "makes one colour transparent (tRNS), which noise would break up", "store it with alpha, or without"
            )
        name, planes = _KINDS[kind]
        if bits == 16 and kind != _GREY and find_spec("imagecodecs") is None:
            raise UnsupportedImage(
                f"is {name} with 16 bits, of which Pillow reads 8", "run pip install 'salm-lightning[tiff]', which reads them all"
            )
        found, turned = 0, 1
        for chunk in chunks:
            if chunk.kind in (b"eXIf", *_TEXTS):
                stream.seek(chunk.at)
                data = stream.read(chunk.length)
                found += _blank(chunk.kind, data)[1]
                turned = embedded.orientation(data) if chunk.kind == b"eXIf" else turned
        return check_size(
            Facts(
                *("PNG", height, width, 3 if planes > 2 else 1, bits),
                orientation=turned,
                alpha=planes in (2, 4),
                thumbnails=found,
                detail=name + (_INTERLACED if interlaced else ""),
            )
        )

    def decode(self, content: bytes, facts: Facts) -> tuple[Pixels, Pixels | None]:
        """Decode the bare picture: no reader sees the other chunks."""
        pixels = _pixels(_checked(content), facts)
        return (pixels[..., :-1], pixels[..., -1]) if facts.alpha else (pixels, None)

    def encode(self, content: bytes, facts: Facts, pixels: Pixels, radius: int, secret: bytes = b"") -> bytes:
        """Put a new payload in the place of the first part of the old one; an interlaced file is no longer interlaced."""
        _, alpha = self.decode(content, facts)
        picture = pixels[0] if alpha is None else np.concatenate([pixels[0], alpha[0][..., None]], axis=-1)
        fresh = [data for kind, data in _checked(_made(picture)) if kind == b"IDAT"]
        made, placed = [_SIGNATURE], False
        for kind, data in _carried(_checked(content), blank=True):
            if kind != b"IDAT":
                made.append(_chunk(kind, data))
            elif not placed:
                made.extend(_chunk(b"IDAT", part) for part in fresh)
                placed = True
        return b"".join(made)

    def parts(self, content: bytes, *, blank: bool) -> list[tuple[str, bytes]]:
        """Return the chunks, with the pixels' place among them, the alpha channel, and what follows the end."""
        chunks = _checked(content)
        facts = self.facts(io.BytesIO(content))
        named: list[tuple[str, bytes]] = []
        for kind, data in _carried(chunks, blank=blank):
            part = ("place of the pixels", b"") if kind == b"IDAT" else (f"chunk {kind.decode('latin-1')}", data)
            if part[1] or part not in named:
                named.append(part)
        _, alpha = self.decode(content, facts)
        behind = b"" if blank else content[sum(len(data) + 12 for _, data in chunks) + len(_SIGNATURE) :]
        named += [("alpha", alpha.tobytes())] if alpha is not None else []
        return named + ([("bytes behind the end", behind)] if behind else [])


def _walk(stream: BinaryIO) -> list[_Chunk]:
    """Return the chunks up to IEND; what follows is none."""
    end = stream.seek(0, io.SEEK_END)
    chunks: list[_Chunk] = []
    at = len(_SIGNATURE)
    while not chunks or chunks[-1].kind != b"IEND":
        stream.seek(at)
        head = stream.read(8)
        length = int.from_bytes(head[:4], "big")
        if len(head) < 8 or at + length + 12 > end:
            raise UnsupportedImage("is cut off", "copy it again")
        chunks.append(_Chunk(head[4:], at + 8, length))
        at += length + 12
    return chunks


def _header(stream: BinaryIO, chunks: list[_Chunk]) -> tuple[int, int, int, int, bool]:
    if chunks[0].kind != b"IHDR" or chunks[0].length != 13 or all(chunk.kind != b"IDAT" for chunk in chunks):
        raise UnsupportedImage("is damaged (it has no header or no pixels)", "copy it again")
    stream.seek(chunks[0].at)
    data = stream.read(17)
    if zlib.crc32(b"IHDR" + data[:13]) != int.from_bytes(data[13:], "big"):
        raise UnsupportedImage("is damaged (the sum of its header is wrong)", "copy it again")
    width, height = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")
    return height, width, data[8], data[9], data[12] != 0


def _checked(content: bytes) -> list[tuple[bytes, bytes]]:
    """Return the chunks with their data, all of whose sums are right."""
    chunks: list[tuple[bytes, bytes]] = []
    for kind, at, length in _walk(io.BytesIO(content)):
        data = content[at : at + length]
        if zlib.crc32(kind + data) != int.from_bytes(content[at + length : at + length + 4], "big"):
            raise UnsupportedImage(f"is damaged (the sum of its chunk {kind.decode('latin-1')!r} is wrong)", "copy it again")
        chunks.append((kind, data))
    return chunks


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def _carried(chunks: list[tuple[bytes, bytes]], *, blank: bool) -> list[tuple[bytes, bytes]]:
    """Return the chunks as they are carried over: with ``blank`` without pictures in them, and not interlaced."""
    if not blank:
        return chunks
    carried = []
    for kind, data in chunks:
        kept = data[:12] + b"\0" if kind == b"IHDR" else _blank(kind, data)[0]
        carried += [] if kept is None else [(kind, kept)]
    return carried


def _blank(kind: bytes, data: bytes) -> tuple[bytes | None, int]:
    """Return a chunk without pictures and their number; ``None`` for a text that has to go as a whole."""
    if kind == b"eXIf":
        return embedded.blank_exif(data)
    if kind not in _TEXTS:
        return data, 0
    plain, found = embedded.blank(data)
    if found:
        return plain, found
    key, _, rest = data.partition(b"\0")
    packed = rest[1:] if kind == b"zTXt" else rest[2:].split(b"\0", 2)[-1] if kind == b"iTXt" and rest[:1] == b"\1" else b""
    text = zlib.decompressobj().decompress(packed, 2**24) if packed else rest
    if key.startswith(b"Raw profile type"):  # ImageMagick's hexadecimal, behind a name and a length
        text = bytes.fromhex("".join(text.decode("latin-1").split()[2:]))
    hidden = embedded.blank(text)[1]
    return (None, hidden) if hidden else (data, 0)


def _pixels(chunks: list[tuple[bytes, bytes]], facts: Facts) -> Pixels:
    planes = facts.channels + facts.alpha
    packed = b"".join(data for kind, data in chunks if kind == b"IDAT")
    needed = sum((1 + columns * planes * facts.bits // 8) * rows for rows, columns in _passes(facts) if columns)
    unpacked = zlib.decompressobj()
    if len(unpacked.decompress(packed, needed + 1)) != needed or not unpacked.eof:  # Pillow would make up rows that are missing
        raise UnsupportedImage("is damaged (its header gives another size than it has)", "copy it again")
    bare = _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks if kind in (b"IHDR", b"IDAT", b"IEND"))
    if facts.bits == 16 and planes > 1:
        import imagecodecs

        array = imagecodecs.png_decode(bare)
    else:
        with Image.open(io.BytesIO(bare), formats=["PNG"]) as image:
            array = np.asarray(image)
    return array.reshape(1, facts.height, facts.width, planes).astype(
        np.uint8 if facts.bits == 8 else np.uint16, casting="unsafe"
    )


def _passes(facts: Facts) -> list[tuple[int, int]]:
    """Return the rows and columns of the pictures that follow each other: one, or the seven of an interlaced file."""
    if not facts.detail.endswith(_INTERLACED):
        return [(facts.height, facts.width)]
    starts = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    return [
        (len(range(row, facts.height, down)), len(range(column, facts.width, across))) for row, column, down, across in starts
    ]


def _made(picture: Pixels) -> bytes:
    """Return a bare PNG of pixels ``[H, W, planes]``."""
    if picture.dtype == np.uint16 and picture.shape[-1] > 1:
        import imagecodecs

        return bytes(imagecodecs.png_encode(picture))
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)).save(stream, "PNG")
    return stream.getvalue()
