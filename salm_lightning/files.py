"""Files and folders: written completely or not at all, read back, summed, and worked in by one program at a time."""

from __future__ import annotations

import csv
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from salm_lightning.errors import ConfigurationError, DataError, OutputExistsError, SalmError

_BLOCK = 2**16


LOCK = ".lock"
"""Name of the file by which a program keeps others out of a folder."""
_LONGEST_NAME = 150
"""Bytes of a name that leave room for what :func:`beside` adds, of the 255 that file systems have."""
_HERE, _EXCHANGE = -100, 2
"""What Linux calls ``AT_FDCWD`` and ``RENAME_EXCHANGE``."""
_HOST = os.uname().nodename.partition(".")[0]
_held: list[tuple[str, Path, int]] = []
"""Folders that this process has locked: what they are called, their paths, and their descriptors."""


def beside(path: Path) -> Path:
    """Return the hidden name, next to ``path``, of what is to become it; it tells which process of which machine is writing there."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return path.with_name(f".{name}.{_HOST}.{os.getpid()}.tmp")


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove those of the paths that were :func:`beside` others for processes of this machine that are gone."""
    for path in list(paths):
        owner = re.fullmatch(rf"\..+\.{re.escape(_HOST)}\.(\d{{1,9}})\.tmp", path.name)
        if owner and not _is_running(int(owner[1])):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there; of a link only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to, which takes the place of ``path`` at the end, unless an error comes before.

    The name is this process's own: others may be writing the same file. A power cut leaves the old file or the whole new one: the
    bytes are on the disk before the name is. After an error nothing is left of the temporary file.

    Raises:
        OSError: It cannot be written; see :func:`writing`.
    """
    _refuse_another_place()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    temporary.unlink(missing_ok=True)  # a link, perhaps, that somebody has laid there
    try:
        with writing(path):
            yield temporary
            flush(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


@contextmanager
def building(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path`` for what is to become it: unless that takes its place, nothing is left of it at the end."""
    _refuse_another_place()
    remove_leftovers(path.parent.glob(".*.tmp"))
    folder = beside(path)
    remove(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        remove(folder)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let an error of the system's, such as that a disk is full, name the file, whatever its writer made of it.

    Raises:
        OSError: It cannot be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else error.__context__  # torch.save makes a RuntimeError of it
        if not isinstance(reason, OSError) or reason.filename is not None:
            raise
        number = reason.errno or errno.ENOSPC  # numpy tells of bytes that were not written, without a number
        raise OSError(number, os.strerror(number), str(path)) from error


def exchange(first: Path, second: Path) -> bool:
    """Let two files or folders change names in one step, and return whether the system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0


def flush(path: Path) -> None:
    """Wait until the disk has a file's bytes, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes, private: bool = False) -> None:
    """Write a file, completely or not at all; a ``private`` one is its owner's alone to read."""
    with replacing(path) as temporary:
        temporary.touch(0o600 if private else 0o666, exist_ok=False)
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, line ends as they are; halves of characters, which JSON can hold and UTF-8 cannot, become ``?``."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_json(path: Path, values: Mapping[str, Any] | Sequence[Any], private: bool = False) -> None:
    """Write JSON values, two spaces a level; see :func:`write_bytes`."""
    write_bytes(path, (json.dumps(values, indent=2) + "\n").encode(), private)


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


def overlap(first: Path, second: Path) -> bool:
    """Return whether two folders are the same, or one lies in the other."""
    first, second = first.resolve(), second.resolve()
    return first.is_relative_to(second) or second.is_relative_to(first)


def file_sha256(path: str | Path) -> str:
    """Return a file's SHA-256 sum in hexadecimal.

    Raises:
        OSError: It cannot be read, or is a pipe, which would be waited for without an end.
    """
    if Path(path).is_fifo():
        raise OSError(errno.EINVAL, "Is a pipe, and no file", str(path))
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


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Let one of the processes that share the cache do something with a file, while others that ask for the same wait.

    Where no lock can be had, they do it at once.
    """
    place = cache_root() / f".{address(str(path.resolve()))[:16]}.lock"
    with ExitStack() as held:
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            while not _lock(place, held):  # whoever had it has removed it
                pass
            held.callback(place.unlink, missing_ok=True)
        yield


def _lock(path: Path, held: ExitStack) -> bool:
    """Wait for the lock of a file, and return whether that is still the one of this name."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    held.callback(os.close, descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


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
def locked(folder: Path, argument: str) -> Iterator[None]:
    """Keep others out of a folder, also while processes are at work that a killed program has left: they inherit the lock.

    The folder is made. Nothing that is written or deleted below it is elsewhere, because links that lead out of it are refused: a folder
    may come from somebody else. Temporary files that programs which are gone have left anywhere in it are removed.

    Raises:
        OutputExistsError: Another process works there; after ``argument``, such as ``out=results``, the message says which and since when.
            Or a link leads out.
        SalmError: The folder was deleted or moved while it was held; see :func:`replacing`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_ways_out(folder)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)  # nothing is lost before the lock is held
    with open(descriptor, "r+", encoding="utf-8", errors="replace") as lock:  # noqa: PTH123 (of a descriptor)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputExistsError(
                f"{argument} is in use by {lock.read(200)}, or by what that has left running; wait for it, or name another folder."
            ) from error
        with writing(folder / LOCK):
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} ({_HOST}{_job()}) since {time.strftime('%Y-%m-%d %H:%M:%S')}".encode())
        os.set_inheritable(lock.fileno(), True)
        remove_leftovers(folder.rglob(".*.tmp"))
        _held.append((argument, folder, os.open(folder, os.O_RDONLY)))
        try:
            yield
            _refuse_another_place()
        finally:
            os.close(_held.pop()[2])


def _refuse_another_place() -> None:
    """Refuse to make a folder again that was taken away: what was in it is gone, and another process may lock what stands there now."""
    for argument, path, descriptor in _held:
        try:
            stands = os.path.samestat(path.stat(), os.fstat(descriptor))
        except OSError:
            stands = False
        if not stands:
            raise SalmError(f"{argument} was deleted or moved while this was at work in it; put it back, or repeat the command.")


def _refuse_ways_out(folder: Path) -> None:
    within = folder.resolve()
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(within):
                raise OutputExistsError(f"{path} is a link that leads out of {folder}; remove it, or name another folder.")


def _job() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    return f", job {job}" if job else ""
