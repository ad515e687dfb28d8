"""A folder of images, protected: noise made at the working size, brought to each file's own size, in files like the originals.

A result holds ``protected``, the published tree, and beside it ``release`` with ``manifest.json`` and ``files.csv``, a line for each file.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from salm_lightning.checked import Count, Share, parse, read_json
from salm_lightning.data import formats
from salm_lightning.data.formats import Facts
from salm_lightning.data.sums import FileSum
from salm_lightning.data.workers import in_processes
from salm_lightning.errors import OutputExistsError, ReleaseError
from salm_lightning.files import building, exchange, file_sha256, flush, remove, write_json
from salm_lightning.release.manifest import FILES, MANIFEST, RELEASE, Bound, is_folder_result
from salm_lightning.sealed import read_sealed, write_sealed

if TYPE_CHECKING:
    from salm_lightning.data.folder_images import FolderDataModule

PROTECTED = "protected"
"""Name of the published tree in a result."""
COPIED = "copied"
"""What stands for the format of a file that is published as it is."""
_FORMAT = "folder-1"
_UNFINISHED, _JOURNAL, _HEADER = ".unfinished", "journal.csv", "header.json"
Scaling = Literal["nearest", "bilinear", "bicubic"]
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class FileRecord:
    """What became of a file.

    Attributes:
        file: Its path below the folder, with ``/``.
        format: Its container, or ``copied``.
        before: SHA-256 of the original.
        after: SHA-256 of the file in the tree.
        largest: Largest change of a decoded value, in stored integers.
        changed_share: Share of the pixels of which any channel differs.
        kept_out: Pixels that were to keep their value, because they are fully transparent.
        noise_kept: Share of the noise that the container has kept; 1 where it keeps all.
        also: What else differs from the original, in words.
    """

    file: str
    format: str
    before: str
    after: str
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
        range: What black and white are in stored integers; 0 and 255 for 8 bits.
        bound: No value differs by more, in stored integers.
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
    range: tuple[int, ...]
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

    @classmethod
    def read(cls, result: Path) -> FolderManifest:
        """Read the manifest of a result.

        Raises:
            ReleaseError: There is none, or it is not valid.
        """
        path = result / RELEASE / MANIFEST
        raw = read_json(path)
        if not isinstance(raw, dict) or raw.get("format") != _FORMAT:
            raise ReleaseError(f"{path} is no manifest of a protected folder that this version reads; get the result again.")
        manifest: FolderManifest = parse(cls, raw, MANIFEST)
        return manifest


def stored_bound(radius: float, values: tuple[int, int]) -> int:
    """Return the largest change in stored integers that a radius in 255ths of a range allows."""
    low, high = values
    return math.floor(radius * (high - low) / 255)


class _Job(NamedTuple):
    root: Path
    tree: Path
    path: str
    facts: Facts
    noise: NDArray[np.int16]
    scaling: Scaling
    factor: float
    bound: int
    sum: str


def native_noise(noise: NDArray[np.int16], facts: Facts, scaling: Scaling, factor: float, bound: int) -> NDArray[np.int32]:
    """Return noise for a file's pixels as they are stored, int32 ``[pages, H, W, C]``.

    Args:
        noise: At the working size, in 255ths of the range, ``[pages, S, S]`` or ``[pages, S, S, 3]``, for upright images.
        facts: Of the file.
        scaling: How it is scaled.
        factor: Stored integers for a 255th of the range.
        bound: Largest value in stored integers.
    """
    planes = noise[..., None] if noise.ndim == 3 else noise
    if facts.channels == 1 and planes.shape[-1] == 3:
        planes = planes.mean(axis=-1, keepdims=True)
    turned = facts.orientation in (5, 6, 7, 8)
    size = (facts.height, facts.width) if turned else (facts.width, facts.height)
    scaled = formats.by_plane(planes.astype(np.float32), partial(_scaled, size=size, scaling=scaling))
    whole = np.clip(np.rint(scaled * factor), -bound, bound).astype(np.int32)
    return np.broadcast_to(formats.stored(whole, facts.orientation), facts.shape)


def _scaled(plane: NDArray[np.float32], size: tuple[int, int], scaling: Scaling) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(size, _FILTERS[scaling]), dtype=np.float32)


def _write_file(job: _Job) -> FileRecord:
    original, target = job.root / job.path, job.tree / job.path
    before = formats.read(original)
    if file_sha256(original) != job.sum:
        raise ReleaseError(f"{original} was changed while the command ran; leave the folder alone, and repeat the command.")
    noise = native_noise(job.noise, job.facts, job.scaling, job.factor, job.bound)
    still = formats.kept(original)
    if still is not None:
        noise = np.where(still[..., None], 0, noise)
    pixels = np.clip(before + noise, 0, np.iinfo(before.dtype).max).astype(before.dtype)
    target.parent.mkdir(parents=True, exist_ok=True)
    written = formats.write(original, pixels, target, job.bound)
    return FileRecord(
        file=job.path,
        format=job.facts.container,
        before=job.sum,
        after=file_sha256(target),
        largest=written.largest,
        changed_share=written.changed_share,
        kept_out=0 if still is None else int(still.sum()),
        noise_kept=round(written.noise_kept, 4),
        also="; ".join(written.changed),
    )


def write_folder(
    result: Path,
    data: FolderDataModule,
    blocks: Iterable[NDArray[np.uint8]],
    settings: Mapping[str, Any],
    bound: Mapping[str, Any],
    fingerprint: str,
    scaling: Scaling = "bilinear",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> FolderManifest:
    """Write a folder result: the tree of protected files, and what says of it what it is.

    The tree grows under a hidden name in the result, file by file, and gets its name when it is whole; a call that was interrupted goes
    on after the last file that is written. One that stands is replaced in the end; see :func:`check_place`.

    Args:
        result: The result's folder.
        data: The folder that is protected.
        blocks: Its protected training images at the working size, in order, in blocks of any length, as :class:`Parts` has them.
        settings: The method with every setting, and the seed.
        bound: ``norm``, which is ``linf``, and ``radius``.
        fingerprint: Names all that the files depend on.
        scaling: How noise is brought to a file's size.
        on_progress: Takes how many files are written, and of how many.

    Raises:
        ReleaseError: A file of the folder was changed meanwhile, or images are missing.
        DataError: A file cannot be written within the bound.
    """
    from salm_lightning.release.writer import versions_here  # torch, which the processes that write files do without

    folder, values = data.survey.folder, data.working.values
    promise = Bound.from_dict(bound)
    limit = stored_bound(promise.radius, values)
    unfinished = result / _UNFINISHED
    done = _begin(unfinished, fingerprint)
    tree = unfinished / PROTECTED
    total = len(folder.images) + len(folder.others) + len(folder.unlabelled)
    records = dict(done)

    def note(record: FileRecord) -> None:
        records[record.file] = record
        with (unfinished / _JOURNAL).open("a", newline="", encoding="utf-8", errors="surrogateescape") as journal:
            csv.writer(journal).writerow(list(asdict(record).values()))
        on_progress(len(records), total)

    jobs = (
        _Job(folder.root, tree, path, facts, noise, scaling, (values.high - values.low) / 255, limit, data.working.sums[number])
        for number, path, facts, noise in _noise_by_file(data, blocks)
        if path not in done
    )
    for record in in_processes(_write_file, jobs, few=4):
        note(record)
    noisy = {image.path for image, of in zip(folder.images, data.carries_noise, strict=True) if of}
    for path in sorted({*folder.others, *folder.unlabelled, *(image.path for image in folder.images)} - noisy - done.keys()):
        note(_copied(folder.root / path, tree / path, path))
    ordered = [records[path] for path in sorted(records)]
    carrying = [record for record in ordered if record.format != COPIED]
    if {record.file for record in carrying} != noisy:
        raise ReleaseError(f"{len(carrying)} of {len(noisy)} images were written; repeat the command.")
    with building(result / RELEASE) as made:
        _write_table(made / FILES, ordered)
        manifest = FolderManifest(
            format=_FORMAT,
            dataset=json.loads(json.dumps(data.describe())),
            settings=json.loads(json.dumps(dict(settings), allow_nan=False)),
            radius=promise.radius,
            range=tuple(values),
            bound=limit,
            scaling=scaling,
            images=len(carrying),
            copied=len(ordered) - len(carrying),
            largest=max(record.largest for record in carrying),
            changed_share=math.fsum(record.changed_share for record in carrying) / len(carrying),
            noise_kept=math.fsum(record.noise_kept for record in carrying) / len(carrying),
            source=data.source_file or FileSum(folder.root.name, ""),
            files=FileSum(FILES, file_sha256(made / FILES)),
            versions=versions_here(),
        )
        write_json(made / MANIFEST, json.loads(json.dumps(asdict(manifest), sort_keys=True)))
        _take_place(made, result / RELEASE)
    _take_place(tree, result / PROTECTED)
    remove(unfinished)
    return manifest


def check_place(result: Path, overwrite: bool) -> None:
    """Refuse, before any work is done, a result that stands, unless it may be replaced and holds nothing else.

    Raises:
        OutputExistsError: It may not, or holds files that are none of its own.
    """
    tree = result / PROTECTED
    if not tree.exists() and not tree.is_symlink():
        return
    if not overwrite:
        raise OutputExistsError(f"{tree} exists; name another folder, or pass --overwrite true to replace it.")
    known = {record.file for record in read_records(result)} if is_folder_result(result) else set()
    strange = next((path for path in files_below(tree) if path not in known), None)
    if tree.is_symlink() or strange is not None:
        raise OutputExistsError(
            f"{tree} holds {strange or 'a link'}, which no result of ours says anything about; move it away yourself."
        )


def read_records(result: Path) -> list[FileRecord]:
    """Return the table of a result's files.

    Raises:
        ReleaseError: It is missing or damaged.
    """
    path = result / RELEASE / FILES
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            return _records(stream)
    except (OSError, ValueError, csv.Error) as error:
        raise ReleaseError(f"{path} cannot be read ({error}); get the result again from where it came.") from error


def files_below(tree: Path) -> Iterator[str]:
    """Yield all that is in a tree but folders, hidden or not, by its path with ``/``."""
    for path in sorted(tree.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(tree).as_posix()


def _records(stream: Iterable[str], headings: bool = True) -> list[FileRecord]:
    names = [field.name for field in fields(FileRecord)]
    lines = csv.reader(stream)
    if headings and next(lines, None) != names:
        raise ValueError("it has other columns")
    found = []
    for cells in lines:
        if len(cells) != len(names):
            raise ValueError("a line has another number of cells")
        values: dict[str, Any] = dict(zip(names, cells, strict=True))
        values |= {name: int(values[name]) for name in ("largest", "kept_out")}
        found.append(FileRecord(**values | {name: float(values[name]) for name in ("changed_share", "noise_kept")}))
    return found


def _write_table(path: Path, records: Iterable[FileRecord]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(stream)
        writer.writerow([field.name for field in fields(FileRecord)])
        writer.writerows(list(asdict(record).values()) for record in records)
    flush(path)


def _begin(unfinished: Path, fingerprint: str) -> dict[str, FileRecord]:
    """Return the files of an unfinished tree that are written, if it is of the same fingerprint; else begin anew."""
    header = unfinished / _HEADER
    try:
        values, ours = read_sealed(header)  # a tree that came from elsewhere is not gone on with
    except ReleaseError:
        values, ours = {}, False
    if not ours or values.get("fingerprint") != fingerprint:
        remove(unfinished)
        (unfinished / PROTECTED).mkdir(parents=True)
        write_sealed(header, {"fingerprint": fingerprint})
    journal = unfinished / _JOURNAL
    text = journal.read_bytes().decode("utf-8", errors="surrogateescape") if journal.is_file() else ""
    whole, done = text[: text.rfind("\r\n") + 2] if "\r\n" in text else "", {}
    try:
        for record in _records(io.StringIO(whole, newline=""), headings=False):
            path = unfinished / PROTECTED / record.file
            if path.is_file() and file_sha256(path) == record.after:
                done[record.file] = record
    except (ValueError, csv.Error):
        whole, done = "", {}
    journal.write_bytes(whole.encode("utf-8", errors="surrogateescape"))
    return done


def _noise_by_file(
    data: FolderDataModule, blocks: Iterable[NDArray[np.uint8]]
) -> Iterator[tuple[int, str, Facts, NDArray[np.int16]]]:
    """Yield each file that carries noise, with the noise of its pages at the working size."""
    from salm_lightning.release.parts import as_stored

    working, rows, headers = data.working, data.rows("train"), data.survey.headers
    shape, pages = working.images.shape[1:], (image for block in blocks for image in as_stored(block, working.images.shape[1:]))
    at = 0
    while at < len(rows):
        number = int(working.file_of[rows[at]])
        facts, path = headers[number].facts, headers[number].path
        if facts is None:
            raise ReleaseError(f"{path} cannot be read; repeat the command.")
        noise = np.empty((facts.pages, *shape), np.int16)
        for page in range(facts.pages):
            noisy = next(pages, None)
            if noisy is None:
                raise ReleaseError(f"{at} of {len(rows)} images were protected; run the last pass to its end.")
            noise[page] = noisy.astype(np.int16) - working.images[rows[at + page]]
        yield number, path, facts, noise
        at += facts.pages


def _copied(original: Path, target: Path, path: str) -> FileRecord:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(original, target)
    flush(target)
    digest = file_sha256(target)
    return FileRecord(path, COPIED, digest, digest)


def _take_place(made: Path, place: Path) -> None:
    """Give what was made its name; what had it before goes."""
    if not place.exists():
        made.rename(place)
    elif exchange(made, place):
        remove(made)
    else:
        remove(place)
        made.rename(place)
    flush(place.parent)
