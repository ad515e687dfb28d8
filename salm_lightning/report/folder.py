"""What a report tells of the result of a folder: its files, summed up, and some of them as pictures at their own size."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from salm_lightning.audit.releases import FolderResult
from salm_lightning.audit.shown import eight_bits, noise_image
from salm_lightning.data import formats
from salm_lightning.release.files_side_by_side import FilePair, decode_pair, page_name, seen, white_of
from salm_lightning.release.folder_manifest import COPIED, PROTECTED, FileRecord, read_records
from salm_lightning.release.verify_folder import original_tree
from salm_lightning.report.pictures import SAMPLE, SIDE, Picture, drawn, sheet_of

_PAIRS = 3  # files, beside the one that is least like its original
_LARGEST = 768  # pixels of a side; of larger images the middle is shown
_SHOWN = 8  # kinds of files, and of changes


@dataclass(frozen=True)
class Files:
    """What the table of files says.

    Attributes:
        proven: Whether every file was compared with its original, too.
        deep: Whether they have more than 8 bits, of which a range is seen.
        protects_all: Whether all images carry noise, and not those of the training split alone.
        formats: Each container of files with noise, how many there are, the share of the noise that they hold, and the largest change.
        copied: How many files are published as they are, by ending.
        also: How many files differ otherwise, by what.
    """

    proven: bool
    deep: bool
    protects_all: bool
    formats: tuple[tuple[str, int, float, int], ...]
    copied: dict[str, int]
    also: dict[str, int]


@dataclass(frozen=True)
class PairOfPictures:
    """A file before and after, and what differs."""

    file: str
    pictures: tuple[Picture, ...]


def about_folder(result: FolderResult, source: str | None, worst: str = "") -> dict[str, Any]:
    """Return ``files``, ``sample`` and ``pairs`` of an :class:`~salm_lightning.report.evidence.Evidence`.

    Args:
        result: The result, whose files are those of its table.
        source: The originals; without them there are no pairs.
        worst: The file, or the page of one, that is least like its original, if that is known.
    """
    records = read_records(result.path)
    noisy = [record for record in records if record.format != COPIED]
    pairs: tuple[PairOfPictures, ...] = ()
    if source is not None:
        pages = _worst(noisy, worst)
        chosen = dict.fromkeys([*pages, *_spread(noisy)])
        pairs = tuple(_pair(result, original_tree(source), record, pages.get(record)) for record in chosen)
    return {"files": _summed(result, records, source is not None), "sample": _sample(result, noisy), "pairs": pairs}


def _worst(records: Sequence[FileRecord], worst: str) -> dict[FileRecord, int]:
    """Return the file that is least like its original, if it is known, with the page that is, from 0."""
    page = re.fullmatch(r"(.+), page (\d+)", worst, re.DOTALL)  # see page_name
    names = {worst: 0} | ({page[1]: int(page[2]) - 1} if page else {})
    return {record: names[record.file] for record in records if record.file in names}


def _spread(records: Sequence[FileRecord]) -> list[FileRecord]:
    """Return some files from the beginning, the middle and the end of the table: of several classes, as a rule."""
    return [records[place] for place in np.linspace(0, len(records) - 1, min(_PAIRS, len(records))).astype(int)]


def _summed(result: FolderResult, records: Sequence[FileRecord], proven: bool) -> Files:
    by_format: dict[str, list[FileRecord]] = {}
    for record in records:
        by_format.setdefault(record.format, []).append(record)
    copied = Counter(PurePosixPath(record.file).suffix.lower() or "without ending" for record in by_format.pop(COPIED, []))
    also = Counter(what for record in records for what in record.also.split("; ") if what)
    how = result.manifest.dataset.get("folder")
    first = next(record for record in records if record.format != COPIED)  # a folder has files of one depth
    return Files(
        proven=proven,
        deep=formats.facts(result.path / PROTECTED / first.file).deep,
        protects_all=isinstance(how, dict) and how.get("protects") == "all",
        formats=tuple(
            (name, len(some), fmean(record.noise_kept for record in some), max(record.largest for record in some))
            for name, some in sorted(by_format.items())
        ),
        copied=dict(copied.most_common(_SHOWN)),
        also=dict(also.most_common(_SHOWN)),
    )


def _sample(result: FolderResult, records: Sequence[FileRecord]) -> Picture:
    values = _values(result)
    tiles = []
    for record in records[:SAMPLE]:
        image = Image.fromarray(eight_bits(seen(result.path / PROTECTED / record.file, values), white_of(values))[0])
        image.thumbnail((SIDE, SIDE))
        tiles.append(image)
    return drawn(sheet_of(tiles, SIDE), "Protected images", f"The first {len(tiles)} files with noise, scaled down.")


def _pair(result: FolderResult, originals: Path, record: FileRecord, worst: int | None) -> PairOfPictures:
    """Show the page of a file that is least like its original, ``worst``, or the first one."""
    low, high = values = _values(result)
    before, after = decode_pair(FilePair(result.path / PROTECTED, originals, record, values))
    page, (pages, height, width) = worst or 0, before.shape[:3]
    deep = before.dtype != np.uint8
    before, after = (_middle(eight_bits(images[page], white_of(values))) for images in (before, after))
    limit = max(1, int(np.abs(after.astype(np.int16) - before).max()))
    size = f"{width} x {height} pixels" + (", the middle of it" if max(height, width) > _LARGEST else "")
    size += f"; black is {low:g}, white {high:g} {result.manifest.units}".rstrip() if deep else ""
    least = " Of all that were compared, it is least like its original." if worst is not None else ""
    amplified = f"amplified {127.5 / limit:.0f} times: grey is no change, black and white are {limit} of 255 levels."
    return PairOfPictures(
        page_name(record.file, page, pages),
        (
            drawn(Image.fromarray(before), "Before", f"The original, {size}."),
            drawn(Image.fromarray(after), "After", f"As it is published.{least}"),
            drawn(Image.fromarray(noise_image(before, after, limit)), "Difference", f"The difference, {amplified}"),
        ),
    )


def _values(result: FolderResult) -> tuple[float, float]:
    low, high = result.manifest.range
    return low, high


def _middle(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the middle of a large image."""
    top, left = (max(0, (side - _LARGEST) // 2) for side in image.shape[:2])
    return np.ascontiguousarray(image[top : top + _LARGEST, left : left + _LARGEST])
