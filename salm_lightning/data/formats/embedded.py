"""Pictures inside of metadata: where they are in EXIF, XMP and camera makers' blocks, and how they are blanked, byte for byte."""

from __future__ import annotations

import re
import struct

from salm_lightning.data.formats.tags import Tiff

_PICTURE = re.compile(rb"\xff\xd8\xff[\xc0\xc2\xc4\xdb\xdd\xe0-\xef\xfe]|\x89PNG\r\n\x1a\n")
_TEXT_PICTURE = re.compile(rb"(?:/9j/|iVBORw0KGgo)(?:[A-Za-z0-9+/=\s]|&#x[aAdD];)*")
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_ORIENTATION = 0x112
_THUMBNAIL = {0x201: 0x202, 0x111: 0x117}
"""Tags of where a thumbnail's bytes are, with those of how many they are."""


def orientation(exif: bytes) -> int:
    """Return EXIF's orientation, 1 where it says none that there is."""
    try:
        tiff = Tiff(exif)
        first = next(tiff.chain())
        number = tiff.values(first.entries[_ORIENTATION])[0]
    except (ValueError, KeyError, IndexError, StopIteration, struct.error):
        return 1
    return number if 1 <= number <= 8 else 1


def blank_exif(exif: bytes) -> tuple[bytes, int]:
    """Return EXIF whose thumbnails are zeros, with their number; every other byte, and so every position, is as it was."""
    content, found = bytearray(exif), 0
    try:
        tiff = Tiff(exif)
        first = next(tiff.chain())
        for directory in tiff.chain(first.link):
            for where, length in _THUMBNAIL.items():
                if where in directory.entries and length in directory.entries:
                    places, lengths = tiff.values(directory.entries[where]), tiff.values(directory.entries[length])
                    for at, number in zip(places, lengths, strict=False):
                        content[at : at + number] = bytes(len(content[at : at + number]))
                        found += number > 0
        width = 8 if tiff.big else 4
        content[first.link : first.link + width] = bytes(width)
    except (ValueError, KeyError, StopIteration, struct.error):
        pass  # what cannot be followed is searched
    rest, more = blank(bytes(content))
    return rest, found + more


def blank(content: bytes) -> tuple[bytes, int]:
    """Return bytes in which JPEG and PNG files are zeros and such in base64 are spaces, with their number."""
    found = pictures(content)
    made = bytearray(content)
    for first, beyond in found:
        made[first:beyond] = (b"\0" if content[first] > 127 else b" ") * (beyond - first)
    return bytes(made), len(found)


def pictures(content: bytes) -> list[tuple[int, int]]:
    """Return from where to where JPEG and PNG files stand in bytes, as they are or in base64."""
    found, at = [], 0
    while picture := _PICTURE.search(content, at):
        start = picture.start()
        at = _end_of_png(content, start) if picture[0][:1] == b"\x89" else _end_of_jpeg(content, start)
        found.append((start, at))
    texts = [text.span() for text in _TEXT_PICTURE.finditer(content) if len(text[0]) >= 64]  # shorter is no picture
    return found + [(first, beyond) for first, beyond in texts if not any(start <= first < end for start, end in found)]


def next_marker(content: bytes, at: int) -> int:
    """Return where the next of JPEG's markers is that ends a scan, or the end of the content."""
    marker = _MARKER.search(content, at)
    return marker.start() if marker else len(content)


def _end_of_jpeg(content: bytes, start: int) -> int:
    at = start + 2
    while marker := _MARKER.search(content, at):
        if marker[0] == b"\xff\xd9":
            return marker.end()
        size = int.from_bytes(content[marker.end() : marker.end() + 2], "big")
        at = marker.end() + max(size, 2)
    return len(content)


def _end_of_png(content: bytes, start: int) -> int:
    end = content.find(b"IEND", start)
    return len(content) if end < 0 else min(end + 8, len(content))
