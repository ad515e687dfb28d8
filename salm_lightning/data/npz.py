"""``.npz`` files, read and written as streams: no pickle, memory bounded by a block, and bytes that depend on the content only."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from salm_lightning.checked import Count
from salm_lightning.console import watched
from salm_lightning.data.mapped import MappedRows
from salm_lightning.errors import DAMAGED, ReleaseError, SalmError

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip file can state: a real one would change the bytes at each run
_BLOCK = 2**22


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


class NpzReader(AbstractContextManager["NpzReader"]):
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
            self.specs = self._read_headers(needed)
        except BaseException:
            self._zip.close()
            raise

    def __exit__(self, *error: object) -> None:
        self.close()

    def chunks(self, name: str, rows: int) -> Iterator[NDArray[Any]]:
        """Yield consecutive blocks of ``rows`` rows of one array, the last one shorter.

        Raises:
            SalmError: The data is damaged or its checksum in the zip file is wrong.
        """
        total, *row_shape = self.specs[name].shape
        with self._explained(name), self._zip.open(f"{name}.npy") as stream:
            shape, fortran_order, dtype = _read_header(stream)
            if fortran_order:
                yield from slices(_read_exactly(stream, dtype, math.prod(shape)).reshape(shape, order="F"), rows)
                total = 0
            for start in range(0, total, rows):
                count = min(rows, total - start)
                yield _read_exactly(stream, dtype, count * math.prod(row_shape)).reshape(count, *row_shape)
            if stream.read(1):  # zipfile compares its checksum when it sees the end
                raise ValueError("there is more than its header says")

    def read(self, name: str) -> NDArray[Any]:
        """Return a whole array, in memory.

        Raises:
            SalmError: The data is damaged or its checksum in the zip file is wrong.
        """
        with self._explained(name), self._zip.open(f"{name}.npy") as stream:
            array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
            if stream.read(1):  # zipfile compares its checksum when it sees the end
                raise ValueError("there is more than its header says")
        return np.ascontiguousarray(array)

    def stored(self, name: str, what: str = "") -> Iterator[bytes]:
        """Yield an array's bytes as an ``.npy`` file has them, its header included; ``what`` tells people who wait for a large one.

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

    def _read_headers(self, needed: Collection[str] | None) -> dict[str, ArraySpec]:
        """Return what the heads of the arrays say, once it is compared with the bytes that are there."""
        specs: dict[str, ArraySpec] = {}
        for info in self._zip.infolist():
            name = info.filename.removesuffix(".npy")
            with self._explained(name):
                if needed is not None and name == info.filename:
                    continue  # no array
                if name == info.filename or name in specs:
                    raise ValueError("a member is not an array, or there twice")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("it is compressed in a way that NumPy does not write")
                with self._zip.open(info) as stream:
                    shape, _, dtype = _read_header(stream)
                    whole = min(shape, default=0) >= 0 and stream.tell() + math.prod(shape) * dtype.itemsize == info.file_size
                if not dtype.hasobject and not whole:
                    raise ValueError(f"its header says shape {shape}, which is not what the file holds")
            if not dtype.hasobject:
                specs[name] = ArraySpec(dtype.str, shape)
            elif needed is not None and name not in needed:
                self.objects.append(name)
            else:
                raise self._failure(
                    f"{self.path}: {name} holds Python objects (pickle), which are never loaded: they could run code. Store it as "
                    "numbers or text."
                )
        return specs

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
        except DAMAGED as error:
            what = f"{self.path} is damaged: {name}" if name else str(self.path)
            raise self._failure(f"{what} cannot be read ({error}); copy the file again from where it came.") from error


def write_array(archive: zipfile.ZipFile, name: str, spec: ArraySpec, blocks: Iterable[NDArray[Any]]) -> None:
    """Write one array into a zip file as ``<name>.npy``, block by block, uncompressed.

    Noise does not compress, and what a compressor writes depends on its version: stored members cost little and keep the bytes
    the same everywhere. The blocks are consecutive rows.

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


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return an array's shape, whether it is in Fortran order, and its type; the stream is then at its data."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"version {version} of the array format is not supported")


def _read_exactly(stream: IO[bytes], dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    data = stream.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise EOFError("the array ends early")
    return np.frombuffer(data, dtype)
