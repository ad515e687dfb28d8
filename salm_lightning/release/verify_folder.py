"""Checking the result of a protected folder on its stored files, against its manifest and against the originals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

from salm_lightning.data import formats
from salm_lightning.data.formats import Facts, UnsupportedImage
from salm_lightning.data.keep_out import Region, mask_of, together
from salm_lightning.data.workers import in_processes
from salm_lightning.errors import ConfigurationError, DataError, ReleaseError
from salm_lightning.files import expanded, file_sha256
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
from salm_lightning.release.originals import faults, read_originals
from salm_lightning.release.verify import Check

_SHOWN = 3
OnProgress = Callable[[int, int], None]


class _Found(NamedTuple):
    """What is wrong with a file, by check."""

    file: str
    faults: dict[str, str]
    largest: int = 0
    uids: tuple[str, str, str, str] | None = None
    """Identifiers of an image and its series in the source, and in the tree."""


def verify_folder(
    result: Path,
    source: Path | None = None,
    on_progress: OnProgress = lambda done, total: None,
    keep_out: str | None = None,
) -> list[Check]:
    """Check a result, and with ``source``, the original folder, that only pixels have changed, and by how much at most.

    Files are compared one by one, in several processes, on the pixels that they decode to and on every other byte.

    Args:
        result: The folder that holds ``protected`` and ``release``.
        source: The originals.
        on_progress: Takes how many files were looked at, and of how many.
        keep_out: Masks or boxes that it was made with.

    Returns:
        The checks in the order in which they were made; the result is good if all are ok.

    Raises:
        ConfigurationError: ``keep_out`` is given without ``source``, or cannot work.
        DataError: The originals cannot be read as the manifest says.
    """
    if keep_out is not None and source is None:
        raise ConfigurationError(f"keep_out={keep_out} needs the originals; give with --source the folder that was protected.")
    try:
        manifest, records = FolderManifest.read(result), read_records(result)
    except ReleaseError as error:
        return [Check("manifest", False, str(error))]
    checks = [Check("manifest", True, f"{manifest.source.name}: {manifest.images} images, {manifest.copied} files copied")]
    checks += _table(result, manifest, records)
    present = set(files_below(result / PROTECTED))
    listed = {record.file for record in records}
    strange = sorted(path for path in present if not S_ISREG((result / PROTECTED / path).lstat().st_mode))  # links, pipes
    checks.append(_of("files", [*sorted(present ^ listed), *strange], f"{len(records)}, none missing, none too many"))
    if not checks[-1].ok:
        return checks
    regions: Mapping[str, tuple[Region, ...]] = {}
    if source is not None:
        folder = read_originals(source, manifest, keep_out)
        if folder.kept_out.sum() != manifest.kept_out:
            said = "the regions that were kept out are others; give with --keep_out what the result was made with"
            return [*checks, Check("kept pixels", False, said)]
        regions, every = folder.kept_out.regions, len(folder.images)
        good = f"{manifest.images} of the {every} of the source carry noise, as they have to"
        checks.append(_of("images", faults(folder, manifest, records), good))
    work = partial(_look, result / PROTECTED, source, manifest, regions)
    found = []
    for some in in_processes(work, [records[start : start + 8] for start in range(0, len(records), 8)], few=4):
        found += some
        on_progress(len(found), len(records))
    checks.append(_gathered("sums", found, "of all files as in the table"))
    if source is None:
        return checks
    largest = max((one.largest for one in found), default=0)
    low, high = manifest.range
    units = f" {manifest.units}".rstrip()
    shown = (
        f"largest change {largest}, bound {manifest.bound} stored levels: {manifest.radius:g}/255 of {low:g} to {high:g}{units}"
    )
    checks.append(_gathered("source", found, "the files that were protected, by their sums"))
    checks.append(_gathered("bound", found, shown))
    kept = sum(record.kept_out for record in records)
    checks.append(_gathered("kept pixels", found, f"{kept:,} have their values"))
    checks.append(
        _gathered(
            "other bytes",
            found,
            "all but the pixels is as it was, but for embedded pictures, and what says that DICOM was derived",
        )
    )
    checks += _identifiers(found, {record.file: record.after for record in records}, manifest)
    checks.append(_gathered("copies", found, f"{manifest.copied} files, byte for byte"))
    return checks


def original_tree(source: str, argument: str = "source") -> Path:
    """Return the folder that a user names as the originals, with an argument of that name.

    Raises:
        DataError: It is none.
    """
    path = expanded(source)
    if not path.is_dir():
        raise DataError(f"{argument}={source} is no folder; give the one that was protected.")
    return path


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
        and max((record.bound for record in noisy), default=0) == manifest.bound
        and max((record.largest for record in noisy), default=0) == manifest.largest
        and all(record.largest <= record.bound for record in noisy)
    )
    yield Check("coverage", good, f"{len(noisy)} of {manifest.images} images carry noise, by at most {manifest.largest}")


def _identifiers(found: Iterable[_Found], sums: Mapping[str, str], manifest: FolderManifest) -> Iterator[Check]:
    """Check that no image has an identifier that another has, in the tree or in the source, and that what was a series still is one.

    Images that had no identifier need none, and copies of one file, by their ``sums``, may share theirs.
    """
    by_file = {one.file: one.uids for one in found if one.uids is not None and one.uids[0]}
    known = list(by_file.values())
    if not known:
        return
    name = "identifiers"
    if manifest.uids == "keep":
        changed = sum(old != new or series != other for old, series, new, other in known)
        yield Check(name, not changed, f"of {len(known)} DICOM files, {changed} of which are not the original's")
        return
    before, after = {old for old, *_ in known} | {old for _, old, *_ in known}, {new for *_, new, _ in known}
    pairs = {(series, new) for _, series, _, new in known}
    whole = len({old for old, _ in pairs}) == len({new for _, new in pairs}) == len(pairs)
    good = (
        len(after) == len({sums[file] for file in by_file}) and not (after | {new for _, new in pairs}) & before - {""} and whole
    )
    yield Check(
        name, good, f"new ones of {len(known)} DICOM images in {len(pairs)} series" if good else "are not new, or not one for one"
    )


def _look(
    tree: Path,
    source: Path | None,
    manifest: FolderManifest,
    regions: Mapping[str, tuple[Region, ...]],
    records: Iterable[FileRecord],
) -> list[_Found]:
    return [
        _look_at(tree / one.file, None if source is None else source / one.file, manifest, regions.get(one.file, ()), one)
        for one in records
    ]


def _look_at(
    path: Path, original: Path | None, manifest: FolderManifest, regions: tuple[Region, ...], record: FileRecord
) -> _Found:
    faults: dict[str, str] = {}
    if file_sha256(path) != record.after:
        faults["sums"] = "has another sum than the table says"
    if original is None:
        return _Found(record.file, faults)
    largest, uids = 0, None
    try:
        if file_sha256(original) != record.before:
            faults["source"] = "is another file in the source"
        elif record.format == COPIED:
            if record.before != record.after:
                faults["copies"] = "differs from the original"
        else:
            (before, still), after, facts = formats.pixels_and_kept(original), formats.read(path), formats.facts(original)
            bound, uids = stored_bound(manifest.radius, manifest.range, facts.scale[0]), _uids(facts, formats.facts(path))
            if before.shape != after.shape or before.dtype != after.dtype:
                faults["bound"] = "has other dimensions"
            else:
                largest, _ = formats.compared(before, after)
                if largest > bound or (largest, bound) != (record.largest, record.bound):
                    faults["bound"] = f"differs by {largest}, the table says {record.largest}, the bound is {bound}"
                still = together(still, mask_of(regions, facts))
                if still is not None and (before != after)[still].any():
                    faults["kept pixels"] = "has pixels that had to keep their values, and changed"
                if record.kept_out != (0 if still is None else int(still.sum())):
                    faults["kept pixels"] = f"has not the {record.kept_out} pixels of the table that keep their values"
            if unexplained := formats.unexplained(original, path):
                faults["other bytes"] = ", ".join(unexplained)
    except OSError as error:
        faults["source"] = f"cannot be read in the source ({error.strerror})"
    except UnsupportedImage as error:
        faults["bound"] = error.reason
    except DataError as error:
        faults["kept pixels"] = str(error)
    return _Found(record.file, faults, largest, uids)


def _uids(before: Facts, after: Facts) -> tuple[str, str, str, str] | None:
    if before.instance is None or after.instance is None:
        return None
    return (before.instance.uid, before.instance.series, after.instance.uid, after.instance.series)


def _gathered(name: str, found: Iterable[_Found], good: str) -> Check:
    return _of(name, [f"{one.file} {one.faults[name]}" for one in found if name in one.faults], good)


def _of(name: str, wrong: list[str], good: str) -> Check:
    more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return Check(name, not wrong, "; ".join(wrong[:_SHOWN]) + more if wrong else good)
