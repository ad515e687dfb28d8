"""Checking the result of a protected folder on its stored files, against its manifest and against the originals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from salm_lightning.data import formats
from salm_lightning.data.formats import UnsupportedImage
from salm_lightning.data.workers import in_processes
from salm_lightning.errors import ReleaseError
from salm_lightning.files import file_sha256
from salm_lightning.release.folder_manifest import (
    COPIED,
    PROTECTED,
    FileRecord,
    FolderManifest,
    files_below,
    read_records,
    stored_bound,
)
from salm_lightning.release.manifest import FILES, RELEASE
from salm_lightning.release.verify import Check

_SHOWN = 3
OnProgress = Callable[[int, int], None]


class _Found(NamedTuple):
    """What is wrong with a file, by check."""

    file: str
    faults: dict[str, str]
    largest: int


def verify_folder(result: Path, source: Path | None = None, on_progress: OnProgress = lambda done, total: None) -> list[Check]:
    """Check a result, and with ``source``, the original folder, that only pixels have changed, and by how much at most.

    Files are compared one by one, in several processes, on the pixels that they decode to and on every other byte.

    Args:
        result: The folder that holds ``protected`` and ``release``.
        source: The originals.
        on_progress: Takes how many files were looked at, and of how many.

    Returns:
        The checks in the order in which they were made; the result is good if all are ok.
    """
    try:
        manifest, records = FolderManifest.read(result), read_records(result)
    except ReleaseError as error:
        return [Check("manifest", False, str(error))]
    checks = [Check("manifest", True, f"{manifest.source.name}: {manifest.images} images, {manifest.copied} files copied")]
    checks += _table(result, manifest, records)
    present = set(files_below(result / PROTECTED))
    listed = {record.file for record in records}
    links = sorted(path for path in present if (result / PROTECTED / path).is_symlink())
    checks.append(_of("files", [*sorted(present ^ listed), *links], f"{len(records)}, none missing, none too many"))
    if not checks[-1].ok:
        return checks
    work = partial(_look, result / PROTECTED, source, manifest.bound)
    found = []
    for some in in_processes(work, [records[start : start + 8] for start in range(0, len(records), 8)], few=4):
        found += some
        on_progress(len(found), len(records))
    checks.append(_gathered("sums", found, "of all files as in the table"))
    if source is None:
        return checks
    largest = max((one.largest for one in found), default=0)
    low, high = manifest.range
    shown = f"largest change {largest}, bound {manifest.bound} stored levels: {manifest.radius:g}/255 of {low} to {high}"
    checks.append(_gathered("source", found, "the files that were protected, by their sums"))
    checks.append(_gathered("bound", found, shown))
    checks.append(_gathered("transparent pixels", found, "kept their values"))
    checks.append(
        _gathered("other bytes", found, "everything but the pixels is as it was, but for embedded pictures that are left out")
    )
    checks.append(_gathered("copies", found, f"{manifest.copied} files, byte for byte"))
    return checks


def _table(result: Path, manifest: FolderManifest, records: list[FileRecord]) -> Iterator[Check]:
    digest = file_sha256(result / RELEASE / FILES)
    same = digest == manifest.files.sha256
    yield Check("table", same, f"sha256 {digest}" + ("" if same else f", the manifest says {manifest.files.sha256}"))
    noisy = [record for record in records if record.format != COPIED]
    good = (
        len(noisy) == manifest.images
        and len(records) - len(noisy) == manifest.copied
        and len({record.file for record in records}) == len(records)
        and len(manifest.range) == 2
        and manifest.bound == stored_bound(manifest.radius, (manifest.range[0], manifest.range[1]))
        and max((record.largest for record in noisy), default=0) == manifest.largest <= manifest.bound
    )
    yield Check("coverage", good, f"{len(noisy)} of {manifest.images} images carry noise, by at most {manifest.largest}")


def _look(tree: Path, source: Path | None, bound: int, records: Iterable[FileRecord]) -> list[_Found]:
    return [_look_at(tree / record.file, None if source is None else source / record.file, bound, record) for record in records]


def _look_at(path: Path, original: Path | None, bound: int, record: FileRecord) -> _Found:
    faults: dict[str, str] = {}
    if file_sha256(path) != record.after:
        faults["sums"] = "has another sum than the table says"
    if original is None:
        return _Found(record.file, faults, 0)
    largest = 0
    try:
        if file_sha256(original) != record.before:
            faults["source"] = "is another file in the source"
        elif record.format == COPIED:
            if record.before != record.after:
                faults["copies"] = "differs from the original"
        else:
            before, after = formats.read(original), formats.read(path)
            if before.shape != after.shape or before.dtype != after.dtype:
                faults["bound"] = "has other dimensions"
            else:
                largest, _ = formats.compared(before, after)
                if largest > bound or largest != record.largest:
                    faults["bound"] = f"differs by {largest}, the table says {record.largest}, the bound is {bound}"
                still = formats.kept(original)
                if still is not None and (before != after)[still].any():
                    faults["transparent pixels"] = "has fully transparent pixels that changed"
            if unexplained := formats.unexplained(original, path):
                faults["other bytes"] = ", ".join(unexplained)
    except OSError as error:
        faults["source"] = f"cannot be read in the source ({error.strerror})"
    except UnsupportedImage as error:
        faults["bound"] = error.reason
    return _Found(record.file, faults, largest)


def _gathered(name: str, found: Iterable[_Found], good: str) -> Check:
    return _of(name, [f"{one.file} {one.faults[name]}" for one in found if name in one.faults], good)


def _of(name: str, wrong: list[str], good: str) -> Check:
    more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return Check(name, not wrong, "; ".join(wrong[:_SHOWN]) + more if wrong else good)
