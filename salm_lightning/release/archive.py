"""Streaming access to ``.npz`` files: one chunk of rows at a time, no pickle, and bytes that depend on the content only."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from salm_lightning.data.base import SPLITS
from salm_lightning.data.mapped_rows import MappedRows
from salm_lightning.errors import ReleaseError

if TYPE_CHECKING:
    from salm_lightning.data.datamodule import ImageDataModule

ARRAYS = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))
"""The arrays of MedMNIST's layout, in the order in which they are written."""

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip file can state: a real one would change the bytes at each run
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
    shape: tuple[int, ...]

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
    """Reads the arrays of an ``.npz`` file chunk by chunk; a context manager.

    Memory is bounded by the chunk for stored and for deflated members alike. Arrays in Fortran order, which NumPy writes for
    arrays that were transposed as a whole, cannot be cut by rows in the file and are read at once.

    Args:
        path: The file.

    Attributes:
        specs: Shape and type of every array in the file.

    Raises:
        ReleaseError: The file is missing, not a zip file, damaged, or holds anything but plain numeric arrays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._explained():
            self._zip = zipfile.ZipFile(path)
        try:
            self._members = self._read_headers()
        except BaseException:
            self._zip.close()
            raise
        self.specs = {name: member.spec for name, member in self._members.items()}

    def __enter__(self) -> NpzReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._zip.close()

    def chunks(self, name: str, rows: int) -> Iterator[NDArray[Any]]:
        """Yield consecutive blocks of ``rows`` rows of one array, the last one shorter.

        Raises:
            ReleaseError: The data is damaged or its checksum in the zip file is wrong.
        """
        member = self._members[name]
        with self._explained(name), self._zip.open(f"{name}.npy") as stream:
            stream.read(member.offset)
            yield from _blocks(stream, member, rows)  # zipfile compares its checksum at the last byte

    def _read_headers(self) -> dict[str, _Member]:
        files = self._zip.infolist()
        members: dict[str, _Member] = {}
        for info in files:
            name = info.filename.removesuffix(".npy")
            with self._explained(name):
                if name == info.filename or name in members:
                    raise ValueError("a member is not an array, or there twice")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("it is compressed in a way that NumPy does not write")
                with self._zip.open(info) as stream:
                    members[name] = _read_header(stream, info.file_size)
        return members

    @contextmanager
    def _explained(self, name: str | None = None) -> Iterator[None]:
        try:
            yield
        except ReleaseError:
            raise
        except FileNotFoundError as error:
            raise ReleaseError(f"{self.path} does not exist; give the path of an .npz file, such as pathmnist.npz.") from error
        except PermissionError as error:
            raise ReleaseError(f"{self.path} cannot be read ({error.strerror}); ask for the right to read it.") from error
        except _DAMAGED as error:
            where = f"{self.path}, array {name!r}" if name else str(self.path)
            raise ReleaseError(f"{where} cannot be read ({error}); copy the file again from where it came.") from error


class SplitsReader:
    """Offers the splits of a DataModule as :class:`NpzReader` offers those of a file.

    Args:
        images: The DataModule; its splits are loaded.

    Attributes:
        specs: Shape and type of every array.
    """

    def __init__(self, images: ImageDataModule) -> None:
        splits = {name: images.split(name) for name in SPLITS}
        self._arrays = {f"{name}_{kind}": getattr(split, kind) for name, split in splits.items() for kind in ("images", "labels")}
        self.specs = {name: ArraySpec.of(array) for name, array in self._arrays.items()}

    def chunks(self, name: str, rows: int) -> Iterator[NDArray[Any]]:
        """Yield consecutive blocks of ``rows`` rows of one array, the last one shorter."""
        return slices(self._arrays[name], rows)


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
    info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
    info.compress_type = zipfile.ZIP_STORED
    info.create_system = 3  # else Windows writes other bytes
    header = {"descr": spec.dtype, "fortran_order": False, "shape": spec.shape}
    written = 0
    with archive.open(info, "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for block in blocks:
            if block.dtype.str != spec.dtype or block.shape[1:] != spec.shape[1:]:
                raise ReleaseError(f"{name}: a block is {ArraySpec.of(block)}, which is not a part of {spec}.")
            written += len(block)
            stream.write(np.ascontiguousarray(block).data.cast("B") if block.size else b"")
    if written != spec.shape[0]:
        raise ReleaseError(f"{name}: {written} rows were given where there must be {spec.shape[0]}, each of them exactly once.")


def slices(array: NDArray[Any] | MappedRows, rows: int) -> Iterator[NDArray[Any]]:
    """Yield consecutive blocks of ``rows`` rows of an array in memory or on disk."""
    for start in range(0, len(array), rows):
        yield np.asarray(array[start : start + rows])


def _read_header(stream: Any, size: int) -> _Member:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"version {version} of the array format is not supported")
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded")
    offset = stream.tell()
    if not shape or min(shape) < 0 or offset + math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"its header says shape {shape}, which is not what the file holds")
    return _Member(ArraySpec(dtype.str, shape), fortran_order, offset)


def _blocks(stream: BinaryIO | Any, member: _Member, rows: int) -> Iterator[NDArray[Any]]:
    total, row_shape = member.spec.shape[0], member.spec.shape[1:]
    dtype = np.dtype(member.spec.dtype)
    if member.fortran_order:
        whole = _read_exactly(stream, dtype, math.prod(member.spec.shape))
        yield from slices(whole.reshape(member.spec.shape, order="F"), rows)
        return
    for start in range(0, total, rows):
        count = min(rows, total - start)
        yield _read_exactly(stream, dtype, count * math.prod(row_shape)).reshape(count, *row_shape)


def _read_exactly(stream: BinaryIO | Any, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    data = stream.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise EOFError("the array ends early")
    return np.frombuffer(data, dtype)
