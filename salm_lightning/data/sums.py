"""Checksums of files that hold data: each file is read once, whoever asks for which sum, and however often."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from salm_lightning.console import watched
from salm_lightning.errors import ConfigurationError, ReleaseError
from salm_lightning.files import address, cache_root, one_at_a_time
from salm_lightning.sealed import read_sealed, write_sealed

_BLOCK = 2**22
_RECENT = 2 * 10**9
"""Nanoseconds within which a second change of a file may leave its times as they are."""
_WHILE = 900.0
"""Seconds for which the ranks of a job take over what one of them has summed up."""
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
    job, told = _job(), Path(f"{path}.sums")
    with one_at_a_time(told) if job else nullcontext():  # ranks come here together
        sums = _told(told, job, state) or _sum_up(path, stat.st_size)
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _RECENT:
            _known[path] = (state, sums)
            _tell(told, job, state, sums)
    return sums


def _sum_up(path: Path, size: int) -> FileSums:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, watched(file, size, "Comparing the checksum") as reader:
        while block := reader.read(_BLOCK):
            sha256.update(block)
            md5.update(block)
    return FileSums(sha256.hexdigest(), md5.hexdigest())


def _job() -> str:
    """Return what the ranks of a job have in common and other programs have not; nothing for a program of one process."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    return "|".join(filter(None, map(os.environ.get, names)))


def _note(path: Path) -> Path:
    return cache_root() / f".{address(str(path))[:16]}.sums"


def _told(path: Path, job: str, state: tuple[int, ...]) -> FileSums | None:
    """Return the sums that another rank of this job has made of the same file a while ago, if any."""
    if not job:
        return None
    try:
        values, ours = read_sealed(_note(path))
        if not ours or values["about"] != [job, *state] or time.time() - values["at"] > _WHILE:
            return None
        return FileSums(values["sha256"], values["md5"])
    except (OSError, ReleaseError, LookupError):
        return None


def _tell(path: Path, job: str, state: tuple[int, ...], sums: FileSums) -> None:
    if job:
        with suppress(OSError, ConfigurationError):  # the others make them then
            write_sealed(_note(path), {"about": [job, *state], "at": time.time(), **sums._asdict()})
