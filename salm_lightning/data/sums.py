"""Checksums of files that hold data: each file is read once, whoever asks for which sum, and however often."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from salm_lightning.console import watched

_BLOCK = 2**22
_RECENT = 2 * 10**9
"""Nanoseconds within which a second change of a file may leave its times as they are."""
_known: dict[Path, tuple[tuple[int, ...], FileSums]] = {}


@dataclass(frozen=True)
class FileSum:
    """Name and SHA-256 of a file; the name says where it came from and is never used as a path."""

    name: str
    sha256: str


class FileSums(NamedTuple):
    """A file's sums in hexadecimal; MD5 identifies official MedMNIST files and protects nothing."""

    sha256: str
    md5: str


def file_sums(path: str | Path) -> FileSums:
    """Return a file's sums; a file that has not changed since is not read again."""
    path = Path(path).resolve()
    stat = path.stat()
    state = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if path in _known and _known[path][0] == state:
        return _known[path][1]
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, watched(file, stat.st_size, "Comparing the checksum") as reader:
        while block := reader.read(_BLOCK):
            sha256.update(block)
            md5.update(block)
    sums = FileSums(sha256.hexdigest(), md5.hexdigest())
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _RECENT:
        _known[path] = (state, sums)
    return sums
