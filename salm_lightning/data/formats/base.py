"""What every container's codec offers, what is known of a file before its pixels are decoded, and how a file is refused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from salm_lightning.console import visible
from salm_lightning.errors import DataError

MOST_PIXELS = 89_478_485
"""Pillow's limit of what is no decompression bomb, here for all pages of a file together."""

Pixels = NDArray[Any]
"""Integers as they are stored, ``[pages, H, W, C]``, uint8 or uint16, int8 or int16 where they have a sign."""


@dataclass(frozen=True)
class Instance:
    """What a DICOM file says of its image (PS3.3, C.7 and C.11).

    Attributes:
        modality: Such as ``CT``.
        photometric: PhotometricInterpretation, such as ``MONOCHROME2``.
        syntax: Name of the transfer syntax.
        patient: PatientID.
        uid: SOPInstanceUID.
        series: SeriesInstanceUID.
        burned_in: BurnedInAnnotation: ``YES``, ``NO`` or empty.
        slope: Units of a stored integer; RescaleSlope.
        intercept: Units at the stored integer 0; RescaleIntercept.
        units: What they are, such as ``HU``; empty if the file does not say.
        window: Lowest and highest value of the widest window, in units.
        padding: Lowest and highest stored integer that is padding and no image.
        regions: Whether there are ultrasound regions.
    """

    modality: str
    photometric: str
    syntax: str
    patient: str
    uid: str
    series: str
    burned_in: str
    slope: float = 1.0
    intercept: float = 0.0
    units: str = ""
    window: tuple[float, float] | None = None
    padding: tuple[int, int] | None = None
    regions: bool = False


@dataclass(frozen=True)
class Facts:
    """What a file's headers say; no pixel has been decoded.

    Attributes:
        container: ``PNG``, ``JPEG``, ``TIFF`` or ``DICOM``.
        height: Rows of each page as stored, which EXIF's orientation may turn.
        width: Columns of each page as stored.
        channels: 1 or 3, which a model sees; alpha is no channel.
        bits: Bits a value: 8, or up to 16.
        pages: Images in the file that count.
        orientation: EXIF's number, 1 to 8.
        alpha: Whether there is an alpha channel, which is kept as it is, or something else that says which pixels keep their values.
        thumbnails: Embedded pictures, which hold the clean image; :func:`write` leaves them out.
        detail: How the pixels are stored, such as ``4:2:0`` or ``LZW``.
        misnamed: Whether the file's ending is another container's; the content decides.
        signed: Whether the integers have a sign.
        instance: What only DICOM files say.
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
    signed: bool = False
    instance: Instance | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the decoded pixels."""
        return (self.pages, self.height, self.width, self.channels)

    @property
    def deep(self) -> bool:
        """Whether a model sees a range of the values, because they are not 0 to 255."""
        return self.bits > 8 or self.signed

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest value that can be stored."""
        half = 2 ** (self.bits - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)

    @property
    def scale(self) -> tuple[float, float]:
        """Units of a stored integer, and units at 0; units are stored integers but in DICOM."""
        return (1.0, 0.0) if self.instance is None else (self.instance.slope, self.instance.intercept)


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
    starts_at: ClassVar[int] = 0
    """Where they are."""

    @abstractmethod
    def facts(self, stream: BinaryIO) -> Facts:
        """Read the headers alone, and refuse what cannot be protected, or ends before its headers say."""

    @abstractmethod
    def decode(self, content: bytes, facts: Facts) -> tuple[Pixels, Pixels | None]:
        """Return the pixels, and alpha ``[pages, H, W]`` or the like if there is one: where it is 0, pixels keep their values."""

    @abstractmethod
    def encode(self, content: bytes, facts: Facts, pixels: Pixels, radius: int, secret: bytes = b"") -> bytes:
        """Return the file with other pixels, none of which decodes to more than ``radius`` from what it was.

        Of a container whose files have identifiers that no two may share new ones are made of a ``secret``; without one they stay.
        """

    @abstractmethod
    def parts(self, content: bytes, *, blank: bool) -> list[tuple[str, bytes]]:
        """Return all but the pixels' payload, in order, by name; with ``blank`` as :meth:`encode` carries it over."""

    def without_noise(self, facts: Facts, still: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which pixels ``[pages, H, W]`` may have no noise, so that those of ``still`` keep their values."""
        return still

    def unexplained(self, original: bytes, other: bytes) -> tuple[str, ...]:
        """Return in words what differs between two files but the pixels' payload, and what :meth:`encode` makes differ."""
        return differing(self.parts(original, blank=True), self.parts(other, blank=False))


def differing(before: list[tuple[str, bytes]], after: list[tuple[str, bytes]]) -> tuple[str, ...]:
    """Return in words what differs between the parts of two files."""
    words: list[str] = []
    for kind, *(first, last, new_first, new_last) in SequenceMatcher(a=before, b=after, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        old, new = [name for name, _ in before[first:last]], [name for name, _ in after[new_first:new_last]]
        for name in old:
            words.append(f"{name} differs" if name in new else f"{name} is gone")
            if name in new:
                new.remove(name)
        words += [f"{name} is new" for name in new]
    return tuple(words)


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


def in_units(pixels: NDArray[Any], facts: Facts) -> NDArray[np.float32]:
    """Return stored integers in the units of their file, float32, which holds integers of 16 bits exactly."""
    slope, intercept = facts.scale
    return (pixels * np.float64(slope) + intercept).astype(np.float32)


def added(pixels: Pixels, noise: NDArray[np.int32], facts: Facts, still: NDArray[np.bool_] | None) -> Pixels:
    """Return pixels ``[pages, H, W, C]`` with noise, within the limits of what can be stored.

    Those of ``still`` ``[pages, H, W]`` keep their values, and so do pixels that noise would make padding.
    """
    wanted = np.clip(pixels + noise, *facts.limits).astype(pixels.dtype)
    kept = np.zeros(pixels.shape[:3], bool) if still is None else still
    if facts.instance is not None and facts.instance.padding is not None:
        low, high = facts.instance.padding
        kept = kept | ((wanted >= low) & (wanted <= high)).any(axis=-1)
    return np.where(kept[..., None], pixels, wanted)


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
