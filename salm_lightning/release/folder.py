"""A folder of images, protected: noise made at the working size, brought to each file's own size, in files like the originals.

A result holds ``protected``, the published tree, and beside it ``release`` with ``manifest.json`` and ``files.csv``, a line for each file.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from salm_lightning.data.formats import Facts
from salm_lightning.data.sums import FileSum
from salm_lightning.data.workers import cores, in_processes
from salm_lightning.errors import OutputExistsError, ReleaseError
from salm_lightning.files import address, building, exchange, file_sha256, flush, remove, write_json
from salm_lightning.release.folder_manifest import (
    COPIED,
    FORMAT,
    PROTECTED,
    FileRecord,
    FolderManifest,
    Scaling,
    files_below,
    read_records,
    records_in,
    stored_bound,
    write_table,
)
from salm_lightning.release.manifest import FILES, MANIFEST, RELEASE, Bound, is_folder_result
from salm_lightning.release.noisy_file import FileJob, write_file
from salm_lightning.sealed import read_sealed, write_sealed

if TYPE_CHECKING:
    from salm_lightning.data.folder_images import FolderDataModule

_TIMED = 4
"""Files that are written to know how long all of them take."""
_UNFINISHED, _JOURNAL, _HEADER = ".unfinished", "journal.csv", "header.json"


def write_folder(
    result: Path,
    data: FolderDataModule,
    blocks: Iterable[NDArray[np.uint8]],
    settings: Mapping[str, Any],
    bound: Mapping[str, Any],
    fingerprint: str,
    scaling: Scaling = "bilinear",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    secret: bytes = b"",
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
        secret: What the new identifiers of DICOM files are made of; empty keeps them.

    Raises:
        ReleaseError: A file of the folder was changed meanwhile, or images are missing.
        DataError: A file cannot be written within the bound.
    """
    from salm_lightning.release.writer import versions_here  # torch, which the processes that write files do without

    folder, values = data.survey.folder, data.working.values
    promise = Bound.from_dict(bound)
    unfinished = result / _UNFINISHED
    done = _begin(unfinished, address(fingerprint, secret.hex()))
    tree = unfinished / PROTECTED
    total = len(folder.images) + len(folder.others) + len(folder.unlabelled)
    records = dict(done)

    def note(record: FileRecord) -> None:
        records[record.file] = record
        with (unfinished / _JOURNAL).open("a", newline="", encoding="utf-8", errors="surrogateescape") as journal:
            csv.writer(journal).writerow(list(asdict(record).values()))
        on_progress(len(records), total)

    jobs = (job for job in _jobs(data, blocks, _Way(tree, scaling, promise.radius, secret)) if job.path not in done)
    for record in in_processes(write_file, jobs, few=4):
        note(record)
    noisy = {image.path for image, of in zip(folder.images, data.carries_noise, strict=True) if of}
    for path in sorted({*folder.others, *folder.unlabelled, *(image.path for image in folder.images)} - noisy - done.keys()):
        note(_copied(folder.root / path, tree / path, path))
    ordered = [records[path] for path in sorted(records)]
    carrying = [record for record in ordered if record.format != COPIED]
    if {record.file for record in carrying} != noisy:
        raise ReleaseError(f"{len(carrying)} of {len(noisy)} images were written; repeat the command.")
    with building(result / RELEASE) as made:
        write_table(made / FILES, ordered)
        manifest = FolderManifest(
            format=FORMAT,
            dataset=json.loads(json.dumps(data.describe())),
            settings=json.loads(json.dumps(dict(settings), allow_nan=False)),
            radius=promise.radius,
            range=tuple(values),
            units=data.units,
            uids="new" if secret else "keep",
            bound=max(record.bound for record in carrying),
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


def cost_of_files(data: FolderDataModule, radius: float) -> tuple[float, int]:
    """Return the seconds in which this machine writes the files with noise, and the bytes of the tree: from a few files with drawn noise.

    Raises:
        DataError: A file cannot be written.
    """
    carrying, sizes = np.flatnonzero(data.carries_noise), [size for size, _ in data.working.stats]
    drawn = carrying[np.linspace(0, len(carrying) - 1, _TIMED + 1).astype(int)]
    rng, seconds, grows = np.random.default_rng(0), 0.0, 0.0
    with TemporaryDirectory() as place:
        for number in map(int, drawn):
            shape = (_facts_of(data, number).pages, *data.working.images.shape[1:])
            noise = rng.choice(np.array([-radius, radius], np.int16), shape)
            begin = time.perf_counter()
            record = write_file(_job(data, number, noise, _Way(Path(place), "bilinear", radius)))
            if number != drawn[0]:  # the first one's codec is loaded with it
                seconds += time.perf_counter() - begin
                grows += (Path(place) / record.file).stat().st_size / sizes[number]
    written = sum(sizes[number] for number in carrying)
    return seconds / _TIMED * len(carrying) / cores(), int(sum(sizes) + (grows / _TIMED - 1) * written)


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
        for record in records_in(io.StringIO(whole, newline=""), headings=False):
            path = unfinished / PROTECTED / record.file
            if path.is_file() and file_sha256(path) == record.after:
                done[record.file] = record
    except (ValueError, csv.Error):
        whole, done = "", {}
    journal.write_bytes(whole.encode("utf-8", errors="surrogateescape"))
    return done


class _Way(NamedTuple):
    """How files are written: below which folder, how noise is scaled, its radius, and what new identifiers are made of."""

    tree: Path
    scaling: Scaling
    radius: float
    secret: bytes = b""


def _jobs(data: FolderDataModule, blocks: Iterable[NDArray[np.uint8]], way: _Way) -> Iterator[FileJob]:
    """Yield each file that carries noise, with the noise of its pages at the working size."""
    from salm_lightning.release.parts import as_stored

    working, rows = data.working, data.rows("train")
    shape, pages = working.images.shape[1:], (image for block in blocks for image in as_stored(block, working.images.shape[1:]))
    at = 0
    while at < len(rows):
        number = int(working.file_of[rows[at]])
        count = _facts_of(data, number).pages
        noise = np.empty((count, *shape), np.int16)
        for page in range(count):
            noisy = next(pages, None)
            if noisy is None:
                raise ReleaseError(f"{at} of {len(rows)} images were protected; run the last pass to its end.")
            noise[page] = noisy.astype(np.int16) - working.images[rows[at + page]]
        yield _job(data, number, noise, way)
        at += count


def _job(data: FolderDataModule, number: int, noise: NDArray[np.int16], way: _Way) -> FileJob:
    facts, (low, high) = _facts_of(data, number), data.working.values
    path, digest, slope = data.survey.headers[number].path, data.working.sums[number], facts.scale[0]
    bound, factor = stored_bound(way.radius, (low, high), slope), (high - low) / 255 / slope
    regions = data.survey.folder.kept_out.regions.get(path, ())
    return FileJob(data.survey.folder.root, way.tree, path, facts, noise, way.scaling, factor, bound, digest, way.secret, regions)


def _facts_of(data: FolderDataModule, number: int) -> Facts:
    header = data.survey.headers[number]
    if header.facts is None:
        raise ReleaseError(f"{header.path} cannot be read; repeat the command.")
    return header.facts


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
