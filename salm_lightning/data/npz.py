"""``.npz`` files, read and written as streams: no pickle, memory bounded by a block, and bytes that depend on the content only."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from salm_lightning.checked import Count
from salm_lightning.console import watched
from salm_lightning.data.mapped import MappedRows
from salm_lightning.errors import ReleaseError, SalmError

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip file can state: a real one would change the bytes at each run
_BLOCK = 2**22
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError),
    *(ValueError, TypeError, KeyError, OverflowError, RuntimeError, SyntaxError, tokenize.TokenError),  # from a forged header
)


@dataclass(frozen=True)
class ArraySpec:
    """Shape and type of one stored array.

    Attributes:
        dtype: NumPy's description of the type, such as ``"|u1"``.
        shape: Rows first.
    """

    dtype: str
    shape: tuple[Count, ...]

    @classmethod
    def of(cls, array: NDArray[Any] | MappedRows) -> ArraySpec:
        """Describe an array."""
        return cls(array.dtype.str, tuple(array.shape))

    def __str__(self) -> str:
        return f"{np.dtype(self.dtype).name} {list(self.shape)}"


@dataclass(frozen=True)
class _Member:
    spec: ArraySpec
    fortran_order: bool
    offset: int  # bytes of the header before the data


class NpzReader:
    """Reads the arrays of an ``.npz`` file block by block; a context manager.

    Memory is bounded by the block for stored and for deflated members alike. Arrays in Fortran order, which NumPy writes for
    arrays that were transposed as a whole, cannot be cut by rows in the file and are read at once.

    Args:
        path: The file.
        failure: Class of the errors that this reader raises.
        needed: Arrays that must be plain numbers or text. Of others, what holds Python objects is left aside; ``None`` leaves nothing.

    Attributes:
        specs: Shape and type of every array in the file.
        objects: Names of what was left aside.

    Raises:
        SalmError: The file is missing, not a zip file, damaged, or holds Python objects.
    """

    def __init__(self, path: Path, failure: type[SalmError] = ReleaseError, needed: Collection[str] | None = None) -> None:
        self.path = path
        self.objects: list[str] = []
        self._failure = failure
        with self._explained():
            self._zip = zipfile.ZipFile(path)
        try:
            self._members = self._read_headers(needed)
        except BaseException:
            self._zip.close()
            raise
        self.specs = {name: member.spec for name, member in self._members.items()}

    def __enter__(self) -> NpzReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def chunks(self, name: str, rows: int) -> Iterator[NDArray[Any]]:
        """Yield consecutive blocks of ``rows`` rows of one array, the last one shorter.

        Raises:
            SalmError: The data is damaged or its checksum in the zip file is wrong.
        """
        member = self._members[name]
        with self._explained(name), self._zip.open(f"{name}.npy") as stream:
            stream.read(member.offset)
            yield from _blocks(stream, member, rows)
            if stream.read(1):  # zipfile compares its checksum when it sees the end
                raise ValueError("there is more than its header says")

    def read(self, name: str) -> NDArray[Any]:
        """Return a whole array, in memory.

        Raises:
            SalmError: The data is damaged or its checksum in the zip file is wrong.
        """
        spec = self.specs[name]
        array: NDArray[Any] = np.empty(spec.shape, spec.dtype)
        rows, start = max(1, _BLOCK * spec.shape[0] // max(1, array.nbytes)), 0
        for block in self.chunks(name, rows):
            array[start : start + len(block)] = block
            start += len(block)
        return array

    def stored(self, name: str, what: str = "") -> Iterator[bytes]:
        """Yield an array's bytes as an ``.npy`` file has them, its header included.

        Args:
            name: The array.
            what: What is done with it, for people who wait for a large one.

        Raises:
            SalmError: The data is damaged or its checksum in the zip file is wrong.
        """
        size = self._zip.getinfo(f"{name}.npy").file_size
        with (
            self._explained(name),
            self._zip.open(f"{name}.npy") as stream,
            watched(cast("BinaryIO", stream), size, what) as reader,
        ):
            while block := reader.read(_BLOCK):
                yield block

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def _read_headers(self, needed: Collection[str] | None) -> dict[str, _Member]:
        members: dict[str, _Member] = {}
        for info in self._zip.infolist():
            name = info.filename.removesuffix(".npy")
            with self._explained(name):
                if needed is not None and name == info.filename:
                    continue  # no array
                if name == info.filename or name in members:
                    raise ValueError("a member is not an array, or there twice")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("it is compressed in a way that NumPy does not write")
                with self._zip.open(info) as stream:
                    member = _read_header(stream, info.file_size)
            if member is not None:
                members[name] = member
            elif needed is not None and name not in needed:
                self.objects.append(name)
            else:
                raise self._failure(
                    f"{self.path}: {name} holds Python objects (pickle), which are never loaded: they could run code. Store it as "
                    "numbers or text."
                )
        return members

    @contextmanager
    def _explained(self, name: str | None = None) -> Iterator[None]:
        try:
            yield
        except SalmError:
            raise
        except FileNotFoundError as error:
            raise self._failure(f"{self.path} does not exist; give the path of an .npz file, such as pathmnist.npz.") from error
        except PermissionError as error:
            raise self._failure(f"{self.path} cannot be read ({error.strerror}); ask for the right to read it.") from error
        except _DAMAGED as error:
            what = f"{self.path} is damaged: {name}" if name else str(self.path)
            raise self._failure(f"{what} cannot be read ({error}); copy the file again from where it came.") from error


def write_array(archive: zipfile.ZipFile, name: str, spec: ArraySpec, blocks: Iterable[NDArray[Any]]) -> None:
    """Write one array into a zip file as ``<name>.npy``, block by block, uncompressed.

    Noise does not compress, and what a compressor writes depends on its version: stored members cost little and keep the bytes
    the same everywhere.

    Args:
        archive: Zip file open for writing.
        name: Name of the array.
        spec: What the blocks add up to.
        blocks: Consecutive rows.

    Raises:
        ReleaseError: A block has another type or row shape, or the number of rows is not the one in ``spec``.
    """
    header = {"descr": spec.dtype, "fortran_order": False, "shape": spec.shape}
    written = 0
    with _member(archive, name) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for block in blocks:
            if block.dtype.str != spec.dtype or block.shape[1:] != spec.shape[1:]:
                raise ReleaseError(f"{name}: a block is {ArraySpec.of(block)}, which is not a part of {spec}.")
            written += len(block)
            stream.write(np.ascontiguousarray(block).data.cast("B") if block.size else b"")
    if written != spec.shape[0]:
        raise ReleaseError(f"{name}: {written} rows were given where there must be {spec.shape[0]}, each of them exactly once.")


def copy_array(archive: zipfile.ZipFile, name: str, stored: Iterable[bytes]) -> None:
    """Write an array of another file, as :meth:`NpzReader.stored` yields it, into a zip file, uncompressed."""
    with _member(archive, name) as stream:
        for block in stored:
            stream.write(block)


def slices(array: NDArray[Any] | MappedRows, rows: int) -> Iterator[NDArray[Any]]:
    """Yield consecutive blocks of ``rows`` rows of an array in memory or on disk."""
    for start in range(0, len(array), rows):
        yield np.asarray(array[start : start + rows])


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
    info.compress_type = zipfile.ZIP_STORED
    info.create_system = 3  # else Windows writes other bytes
    return archive.open(info, "w", force_zip64=True)


def _read_header(stream: IO[bytes], size: int) -> _Member | None:
    """Read what the head of an array says, and compare it with the bytes that are there; ``None`` for Python objects."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"version {version} of the array format is not supported")
    if dtype.hasobject:
        return None
    offset = stream.tell()
    if min(shape, default=0) < 0 or offset + math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"its header says shape {shape}, which is not what the file holds")
    return _Member(ArraySpec(dtype.str, shape), fortran_order, offset)


def _blocks(stream: IO[bytes], member: _Member, rows: int) -> Iterator[NDArray[Any]]:
    total, row_shape = member.spec.shape[0], member.spec.shape[1:]
    dtype = np.dtype(member.spec.dtype)
    if member.fortran_order:
        whole = _read_exactly(stream, dtype, math.prod(member.spec.shape))
        yield from slices(whole.reshape(member.spec.shape, order="F"), rows)
        return
    for start in range(0, total, rows):
        count = min(rows, total - start)
        yield _read_exactly(stream, dtype, count * math.prod(row_shape)).reshape(count, *row_shape)


def _read_exactly(stream: IO[bytes], dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    data = stream.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise EOFError("the array ends early")
    return np.frombuffer(data, dtype)
