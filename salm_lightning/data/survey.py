"""A look over the images of a folder: the headers of all, the pixels of a few, and whether two splits hold the same picture."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from salm_lightning.data import formats
from salm_lightning.data.folder import ImageFolder, group_leaks
from salm_lightning.data.formats import Facts, UnsupportedImage
from salm_lightning.data.formats.base import Pixels
from salm_lightning.data.keep_out import misfits
from salm_lightning.data.walk import Kind, Problem
from salm_lightning.data.workers import in_processes
from salm_lightning.files import file_sha256

_AT_ONCE = 250
"""Files that a process looks at before it tells of them."""
_FEW = 4
"""Tasks from which on processes are worth their start."""
_TAILS = {"PNG": 64, "JPEG": 256, "DICOM": 2**16}
_LONG_TAIL = 4096
"""Bytes at a file's end by which candidates for the same picture are found: the pixels come last, in a PNG with a sum of all of them."""
_SAMPLE, _SAMPLE_PIXELS = 100, 2**27
_VALUES = 2**14
"""Values of each image of the sample that percentiles are taken of."""
_COMPARED = 2000
"""Images that are decoded at most to tell whether they are the same."""
TAILS = (0.5, 99.5)
"""Percentiles that are taken for the range of images above 8 bits."""
SAME = Kind(
    "images that are in several splits",
    "A model would be measured on images that it knows: take them out of one, or --allow_leak true takes it so.",
)
_GREY = {"MONOCHROME1", "MONOCHROME2"}
_SAME_UID = Kind(
    "DICOM files with the SOPInstanceUID of another", "Each image has one that no other has: leave the one that is right."
)
_MIXED_DEPTH = Kind("images of another depth than most", "Store all with 8 bits, or all with more.")


class Header(NamedTuple):
    """What an image's headers say: facts, or else why it is refused and the way out; ``mark`` is the same for the same picture."""

    path: str
    facts: Facts | None
    reason: str
    way_out: str
    mark: bytes


class Sample(NamedTuple):
    """What the pixels of some images say: how many were decoded, whether any has colour, in units the extremes and TAILS of the values."""

    decoded: int
    coloured: bool
    low: float
    high: float
    tails: tuple[float, float]


@dataclass(frozen=True)
class Survey:
    """What was seen of a folder.

    Attributes:
        folder: What it was taken for.
        headers: Of each of its images, in order.
        sample: What the pixels of some say; ``None`` if no image can be read.
        problems: All that keeps it from being protected, also what its names and tables said.
        notes: What people should know.
    """

    folder: ImageFolder
    headers: tuple[Header, ...]
    sample: Sample | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def facts(self) -> list[Facts]:
        """Facts of the images that can be read."""
        return [header.facts for header in self.headers if header.facts is not None]


def survey(
    folder: ImageFolder,
    allow_leak: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    patients: bool = True,
) -> Survey:
    """Look at the headers of all images of a folder, in several processes, and at the pixels of some.

    Args:
        folder: What a folder was taken for.
        allow_leak: Whether splits may share images, or patients.
        on_progress: Takes how many images were looked at, and of how many.
        patients: Whether the patients that DICOM files name are groups, where the folder has none.
    """
    headers = _all_headers(folder, on_progress)
    problems, notes = (
        [*_refused(headers), *_depths(headers), *_same_uids(folder.root, headers)],
        [*folder.notes, *_remarks(folder, headers)],
    )
    known = {
        header.path: header.facts for header in headers if header.facts is not None and header.path in folder.kept_out.regions
    }
    problems += misfits(folder.kept_out.regions, known)
    if patients and not folder.groups:
        folder = _by_patient(folder, headers)
        leaks, remarks = group_leaks(folder, allow_leak)
        problems, notes = [*problems, *leaks], [*notes, *remarks]
    same, checked = _same_pictures(folder, headers)
    if same and allow_leak:
        notes.append(f"{len(same)} images are in several splits, which is allowed")
    elif same:
        problems += [Problem(SAME, path, f"as {other}") for path, other in same]
    if not checked:
        notes.append(f"more than {_COMPARED} images may be in several splits; not all were compared")
    sample, broken = _sample(folder, headers)
    problems += broken
    return Survey(folder, tuple(headers), sample, (*folder.problems, *problems), tuple(notes))


def grouped(folder: ImageFolder) -> ImageFolder:
    """Return a folder with its groups, or else those that the patients are whom its DICOM files name."""
    return folder if folder.groups else _by_patient(folder, _all_headers(folder))


def _by_patient(folder: ImageFolder, headers: Iterable[Header]) -> ImageFolder:
    named = [header.facts.instance.patient if header.facts and header.facts.instance else "" for header in headers]
    images = (image._replace(group=group) for image, group in zip(folder.images, named, strict=True))
    return replace(folder, images=tuple(images))


def _all_headers(folder: ImageFolder, on_progress: Callable[[int, int], None] = lambda done, total: None) -> list[Header]:
    paths = [image.path for image in folder.images]
    tasks = [paths[start : start + _AT_ONCE] for start in range(0, len(paths), _AT_ONCE)]
    headers: list[Header] = []
    for part in in_processes(partial(_headers, folder.root), tasks, _FEW):
        headers += part
        on_progress(len(headers), len(paths))
    return headers


def _headers(root: Path, paths: Sequence[str]) -> list[Header]:
    return [_header(root, path) for path in paths]


def _header(root: Path, path: str) -> Header:
    try:
        facts = formats.facts(root / path)
        with (root / path).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAILS.get(facts.container, _LONG_TAIL)))
            tail = file.read()
    except UnsupportedImage as error:
        return Header(path, None, error.reason, error.way_out, b"")
    except OSError as error:
        return Header(
            path, None, f"cannot be read ({error.strerror})", "let this user read it, or take it out of the folder", b""
        )
    mark = hashlib.blake2b(repr(facts.shape).encode() + tail, digest_size=12).digest()
    return Header(path, facts, "", "", mark)


def _refused(headers: Iterable[Header]) -> list[Problem]:
    return [as_problem(header.path, header.reason, header.way_out) for header in headers if header.facts is None]


def as_problem(path: str, reason: str, way_out: str) -> Problem:
    """Return why a file is refused as a problem; what stands in brackets is about this file alone."""
    what, _, own = reason.partition(" (")
    return Problem(Kind(what, f"{way_out[:1].upper()}{way_out[1:]}."), path, own.removesuffix(")"))


def _depths(headers: Sequence[Header]) -> list[Problem]:
    """Return the images that have 8 bits where others have more, or the reverse, whichever are fewer."""
    deep = {header.path: header.facts.deep for header in headers if header.facts is not None}
    rare = sum(deep.values()) * 2 <= len(deep)
    return (
        [Problem(_MIXED_DEPTH, path) for path, is_deep in deep.items() if is_deep is rare] if len(set(deep.values())) > 1 else []
    )


def _same_uids(root: Path, headers: Sequence[Header]) -> list[Problem]:
    """Return the DICOM files whose SOPInstanceUID an earlier one has that is no copy."""
    first: dict[str, str] = {}
    found = []
    for header in headers:
        uid = header.facts.instance.uid if header.facts and header.facts.instance else ""
        other = first.setdefault(uid, header.path) if uid else header.path
        if other != header.path and file_sha256(root / other) != file_sha256(root / header.path):
            found.append(Problem(_SAME_UID, header.path, f"as {other}"))
    return found


def _remarks(folder: ImageFolder, headers: Iterable[Header]) -> list[str]:
    """Say what people should know of DICOM files, and of what is kept out."""
    known = {header.path: header.facts.instance for header in headers if header.facts and header.facts.instance}
    regions, photometric = folder.kept_out.regions, {one.photometric for one in known.values()}
    burned = sum(one.burned_in == "YES" and path not in regions for path, one in known.items())
    said = {
        f"{len(regions)} of {len(folder.images)} images have regions that keep their values": bool(regions),
        f"{burned} images say that text is burned into them (BurnedInAnnotation); --keep_out keeps it readable": burned > 0,
        "some images are stored with black as white (MONOCHROME1), and a model sees them so": len(photometric & _GREY) > 1,
    }
    return [remark for remark, holds in said.items() if holds]


def window_of(found: Survey) -> tuple[float, float] | None:
    """Return the window that a model sees by default, in units; ``None`` where no training image has one.

    Of each image it is the widest, and of these the median by width: an odd one among many does not count, and the set has one range.
    """
    images = zip(found.headers, found.folder.images, strict=True)
    instances = [header.facts.instance for header, image in images if header.facts and image.split in ("", "train")]
    windows = sorted((one.window[1] - one.window[0], one.window) for one in instances if one and one.window)
    return windows[len(windows) // 2][1] if windows else None


def _same_pictures(folder: ImageFolder, headers: Sequence[Header]) -> tuple[list[tuple[str, str]], bool]:
    """Return the images of which an earlier split has the same pixels, with that one, and whether all candidates were compared."""
    if len(folder.splits) < 2:
        return [], True
    alike: dict[bytes, list[int]] = defaultdict(list)
    for number, header in enumerate(headers):
        if header.mark:
            alike[header.mark].append(number)
    several = [numbers for numbers in alike.values() if len({folder.images[number].split for number in numbers}) > 1]
    found: list[tuple[str, str]] = []
    compared = 0
    for numbers in several:
        compared += len(numbers)
        if compared > _COMPARED:
            return found, False
        first: dict[bytes, int] = {}
        order = sorted(numbers, key=lambda number: folder.splits.index(folder.images[number].split or folder.splits[0]))
        for number in order:
            pixels = _pixels(folder.root / headers[number].path)
            if pixels is None:
                continue
            digest = hashlib.sha256(pixels.tobytes()).digest()
            other = first.setdefault(digest, number)
            if folder.images[other].split != folder.images[number].split:
                found.append((headers[number].path, headers[other].path))
    return found, True


def _sample(folder: ImageFolder, headers: Sequence[Header]) -> tuple[Sample | None, list[Problem]]:
    """Decode some images of the training split, evenly spread over it."""
    known = [
        header
        for header, image in zip(headers, folder.images, strict=True)
        if header.facts is not None and (image.split in ("", "train"))
    ]
    problems, values, coloured, count, pixels_left = [], [], False, 0, _SAMPLE_PIXELS
    for number in dict.fromkeys(np.linspace(0, len(known) - 1, min(_SAMPLE, len(known))).astype(int).tolist()):
        header = known[number]
        if header.facts is None or pixels_left < 0:
            break
        try:
            pixels, still = formats.pixels_and_kept(folder.root / header.path)
        except UnsupportedImage as error:
            problems.append(as_problem(header.path, error.reason, error.way_out))
            continue
        count, pixels_left = count + 1, pixels_left - pixels.size
        coloured |= has_colour(pixels)
        flat = formats.in_units(pixels if still is None else pixels[~still], header.facts).reshape(-1)
        if not flat.size:
            continue
        values.append(np.array([flat.min(), flat.max(), *flat[:: max(1, len(flat) // _VALUES)]]))
    if not values:
        return None, problems
    together = np.concatenate([part[2:] for part in values])
    low, high = min(float(part[0]) for part in values), max(float(part[1]) for part in values)
    tails = np.percentile(together, TAILS, method="nearest")
    return Sample(count, coloured, low, high, (float(tails[0]), float(tails[1]))), problems


def has_colour(pixels: Pixels) -> bool:
    """Return whether the channels of an image, on the last axis, differ anywhere."""
    return pixels.shape[-1] > 1 and bool((pixels[..., 1:] != pixels[..., :1]).any())


def _pixels(path: Path) -> Pixels | None:
    try:
        return formats.read(path)
    except UnsupportedImage:
        return None
