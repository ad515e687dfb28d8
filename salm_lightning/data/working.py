"""Images of a folder at the working size: each file decoded once, in several processes, into an array on disk; a killed run goes on.

The array is uint8, or for images above 8 bits float32 in their units, ``[N, S, S]`` (grey) or ``[N, S, S, 3]``, a row for each page of each
file. Models see uint8: of images above 8 bits their range, mapped to it. Units are stored integers but in DICOM, whose files may each map
them to Hounsfield units or the like in another way.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from salm_lightning.console import say
from salm_lightning.data import formats
from salm_lightning.data.formats import Facts, UnsupportedImage
from salm_lightning.data.formats.base import Pixels
from salm_lightning.data.keep_out import Region, mask_of, together
from salm_lightning.data.survey import TAILS, Survey, as_problem, has_colour
from salm_lightning.data.walk import Problem
from salm_lightning.data.workers import in_processes
from salm_lightning.errors import DataError, OutputExistsError
from salm_lightning.files import address, cache_root, file_sha256, locked, replacing, writing

_AT_ONCE = 16
"""Files that a process decodes before it gives them back."""
_KEEP = 1.0
"""Seconds after which what was decoded is kept for sure."""
_ROWS = 256
"""Rows that are mapped to 8 bits at a time."""
_BINS, _ZERO = 3 * 2**15, 2**15
"""Bins of the histogram of training images' values, and that of the stored integer 0: all integers of 16 bits, with and without sign."""
_KIND = 2
"""What the arrays hold; of another kind they are made anew."""
_FILES = np.dtype([("done", "u1"), ("file", "V32"), ("pixels", "V32")])
OnProgress = Callable[[int, int], None]


class Range(NamedTuple):
    """Values in units that are black and white to a model, integers where they can be; what is outside counts as the nearer one."""

    low: float
    high: float

    @classmethod
    def of(cls, low: float, high: float) -> Range:
        """Return a range, of integers where its ends are some."""
        return cls(*(int(end) if end == int(end) else end for end in (low, high)))


@dataclass(frozen=True)
class Working:
    """The decoded images of a folder.

    Attributes:
        images: uint8 ``[N, S, S]`` or ``[N, S, S, 3]``, memory-mapped.
        file_of: The number of the file that each row is a page of, int64 ``[N]``.
        sums: SHA-256 of each file as it was decoded, in hexadecimal.
        stats: Size and time of change of each file, by which a later change is noticed.
        values: What black and white are, in units.
        kept: Which pixels keep their values, or would touch one that does in the file, boolean ``[N, S, S]``, memory-mapped; ``None`` where
            none does.
        twins: Files with the pixels of an earlier one: pairs of numbers.
    """

    images: NDArray[np.uint8]
    file_of: NDArray[np.int64]
    sums: tuple[str, ...]
    stats: tuple[tuple[int, int], ...]
    values: Range
    twins: tuple[tuple[int, int], ...]
    kept: NDArray[np.bool_] | None = None


class _File(NamedTuple):
    """A file to decode: its number, path, facts, regions that keep their values, and whether its values count for the range."""

    number: int
    path: str
    facts: Facts
    regions: tuple[Region, ...]
    counts: bool


class _Task(NamedTuple):
    root: Path
    files: Sequence[_File]
    size: int
    channels: int
    scale: tuple[float, float]
    """That of the histogram."""


class _Decoded(NamedTuple):
    number: int
    rows: NDArray[Any]
    kept: NDArray[np.bool_] | None
    file: bytes
    pixels: bytes


def channels_of(survey: Survey) -> int:
    """Return the channels that a model sees: 3 if any image has colour, as far as the sample says."""
    coloured = survey.sample is not None and survey.sample.coloured
    return 3 if coloured and any(facts.channels == 3 for facts in survey.facts) else 1


def decode(
    survey: Survey,
    size: int,
    channels: int,
    values: Range | None = None,
    place: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Working:
    """Decode the images of a folder, or go on where a run before was stopped, or find all of them decoded.

    Args:
        survey: A folder without problems.
        size: Height and width to which images are scaled, bilinearly with antialiasing, whatever their shape.
        channels: 1 or 3; see :func:`channels_of`.
        values: What black and white are above 8 bits; by default TAILS of the values of the training split.
        place: Folder of the array; by default one in the cache that the same files have again.
        on_progress: Takes how many files are decoded, and of how many.

    Raises:
        DataError: Images are damaged, or were changed meanwhile, or there is no room.
    """
    known = [(header.path, header.facts) for header in survey.headers if header.facts is not None]
    stats = tuple(stat_of(survey.folder.root / path) for path, _ in known)
    files = [[path, *stat] for (path, _), stat in zip(known, stats, strict=True)]
    identity = [_KIND, size, channels, survey.folder.kept_out.sum(), files]
    name = f"{survey.folder.root.resolve().name}-{address(str(survey.folder.root.resolve()), identity)[:16]}"
    place = place or cache_root() / name
    with _alone(place):
        keeps = any(facts.alpha for _, facts in known) or bool(survey.folder.kept_out.regions)
        store = _Store(place, identity, [facts for _, facts in known], size, channels, keeps)
        store.fill(survey, on_progress)
        mapped, found = store.eight_bits(values)
        files = store.files
        first: dict[bytes, int] = {}
        pairs = ((number, first.setdefault(bytes(files["pixels"][number]), number)) for number in range(len(files)))
        twins = tuple((number, other) for number, other in pairs if other != number)
        sums = tuple(bytes(digest).hex() for digest in files["file"])
    return Working(mapped, store.file_of, sums, stats, found, twins, store.kept)


def stat_of(path: Path) -> tuple[int, int]:
    """Return a file's size and time of change; both are 0 for one that is gone."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Wait until no other program works in a folder: two runs may use the same images."""
    waiting = False
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(place, f"place={place}"))
                break
            except OutputExistsError:
                if not waiting:
                    say(f"Another program decodes these images into {place}; waiting for it.", stderr=True)
                waiting = True
                time.sleep(0.5)
        yield


class _Store:
    """The arrays of a folder's images on disk."""

    def __init__(self, place: Path, identity: Any, facts: Sequence[Facts], size: int, channels: int, keeps: bool) -> None:
        self.place = place
        self._facts = facts
        self._channels, self._keeps = channels, keeps
        self._deep = any(known.deep for known in facts)
        self._scale = facts[0].scale
        pages = [known.pages for known in facts]
        self.first = np.concatenate([[0], np.cumsum(pages)]).astype(np.int64)
        self.file_of = np.repeat(np.arange(len(facts), dtype=np.int64), pages)
        self._shape = (int(self.first[-1]), size, size, *((3,) if channels == 3 else ()))
        plan = place / "plan.json"
        text = json.dumps(identity)
        try:
            if not plan.is_file() or plan.read_text(encoding="utf-8", errors="replace") != text:
                self._begin()
                with replacing(plan) as temporary:
                    temporary.write_text(text, encoding="utf-8")
            self._images = np.load(place / "images.npy", mmap_mode="r+", allow_pickle=False)
            self.files = np.load(place / "files.npy", mmap_mode="r+", allow_pickle=False)
            self.kept = np.load(place / "kept.npy", mmap_mode="r+", allow_pickle=False) if keeps else None
            self._histogram = np.load(place / "histogram.npy", allow_pickle=False)
            fits = (self._images.shape, self.files.shape) == (self._shape, (len(facts),)) and self.files.dtype == _FILES
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"Images cannot be kept in {place} ({error}). {_ROOM}") from error
        if not fits:
            raise DataError(f"{place} is damaged; delete that folder and run again.")

    def _begin(self) -> None:
        for path in self.place.glob("*.npy"):
            path.unlink()
        kind = np.float32 if self._deep else np.uint8
        _allocate(self.place / "images.npy", self._shape, kind)
        if self._keeps:
            _allocate(self.place / "kept.npy", self._shape[:3], np.bool_)
        np.save(self.place / "files.npy", np.zeros(len(self._facts), _FILES))
        self._keep_histogram(np.zeros(_BINS, np.int64))

    def fill(self, survey: Survey, on_progress: OnProgress | None) -> None:
        """Decode what is not decoded yet."""
        folder, total = survey.folder, len(self.files)
        left = np.flatnonzero(self.files["done"] == 0)
        trains = [image.split in ("", "train") for image in folder.images]
        paths, regions = [header.path for header in survey.headers], folder.kept_out.regions
        todo = [
            _File(number, paths[number], self._facts[number], regions.get(paths[number], ()), trains[number])
            for number in left.tolist()
        ]
        tasks = [
            _Task(folder.root, todo[start : start + _AT_ONCE], self._shape[1], self._channels, self._scale)
            for start in range(0, len(todo), _AT_ONCE)
        ]
        problems: list[Problem] = []
        finished: list[int] = []
        since, done = time.monotonic(), total - len(todo)
        for decoded, histogram, refused in in_processes(_decode, tasks, few=4):
            problems += refused
            self._histogram += histogram
            for number, rows, kept, file, pixels in decoded:
                self._images[self.first[number] : self.first[number + 1]] = rows
                if self.kept is not None and kept is not None:
                    self.kept[self.first[number] : self.first[number + 1]] = kept
                self.files["file"][number], self.files["pixels"][number] = np.void(file), np.void(pixels)
                finished.append(number)
            done += len(decoded) + len(refused)
            if on_progress is not None:
                on_progress(done, total)
            if time.monotonic() - since > _KEEP:
                self._keep(finished)
                since = time.monotonic()
        self._keep(finished)
        if problems:
            raise DataError(_all_of(problems))

    def _keep(self, finished: list[int]) -> None:
        """Note files as done, whose rows are on the disk before."""
        if finished:
            self._images.flush()
            if self.kept is not None:
                self.kept.flush()
            self._keep_histogram(self._histogram)
            self.files["done"][finished] = 1
            self.files.flush()
            finished.clear()

    def _keep_histogram(self, histogram: NDArray[np.int64]) -> None:
        with replacing(self.place / "histogram.npy") as temporary, temporary.open("wb") as stream:
            np.save(stream, histogram)

    def eight_bits(self, values: Range | None) -> tuple[NDArray[np.uint8], Range]:
        """Return the images as uint8, mapped, and what black and white are."""
        if not self._deep:
            return np.load(self.place / "images.npy", mmap_mode="r", allow_pickle=False), Range(0, 255)
        low, high = values or self._tails()
        path = self.place / f"images-{low}-{high}.npy"
        if not path.is_file():
            with replacing(path) as temporary:
                _allocate(temporary, self._shape, np.uint8)
                mapped = np.load(temporary, mmap_mode="r+")
                for start in range(0, len(mapped), _ROWS):
                    clipped = np.clip(self._images[start : start + _ROWS], low, high)
                    mapped[start : start + _ROWS] = np.rint((clipped - low) * (255 / (high - low)))
                mapped.flush()
        return np.load(path, mmap_mode="r", allow_pickle=False), Range(low, high)

    def _tails(self) -> Range:
        below, (slope, intercept) = np.cumsum(self._histogram), self._scale
        bins = (int(np.searchsorted(below, share / 100 * below[-1])) for share in TAILS)
        low, high = sorted((number - _ZERO) * slope + intercept for number in bins)
        if low >= high:
            raise DataError(
                f"Nearly all values of the training images are {low:g}; give the range of values that matter: --range LOW:HIGH."
            )
        return Range.of(low, high)


_ROOM = "Set SALM_CACHE_DIR to a writable folder with room for them."


def _allocate(path: Path, shape: tuple[int, ...], kind: type[np.generic]) -> None:
    """Make an array in a file, all of whose bytes have their room: writing to a map on a full disk would kill the process."""
    array = np.lib.format.open_memmap(path, "w+", kind, shape)
    array.flush()
    del array
    with path.open("r+b") as stream, writing(path):
        os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)


def _decode(task: _Task) -> tuple[list[_Decoded], NDArray[np.int64], list[Problem]]:
    """Decode files; return them at the working size, the histogram of the training ones' values, and what is refused."""
    decoded, refused, histogram = [], [], np.zeros(_BINS, np.int64)
    for number, path, facts, regions, counts in task.files:
        full = task.root / path
        try:
            before = stat_of(full)
            pixels, still = formats.pixels_and_kept(full)
            digest = file_sha256(full)
            if before != stat_of(full) or pixels.shape != facts.shape:
                raise UnsupportedImage("was changed while it was read", "leave the folder alone, and repeat the command")
        except OSError as error:
            refused.append(as_problem(path, f"cannot be read ({error.strerror})", "let this user read it"))
            continue
        except UnsupportedImage as error:
            refused.append(as_problem(path, error.reason, error.way_out))
            continue
        if facts.deep and counts:
            histogram += _histogram(pixels if still is None else pixels[~still], facts, task.scale)
        rows = at_working_size(formats.upright(pixels, facts.orientation), task.size, task.channels)
        rows = formats.in_units(rows, facts) if facts.deep else rows
        content = hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).data).digest()
        still = formats.without_noise(facts, together(still, mask_of(regions, facts)))
        kept = None if still is None else touching(formats.upright(still, facts.orientation), task.size)
        decoded.append(_Decoded(number, rows, kept, bytes.fromhex(digest), content))
    return decoded, histogram, refused


def _histogram(pixels: Pixels, facts: Facts, scale: tuple[float, float]) -> NDArray[np.int64]:
    """Return how often each value occurs, in steps of a scale, int64 ``[_BINS]``."""
    values: NDArray[Any] = pixels
    if facts.scale != scale:
        values = np.rint((formats.in_units(pixels, facts) - scale[1]) / scale[0]).clip(-_ZERO, _BINS - _ZERO - 1)
    return np.bincount(values.reshape(-1).astype(np.int64) + _ZERO, minlength=_BINS)


def at_working_size(pixels: Pixels, size: int, channels: int) -> NDArray[Any]:
    """Return upright pixels ``[pages, H, W, C]`` as ``[pages, size, size]`` for 1 channel, ``[pages, size, size, 3]`` for 3.

    Colour becomes grey as ITU-R 601 weighs it, grey is repeated for 3 channels.
    """
    if channels == 1 and pixels.shape[-1] == 3:
        grey = pixels[..., 0]
        if has_colour(pixels):
            grey = np.rint(pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])).astype(pixels.dtype)
        pixels = grey[..., None]
    scaled = formats.by_plane(pixels, partial(_scaled, size=size))
    return scaled[..., 0] if channels == 1 else np.broadcast_to(scaled, (*scaled.shape[:-1], 3))


def touching(still: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Return which pixels at the working size ``[pages, size, size]`` touch one of ``[pages, H, W]`` when noise is scaled up to these.

    A filter of Pillow's weighs a pixel for another in one direction if it does in the other.
    """
    planes = (Image.fromarray(page.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR) for page in still)
    return np.stack([np.asarray(plane) > 0 for plane in planes])


def _scaled(plane: NDArray[Any], size: int) -> NDArray[Any]:
    if plane.shape == (size, size):
        return plane
    if plane.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize((size, size), Image.Resampling.BILINEAR))
    deep = Image.fromarray(plane.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
    rounded: NDArray[Any] = np.rint(np.asarray(deep)).astype(plane.dtype)
    return rounded


def _all_of(problems: Sequence[Problem]) -> str:
    shown = "; ".join(
        f"{problem.path} {problem.kind.what}{f' ({problem.why})' if problem.why else ''}" for problem in problems[:10]
    )
    more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
    return f"{len(problems)} images cannot be read: {shown}{more}. {problems[0].kind.way_out}"
