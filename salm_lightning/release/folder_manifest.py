"""What the result of a protected folder says of itself: its manifest, and the table of its files."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from salm_lightning.checked import Count, Share, parse, read_json
from salm_lightning.console import visible
from salm_lightning.data.base import DatasetInfo
from salm_lightning.data.keep_out import KEPT_OUT
from salm_lightning.data.sums import FileSum
from salm_lightning.errors import ReleaseError
from salm_lightning.files import flush
from salm_lightning.release.manifest import FILES, MANIFEST, RELEASE, info_of, method_of

PROTECTED = "protected"
"""Name of the published tree in a result."""
COPIED = "copied"
"""What stands for the format of a file that is published as it is."""
REGIONS = "REGIONS"
"""What stands, in commands, for the masks or boxes that a result was made with, whose place no manifest holds."""
REGIONS_NOTE = f"{REGIONS} stands for the folder of masks, or the table of boxes, that was given with --keep_out."
FORMAT = "folder-2"
_WIDEST = 2.0**64
"""Units of a range that no image has: numbers near the largest that there are have no products."""
Uids = Literal["new", "keep"]
Scaling = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True)
class FileRecord:
    """What became of a file.

    Attributes:
        file: Its path below the folder, with ``/``.
        format: Its container, or ``copied``.
        before: SHA-256 of the original.
        after: SHA-256 of the file in the tree.
        bound: No value differs by more, in stored integers.
        largest: Largest change of a decoded value, in stored integers.
        changed_share: Share of the pixels of which any channel differs.
        kept_out: Pixels that were to keep their value, because they are transparent, padding, or were to be kept out.
        noise_kept: Share of the noise that the container has kept; 1 where it keeps all. JPEG's rounding may add some, or turn it round.
        also: What else differs from the original, in words.
    """

    file: str
    format: str
    before: str
    after: str
    bound: Count = 0
    largest: Count = 0
    changed_share: Share = 0.0
    kept_out: Count = 0
    noise_kept: float = 1.0
    also: str = ""


@dataclass(frozen=True)
class FolderManifest:
    """Contents of a folder result's ``manifest.json``; it holds no time and no path of the machine.

    Attributes:
        format: Which kind of manifest this is.
        dataset: Description of the data, with how the folder was read.
        settings: The method with every setting, and the seed.
        radius: No value differs by more, in 255ths of the range.
        range: What black and white are, in units; 0 and 255 for 8 bits.
        units: What units they are, such as ``HU``; empty for stored integers, and where that is not known.
        uids: Whether DICOM files have ``new`` identifiers, or ``keep`` theirs.
        bound: No value differs by more, in stored integers of any file; each has its own where they map these to units in another way.
        scaling: How noise came from the working size to each file's.
        images: Files that carry noise.
        copied: Files that are published as they are.
        largest: Largest change of any value, in stored integers.
        changed_share: Share of changed pixels, mean over the files with noise.
        noise_kept: Share of the noise that the containers have kept, mean over the files with noise.
        source: Name of the folder, and the sum of its images and their labels.
        files: Name and sum of the table of files.
        versions: Versions of the packages that made it.
    """

    format: str
    dataset: dict[str, Any]
    settings: dict[str, Any]
    radius: float
    range: tuple[float, ...]
    units: str
    uids: Uids
    bound: Count
    scaling: Scaling
    images: Count
    copied: Count
    largest: Count
    changed_share: Share
    noise_kept: float
    source: FileSum
    files: FileSum
    versions: dict[str, str]

    @property
    def info(self) -> DatasetInfo:
        """The images as models see them at the working size."""
        return info_of(self.dataset)

    @property
    def kept_out(self) -> str:
        """Sum of the regions that keep their values; empty if there are none."""
        return str(self._reading.get(KEPT_OUT, ""))

    @property
    def needs_regions(self) -> bool:
        """Whether the originals alone do not hold the regions: ``--keep_out`` named them, and no masks lie beside the images."""
        return bool(self.kept_out) and "masks" not in self._reading

    @property
    def _reading(self) -> dict[str, Any]:
        reading: dict[str, Any] = parse(dict, self.dataset.get("folder", {}), "dataset.folder")
        return reading

    @property
    def method_name(self) -> str:
        """Name of the method that made the noise, such as ``salm``."""
        return method_of(self.settings)

    @classmethod
    def read(cls, result: Path) -> FolderManifest:
        """Read the manifest of a result.

        Raises:
            ReleaseError: There is none, or it is not valid.
        """
        path = result / RELEASE / MANIFEST
        raw = read_json(path)
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise ReleaseError(f"{path} is no manifest of a protected folder that this version reads; get the result again.")
        manifest: FolderManifest = parse(cls, raw, MANIFEST)
        if not 0 < manifest.radius <= 255:
            raise ReleaseError(f"{MANIFEST}: radius={manifest.radius:g} must be above 0 and at most 255; get the result again.")
        if len(manifest.range) != 2 or not 0 < manifest.range[1] - manifest.range[0] < _WIDEST:
            raise ReleaseError(
                f"{MANIFEST}: range={list(manifest.range)} must be two numbers, black and white; get the result again."
            )
        if not manifest.images:
            raise ReleaseError(f"{MANIFEST}: images=0, and nothing is protected; get the result again.")
        return manifest


def stored_bound(radius: float, values: tuple[float, ...], slope: float = 1.0) -> int:
    """Return the largest change in stored integers, each ``slope`` units, that a radius in 255ths of a range allows."""
    low, high = values
    return math.floor(radius * (high - low) / 255 / abs(slope))


def read_records(result: Path) -> list[FileRecord]:
    """Return the table of a result's files.

    Raises:
        ReleaseError: It is missing or damaged.
    """
    path = result / RELEASE / FILES
    if not path.is_file():  # a pipe would be waited for
        raise ReleaseError(f"{path} is no file; get the result again from where it came.")
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            return records_in(stream)
    except (OSError, ValueError, csv.Error) as error:
        raise ReleaseError(f"{path} cannot be read ({error}); get the result again from where it came.") from error


def records_in(stream: Iterable[str], headings: bool = True) -> list[FileRecord]:
    """Read lines of such a table.

    Raises:
        ValueError: They are not, or hold a number that cannot be.
        csv.Error: Likewise.
    """
    names = [field.name for field in fields(FileRecord)]
    lines = csv.reader(stream)
    if headings and next(lines, None) != names:
        raise ValueError("it has other columns")
    found = []
    for cells in lines:
        if len(cells) != len(names):
            raise ValueError("a line has another number of cells")
        values: dict[str, Any] = dict(zip(names, cells, strict=True))
        values |= {name: int(values[name]) for name in ("bound", "largest", "kept_out")}
        found.append(FileRecord(**values | {name: float(values[name]) for name in ("changed_share", "noise_kept")}))
        _check_numbers(found[-1])
    return found


def _check_numbers(record: FileRecord) -> None:
    """Refuse numbers that no file has; NaN is none of them."""
    limits = {"bound": (0, math.inf), "largest": (0, 2**16 - 1), "kept_out": (0, math.inf), "changed_share": (0, 1)}
    most = max(
        1, record.largest
    )  # the noise asked for is whole numbers, so its product with what came is at most so many times its own
    for name, (low, high) in {**limits, "noise_kept": (-most, most)}.items():
        if not low <= getattr(record, name) <= high:
            raise ValueError(f"{name}={getattr(record, name)} of {visible(record.file)} must be from {low} to {high}")


def write_table(path: Path, records: Iterable[FileRecord]) -> None:
    """Write the table of a result's files."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(stream)
        writer.writerow([field.name for field in fields(FileRecord)])
        writer.writerows(list(asdict(record).values()) for record in records)
    flush(path)


def files_below(tree: Path) -> Iterator[str]:
    """Yield all that is in a tree but folders, hidden or not, by its path with ``/``."""
    for path in sorted(tree.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(tree).as_posix()
