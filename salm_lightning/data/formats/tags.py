"""TIFF's tree of tags, which TIFF files and EXIF have."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value by type."""

_MOST_TAGS = 2**20
"""Tags of all directories that are read, so that a forged file does not take hours."""


class Lazy:
    """A file that is read where it is looked at, like bytes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._length = stream.seek(0, io.SEEK_END)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> bytes:
        first, beyond, _ = part.indices(self._length)
        self._stream.seek(first)
        return self._stream.read(max(beyond - first, 0))


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
    """TIFF's tree of directories, as in a TIFF file and in EXIF, over bytes or a file.

    Raises:
        ValueError: They are none.
    """

    def __init__(self, content: bytes | Lazy) -> None:
        self.content = content
        order = {b"II": "<", b"MM": ">"}.get(bytes(content[:2]))
        version = int.from_bytes(content[2:4], "little" if order == "<" else "big")
        if order is None or version not in (42, 43):
            raise ValueError("no TIFF")
        self.order, self.big = order, version == 43
        self.wide = "Q" if self.big else "L"
        """Struct code of a position."""
        self._tags = 0
        self.first = 8 if self.big else 4
        """Where the position of the first directory stands."""

    def number(self, code: str, at: int) -> int:
        """Return an integer of a struct code."""
        return int(struct.unpack(self.order + code, self.content[at : at + struct.calcsize("=" + code)])[0])

    def directory(self, at: int) -> Directory:
        """Return the directory at a position."""
        head, code, width = (8, "Q", 20) if self.big else (2, "H", 12)
        inline = 8 if self.big else 4
        entries = {}
        number = self.number(code, at)
        self._tags += number
        if number * width > len(self.content) or self._tags > _MOST_TAGS:
            raise ValueError(f"a directory of {number} tags")
        for place in range(at + head, at + head + number * width, width):
            tag, kind = self.number("H", place), self.number("H", place + 2)
            count = self.number(self.wide, place + 4)
            length, inside = SIZES.get(kind, 1) * count, place + width - inline
            where = inside if length <= inline else self.number(self.wide, inside)
            if where + length > len(self.content):
                raise ValueError(f"tag {tag} lies behind the end")
            entries[tag] = Entry(place, kind, count, where, length)
        return Directory(entries, at + head + number * width)

    def chain(self, link: int | None = None) -> Iterator[Directory]:
        """Yield the directories that follow each other, from the one whose position stands at ``link``."""
        seen: set[int] = set()
        link = self.first if link is None else link
        while at := self.number(self.wide, link):
            if at in seen:
                raise ValueError("directories in a circle")
            seen.add(at)
            directory = self.directory(at)
            yield directory
            link = directory.link

    def raw(self, entry: Entry) -> bytes:
        """Return the bytes of a tag's values."""
        return self.content[entry.place : entry.place + entry.length]

    def values(self, entry: Entry) -> list[int]:
        """Return the integers of a tag; none if it has other values."""
        code = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L", 16: "Q", 17: "q", 18: "Q"}.get(entry.kind)
        if code is None:
            return []
        return list(struct.unpack(f"{self.order}{entry.number}{code}", self.raw(entry)))
