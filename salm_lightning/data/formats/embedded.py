"""Pictures inside of metadata: where they are in EXIF, XMP and camera makers' blocks, and how they are blanked, byte for byte."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

_PICTURE = re.compile(rb"\xff\xd8\xff[\xc0\xc2\xc4\xdb\xdd\xe0-\xef\xfe]|\x89PNG\r\n\x1a\n")
_TEXT_PICTURE = re.compile(rb"(?:/9j/|iVBORw0KGgo)(?:[A-Za-z0-9+/=\s]|&#x[aAdD];)*")
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_ORIENTATION = 0x112
_THUMBNAIL = {0x201: 0x202, 0x111: 0x117}
"""Tags of where a thumbnail's bytes are, with those of how many they are."""


class Entry(NamedTuple):
    """One tag of a TIFF directory: its position, type, number of values, and where their bytes are."""

    at: int
    kind: int
    number: int
    place: int
    length: int


class Directory(NamedTuple):
    """One TIFF directory: its tags, and where the position of the next one stands."""

    entries: dict[int, Entry]
    link: int


class Tiff:
    """TIFF's tree of directories, as in a TIFF file and in EXIF, over bytes.

    Raises:
        ValueError: They are none.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        order = {b"II": "<", b"MM": ">"}.get(content[:2])
        version = int.from_bytes(content[2:4], "little" if order == "<" else "big")
        if order is None or version not in (42, 43):
            raise ValueError("no TIFF")
        self.order, self.big = order, version == 43
        self.first = 8 if self.big else 4
        """Where the position of the first directory stands."""

    def number(self, code: str, at: int) -> int:
        """Return an integer of a struct code."""
        return int(struct.unpack_from(self.order + code, self.content, at)[0])

    def directory(self, at: int) -> Directory:
        """Return the directory at a position."""
        head, code, width = (8, "Q", 20) if self.big else (2, "H", 12)
        inline = 8 if self.big else 4
        entries = {}
        number = self.number(code, at)
        if number * width > len(self.content):
            raise ValueError(f"a directory of {number} tags")
        for place in range(at + head, at + head + number * width, width):
            tag, kind = self.number("H", place), self.number("H", place + 2)
            count = self.number("Q" if self.big else "L", place + 4)
            length, inside = _SIZES.get(kind, 1) * count, place + width - inline
            where = inside if length <= inline else self.number("Q" if self.big else "L", inside)
            if where + length > len(self.content):
                raise ValueError(f"tag {tag} lies behind the end")
            entries[tag] = Entry(place, kind, count, where, length)
        return Directory(entries, at + head + number * width)

    def chain(self, link: int | None = None) -> Iterator[Directory]:
        """Yield the directories that follow each other, from the one whose position stands at ``link``."""
        seen: set[int] = set()
        link = self.first if link is None else link
        while at := self.number("Q" if self.big else "L", link):
            if at in seen:
                raise ValueError("directories in a circle")
            seen.add(at)
            directory = self.directory(at)
            yield directory
            link = directory.link

    def values(self, entry: Entry) -> list[int]:
        """Return the integers of a tag; none if it has other values."""
        code = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L", 16: "Q", 17: "q", 18: "Q"}.get(entry.kind)
        if code is None:
            return []
        return list(struct.unpack_from(f"{self.order}{entry.number}{code}", self.content, entry.place))


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
