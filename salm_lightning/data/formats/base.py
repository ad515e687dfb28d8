"""What every container's codec offers, what is known of a file before its pixels are decoded, and how a file is refused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from salm_lightning.console import visible
from salm_lightning.errors import DataError

MOST_PIXELS = 89_478_485
"""Pillow's limit of what is no decompression bomb, here for all pages of a file together."""

Pixels = NDArray[Any]
"""Integers as they are stored, ``[pages, H, W, C]``, uint8 or uint16."""


@dataclass(frozen=True)
class Facts:
    """What a file's headers say; no pixel has been decoded.

    Attributes:
        container: ``PNG``, ``JPEG`` or ``TIFF``.
        height: Rows of each page as stored, which EXIF's orientation may turn.
        width: Columns of each page as stored.
        channels: 1 or 3, which a model sees; alpha is no channel.
        bits: Bits a value: 8, or up to 16.
        pages: Images in the file that count.
        orientation: EXIF's number, 1 to 8.
        alpha: Whether there is an alpha channel, which is kept as it is.
        thumbnails: Embedded pictures, which hold the clean image; :func:`write` leaves them out.
        detail: How the pixels are stored, such as ``4:2:0`` or ``LZW``.
        misnamed: Whether the file's ending is another container's; the content decides.
    """

    container: str
    height: int
    width: int
    channels: int
    bits: int
    pages: int = 1
    orientation: int = 1
    alpha: bool = False
    thumbnails: int = 0
    detail: str = ""
    misnamed: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the decoded pixels."""
        return (self.pages, self.height, self.width, self.channels)


@dataclass(frozen=True)
class Written:
    """What came of writing a file.

    Attributes:
        largest: Largest change of a decoded value, read back from the bytes that were written.
        changed_share: Share of the pixels of which any channel differs.
        noise_kept: Share of the change asked for that the file holds: their inner product, over that of the former with itself. 1.0 where
            nothing was lost, 0.0 where nothing is left.
        changed: What else differs from the original, in words; see :func:`differences`.
    """

    largest: int
    changed_share: float
    noise_kept: float
    changed: tuple[str, ...]


class UnsupportedImage(DataError):
    """A file that cannot be protected as it is.

    Args:
        reason: What is wrong, as it goes on after the file's name.
        way_out: What to do instead.
        path: The file.
    """

    def __init__(self, reason: str, way_out: str, path: Path | None = None) -> None:
        super().__init__(f"{visible(str(path)) if path else 'The image'} {reason}; {way_out}.")
        self.reason = reason
        self.way_out = way_out
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        """Let it pass between processes."""
        return type(self), (self.reason, self.way_out, self.path)


class Codec(ABC):
    """One container: what of it is taken, and how its pixels are replaced while every other byte is carried over.

    Its methods refuse with :class:`UnsupportedImage`, without the file's name; the caller adds it, and takes whatever readers raise for
    damage.
    """

    container: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]
    signatures: ClassVar[tuple[bytes, ...]]
    """First bytes of such a file."""

    @abstractmethod
    def facts(self, stream: BinaryIO) -> Facts:
        """Read the headers alone, and refuse what cannot be protected, or ends before its headers say."""

    @abstractmethod
    def decode(self, content: bytes, facts: Facts) -> tuple[Pixels, Pixels | None]:
        """Return the pixels, and alpha ``[pages, H, W]`` or the like if there is one."""

    @abstractmethod
    def encode(self, content: bytes, facts: Facts, pixels: Pixels, radius: int) -> bytes:
        """Return the file with other pixels, none of which decodes to more than ``radius`` from what it was."""

    @abstractmethod
    def parts(self, content: bytes, *, blank: bool) -> list[tuple[str, bytes]]:
        """Return all but the pixels' payload, in order, by name; with ``blank`` as :meth:`encode` carries it over."""


def check_size(facts: Facts) -> Facts:
    """Return the facts of an image whose pixels fit into memory, before any is decoded."""
    pages, height, width, _ = facts.shape
    if min(pages, height, width) < 1:
        raise UnsupportedImage("has no pixels", "take it out of the folder")
    if pages * height * width > MOST_PIXELS:
        size = f"{height} x {width} pixels" + (f" on {pages} pages" if pages > 1 else "")
        raise UnsupportedImage(f"has {size}, more than {MOST_PIXELS:,}", "scale it down, or cut it into tiles")
    return facts


def compared(before: Pixels, after: Pixels) -> tuple[int, float]:
    """Return the largest difference of two images' values, and the share of pixels of which any channel differs."""
    difference = np.abs(after.astype(np.int32) - before)
    return int(difference.max(initial=0)), float(difference.any(axis=-1).mean())


def by_plane(pixels: Pixels, scale: Callable[[Pixels], Pixels]) -> Pixels:
    """Return what a function ``[H, W]`` to ``[H', W']`` makes of each channel of each page, ``[pages, H', W', C]``."""
    return np.stack([np.stack([scale(page[..., plane]) for plane in range(page.shape[-1])], axis=-1) for page in pixels])


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Return pixels ``[pages, H, W, ...]`` as they are to be seen, which EXIF's orientation says."""
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 1, 2)
    if orientation in (3, 4, 7, 8):
        pixels = np.flip(pixels, 1)
    return np.flip(pixels, 2) if orientation in (2, 3, 6, 7) else pixels


def stored(pixels: Pixels, orientation: int) -> Pixels:
    """Return upright pixels as they are stored; undoes :func:`upright`."""
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    return upright(pixels, inverse)
