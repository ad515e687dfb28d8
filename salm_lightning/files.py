"""Files and folders: written completely or not at all, read back, summed, and worked in by one program at a time."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from salm_lightning.errors import ConfigurationError, DataError, OutputExistsError

_BLOCK = 2**16


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to, which takes the place of ``path`` at the end, unless an error comes before.

    The name is this process's own: others may be writing the same file. A power cut leaves the old file or the whole new one: the
    bytes are on the disk before the name is. After an error nothing is left of the temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # a link, perhaps, that somebody has laid there
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until the disk has a file's bytes, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, line ends as they are; halves of characters, which JSON can hold and UTF-8 cannot, become ``?``."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_json(path: Path, values: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write JSON values, two spaces a level."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_csv(path: Path, columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> None:
    """Write a line per mapping under a line of headings; what a mapping lacks stays empty."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(lines)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the lines of a CSV by column; none where there is no such file."""
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is damaged ({error}); move it away, and the command writes it anew.") from error


def file_sha256(path: str | Path) -> str:
    """Return a file's SHA-256 sum in hexadecimal."""
    total = hashlib.sha256()
    with Path(path).open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):  # hashlib.file_digest would hold more in memory than a slab of noise has
            total.update(block)
    return total.hexdigest()


def checksums_of(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of the files that options name, such as a checkpoint's, by option: the path alone says little."""
    named = {name: Path(value) for name, value in options.items() if isinstance(value, str)}
    return {name: file_sha256(path) for name, path in named.items() if path.is_file()}


def address(*settings: Any) -> str:
    """Return the SHA-256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def cache_root() -> Path:
    """Return the folder of what is unpacked or made from datasets: ``SALM_CACHE_DIR``, else ``~/.cache/salm_lightning``."""
    return _own_folder("SALM_CACHE_DIR", "XDG_CACHE_HOME", "~/.cache")


def state_root() -> Path:
    """Return the folder of what is to be kept: ``SALM_STATE_DIR``, else ``~/.local/state/salm_lightning``."""
    return _own_folder("SALM_STATE_DIR", "XDG_STATE_HOME", "~/.local/state")


def _own_folder(variable: str, common: str, usual: str) -> Path:
    return expanded(os.environ.get(variable) or Path(os.environ.get(common) or usual) / "salm_lightning")


def expanded(path: str | Path) -> Path:
    """Return a path with the user's home folder in the place of ``~``.

    Raises:
        ConfigurationError: Nobody knows that folder, as in a container whose user has only a number.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigurationError(f"{path}: {error} Set HOME to a folder, or give a path without ~.") from error


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Keep others out of a folder, also while processes are at work that a killed program has left: they inherit the lock.

    The folder is made. Nothing that is written or deleted below it is elsewhere, because links that lead out of it are refused: a folder
    may come from somebody else.

    Raises:
        OutputExistsError: Another one of ``what`` works there, such as ``sweep``, is running; or a link leads out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_ways_out(folder)
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputExistsError(
                f"out={folder}: another {what} is running there, or a run that it left; wait for it, or choose another folder."
            ) from error
        os.set_inheritable(lock.fileno(), True)
        yield


def _refuse_ways_out(folder: Path) -> None:
    within = folder.resolve()
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(within):
                raise OutputExistsError(
                    f"{path} is a link that leads out of {folder}; remove it, or name another folder with --out."
                )
