"""A protected file and its original, decoded as people see them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from salm_lightning.data import formats
from salm_lightning.errors import ReleaseError
from salm_lightning.files import file_sha256
from salm_lightning.release.folder_manifest import FileRecord

_R = TypeVar("_R")


class FilePair(NamedTuple):
    """A file of a result: the two trees, what the table says of it, and what black and white are."""

    tree: Path
    originals: Path
    record: FileRecord
    values: tuple[float, float]


def page_name(file: str, page: int, pages: int) -> str:
    """Return what a page, counted from 0, is called: its file, and of several pages which one."""
    return f"{file}, page {page + 1}" if pages > 1 else file


class Pages(NamedTuple):
    """Some pages of a file, by their numbers."""

    pair: FilePair
    pages: tuple[int, ...]


def on_pages(work: Callable[[NDArray[Any], NDArray[Any]], _R], channels: int, pages: Pages) -> _R:
    """Return what a function makes of the originals and the protected pixels of some pages; see :func:`decode_pair`."""
    before, after = decode_pair(pages.pair, channels)
    return work(before[list(pages.pages)], after[list(pages.pages)])


def white_of(values: tuple[float, float]) -> int:
    """Return what white is in integers from black, 0: as many as there are units in the range, if they are whole and 16 bits hold them."""
    low, high = values
    return int(high - low) if float(low).is_integer() and float(high).is_integer() and high - low < 2**16 else 2**16 - 1


def seen(path: Path, values: tuple[float, float]) -> NDArray[Any]:
    """Return the pixels of a file as people see them, upright, ``[pages, H, W]`` or ``[pages, H, W, 3]``.

    They are uint8; of a file above 8 bits uint16 from 0 to :func:`white_of` the ``values`` of black and white, in units.

    Raises:
        UnsupportedImage: It cannot be read.
    """
    low, high = values
    facts = formats.facts(path)
    pixels = formats.upright(formats.read(path), facts.orientation)
    if facts.deep:
        steps = white_of(values) / (high - low)
        pixels = np.rint((formats.in_units(pixels, facts).clip(low, high) - low) * steps).astype(np.uint16)
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def decode_pair(pair: FilePair, channels: int = 1) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return original and protected pixels, upright, ``[pages, H, W]`` or ``[pages, H, W, 3]``.

    See :func:`seen`.

    Args:
        pair: The file.
        channels: 3 gives grey files three equal ones.

    Raises:
        ReleaseError: A file is not the one that the table says.
        UnsupportedImage: It cannot be read.
    """
    record, found = pair.record, []
    for path, digest in ((pair.originals / record.file, record.before), (pair.tree / record.file, record.after)):
        if file_sha256(path) != digest:
            raise ReleaseError(
                f"{path} is not the file that the table says; get the result again, or give the folder that was protected."
            )
        pixels = seen(path, pair.values)
        found.append(np.repeat(pixels[..., None], 3, axis=-1) if channels == 3 and pixels.ndim == 3 else pixels)
    before, after = found
    if before.shape != after.shape:
        raise ReleaseError(f"{pair.tree / record.file} has another size than its original; protect the folder anew.")
    return before, after
