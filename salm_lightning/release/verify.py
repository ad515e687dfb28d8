"""Checking a protected dataset against its manifest and, where it is at hand, against the original."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from salm_lightning.data.base import ANY_FINDING, ARRAYS, SPLITS, Task, any_finding
from salm_lightning.data.catalogue import INFO
from salm_lightning.data.npz import ArraySpec, NpzReader, slices
from salm_lightning.data.sums import file_sums
from salm_lightning.errors import ReleaseError
from salm_lightning.release.manifest import (
    DATAMODULE,
    MANIFEST,
    Manifest,
    Measured,
    Publish,
    archive_name,
    datamodule_fault,
    extra_arrays,
)

if TYPE_CHECKING:
    from salm_lightning.data.datamodule import ImageDataModule

_ROWS = 128
_TOLERANCE = 1e-6  # of measured means: another machine may round differently, a changed image moves them further

Progress = Callable[[int, int], None]
"""Called with the number of training images compared so far, and of all."""


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: What was checked.
        ok: Whether it holds.
        detail: What was found, in a few words.
    """

    name: str
    ok: bool
    detail: str


def refuse_failed(named: str, checks: Iterable[Check]) -> None:
    """Refuse a release that a user has ``named`` if any of its checks does not hold.

    Raises:
        ReleaseError: It is not what was released.
    """
    problems = "; ".join(f"{check.name}: {check.detail}" for check in checks if not check.ok)
    if problems:
        raise ReleaseError(f"{named} is not what was released ({problems}). Get it again, or protect anew.")


def verify_release(
    folder: Path | str, source: Path | str | ImageDataModule | None = None, on_progress: Progress | None = None
) -> list[Check]:
    """Check a release; with ``source`` also everything that needs the originals.

    Files are read in chunks, so memory does not grow with the dataset. No name in the manifest is used as a path, and nothing
    is unpickled. A check that cannot be made because an earlier one failed is left out.

    Args:
        folder: The release.
        source: The original ``.npz``, or the DataModule of images that were drawn; None checks the files against the manifest only.
        on_progress: Called now and then while images are compared.

    Returns:
        The checks in the order in which they were made; the release is good if all are ok.
    """
    folder = Path(folder)
    try:
        manifest = Manifest.read(folder)
    except ReleaseError as error:
        return [Check("manifest", False, str(error))]
    checks = [Check("manifest", True, f"{manifest.info.name}, {manifest.coverage.samples} training images")]
    checks += _check_files(folder, manifest)
    if source is not None and all(check.ok for check in checks if check.name in ("files", "arrays")):
        source = Path(source) if isinstance(source, str) else source
        checks += _check_against_source(folder / archive_name(manifest.info), source, manifest, on_progress)
    return checks


def _check_files(folder: Path, manifest: Manifest) -> Iterator[Check]:
    path = folder / archive_name(manifest.info)
    expected, found = {path.name, MANIFEST, DATAMODULE}, {entry.name: entry for entry in folder.iterdir()}
    good = expected == found.keys() and all(entry.is_file() and not entry.is_symlink() for entry in found.values())
    listed = ", ".join(sorted(expected))
    yield Check("files", good, listed if good else f"expected {listed}; found {', '.join(sorted(found))}")
    if good:
        yield _check_sum(path, manifest)
        fault = datamodule_fault(folder / DATAMODULE)
        yield Check(DATAMODULE, not fault, fault or "names PoisonedDataModule and this folder")
        yield (arrays := _check_arrays(path, manifest))
        yield _check_coverage(manifest)
        if arrays.ok:
            yield _check_classes(path, manifest)


def _check_sum(path: Path, manifest: Manifest) -> Check:
    sums = file_sums(path)
    if sums.sha256 == manifest.archive.sha256:
        return Check("checksum", True, f"sha256 {sums.sha256}")
    wrong = f"sha256 {sums.sha256}, the manifest says {manifest.archive.sha256}"
    official = INFO.get(manifest.info.name, {})
    if (manifest.source and sums.sha256 == manifest.source.sha256) or sums.md5 in official.values():
        wrong += (
            "; this is the CLEAN ORIGINAL, which something has put in the place of the protected file, such as medmnist with "
            "download=True (open a release with download=False)"
        )
    return Check("checksum", False, wrong)


def _check_arrays(path: Path, manifest: Manifest) -> Check:
    """Check the arrays' names, types and shapes, from their headers."""
    try:
        with NpzReader(path) as archive:
            found = archive.specs
    except ReleaseError as error:
        return Check("arrays", False, str(error))
    if found != manifest.arrays:
        differing = sorted(key for key in found.keys() | manifest.arrays.keys() if found.get(key) != manifest.arrays.get(key))
        return Check("arrays", False, f"not as the manifest says: {', '.join(differing)}")
    info = manifest.info
    image = (info.size, info.size) if info.channels == 1 else (info.size, info.size, info.channels)
    for split in manifest.published:
        images, labels = found[f"{split}_images"], found[f"{split}_labels"]
        if images.dtype != "|u1" or images.shape[1:] != image or np.dtype(labels.dtype).kind not in "iu":
            return Check("arrays", False, f"{split}: images are {images}, labels {labels}; not in the layout of MedMNIST")
        if not (images.shape[0] > 0 and images.shape[:1] == labels.shape[:1]):
            return Check("arrays", False, f"{split}: {images.shape[0]} images, labels {labels}")
    counts = ", ".join(f"{split} {found[f'{split}_images'].shape[0]}" for split in manifest.published)
    return Check("arrays", True, f"uint8, so without NaN; {counts}")


def _check_against_source(
    path: Path, source: Path | ImageDataModule, manifest: Manifest, on_progress: Progress | None
) -> Iterator[Check]:
    if isinstance(source, Path) and source.is_dir():
        yield Check("source", False, f"{source} is a folder; give the original .npz file")
        return
    try:
        with NpzReader(path) as release, _open(source) as original:
            yield _check_source(source, manifest)
            derived = manifest.dataset.get("labels") == ANY_FINDING
            shapes = _check_shapes(release, original, manifest, derived)
            yield shapes
            if shapes.ok:
                aligned = "aligned with the source in all splits"
                yield _check_equal("labels", aligned, release, original, derived, "_labels")
                clean = "images untouched" if len(manifest.published) > 1 else "not published"
                yield _check_equal("val and test", clean, release, original, False, "val_images", "test_images")
                if manifest.extras and isinstance(original, NpzReader):
                    yield _check_extras(release, original, manifest)
                yield from _check_images(release, original, manifest, on_progress)
    except ReleaseError as error:
        yield Check("readable", False, str(error))


class _SplitsReader:
    """The splits of a DataModule, read as :class:`NpzReader` reads those of a file."""

    def __init__(self, images: ImageDataModule) -> None:
        splits = {name: images.split(name) for name in SPLITS}
        self._arrays = {f"{name}_{kind}": getattr(split, kind) for name, split in splits.items() for kind in ("images", "labels")}
        self.specs = {name: ArraySpec.of(array) for name, array in self._arrays.items()}

    def chunks(self, name: str, rows: int) -> Iterator[NDArray[Any]]:
        """Yield consecutive blocks of rows."""
        return slices(self._arrays[name], rows)


_Arrays = NpzReader | _SplitsReader


def _open(source: Path | ImageDataModule) -> AbstractContextManager[_Arrays]:
    return NpzReader(source, needed=ARRAYS) if isinstance(source, Path) else nullcontext(_SplitsReader(source))


def _check_source(source: Path | ImageDataModule, manifest: Manifest) -> Check:
    if not isinstance(source, Path) and (given := source.source_file) is not None:  # of a folder's files
        same = manifest.source is not None and given.sha256 == manifest.source.sha256
        stated = manifest.source.sha256 if manifest.source else "nothing of a folder"
        return Check("source", same, f"sha256 {given.sha256} of all files" + ("" if same else f", the manifest says {stated}"))
    if not isinstance(source, Path):
        if manifest.source is not None:
            return Check("source", False, f"the release was made from the file {manifest.source.name}; give that")
        return Check("source", True, "drawn anew as the manifest says")
    if manifest.source is None:
        return Check("source", False, "the release was made from drawn data; give the data's name instead of a file")
    digest = file_sums(source).sha256
    same = digest == manifest.source.sha256
    return Check("source", same, f"sha256 {digest}" + ("" if same else f", the manifest says {manifest.source.sha256}"))


def _check_shapes(release: NpzReader, original: _Arrays, manifest: Manifest, derived: bool) -> Check:
    published: Publish = "all" if len(manifest.published) > 1 else "train"
    names = [name for name in ARRAYS if name in manifest.arrays] + extra_arrays(original.specs, published)
    expected = dict(original.specs)
    if derived:
        labels = {name: spec for name, spec in expected.items() if name.endswith("_labels")}
        expected |= {name: replace(spec, shape=(*spec.shape[:1], 1)) for name, spec in labels.items()}
    differing = [
        f"{name}: {release.specs.get(name, 'nothing')} against {expected.get(name, 'nothing')}"
        for name in dict.fromkeys([*names, *release.specs])
        if release.specs.get(name) != expected.get(name)
    ]
    return Check("same arrays", not differing, "; ".join(differing) or "types and shapes as in the source")


def _check_coverage(manifest: Manifest) -> Check:
    stored, coverage, compared = manifest.arrays["train_images"].shape[0], manifest.coverage, manifest.measured.images
    good = stored == coverage.samples == coverage.written == compared and (coverage.selection or coverage.selected == stored)
    chosen = "" if coverage.selection is None else f", {coverage.selected} of them selected"
    detail = (
        f"{coverage.written} of {coverage.samples} training images written once{chosen}, {compared} measured, {stored} stored"
    )
    return Check("coverage", bool(good), detail)


def _check_classes(path: Path, manifest: Manifest) -> Check:
    """Check that labels are numbers of the classes, or for several labels per image 0 or 1 for each."""
    info, several = manifest.info, manifest.info.task is Task.MULTI_LABEL
    columns, highest = (info.num_classes, 1) if several else (1, info.num_classes - 1)
    try:
        with NpzReader(path) as archive:
            for split in manifest.published:
                name = f"{split}_labels"
                if archive.specs[name].shape[1:] != (columns,):
                    return Check("classes", False, f"{name} are {archive.specs[name]}, {info.task} has {columns} for each image")
                for labels in archive.chunks(name, _ROWS):
                    if (labels < 0).any() or (labels > highest).any():
                        return Check(
                            "classes", False, f"{name} has values from {labels.min()} to {labels.max()}, outside 0 to {highest}"
                        )
    except ReleaseError as error:
        return Check("classes", False, str(error))
    return Check("classes", True, f"all labels are from 0 to {highest}")


def _check_equal(name: str, detail: str, release: NpzReader, original: _Arrays, derived: bool, *endings: str) -> Check:
    """Check that all arrays whose names end so are equal in both files, or derived as ``any_finding`` does."""
    for array in ARRAYS:
        if array.endswith(endings) and array in release.specs:
            row = 0
            for ours, theirs in _pairs(release, original, array):
                wrong = np.flatnonzero((ours != (any_finding(theirs) if derived else theirs)).reshape(len(ours), -1).any(axis=1))
                if len(wrong):
                    return Check(name, False, f"{array} differs from the source, first at index {row + wrong[0]}")
                row += len(ours)
    return Check(name, True, detail)


def _check_extras(release: NpzReader, original: NpzReader, manifest: Manifest) -> Check:
    """Check that arrays which MedMNIST's layout does not know are copies, byte for byte."""
    differing = [
        name
        for name in manifest.extras
        if any(ours != theirs for ours, theirs in zip_longest(release.stored(name), original.stored(name)))
    ]
    detail = (
        f"differing from the source: {', '.join(differing)}" if differing else f"as in the source: {', '.join(manifest.extras)}"
    )
    return Check("other arrays", not differing, detail)


def _check_images(release: NpzReader, original: _Arrays, manifest: Manifest, on_progress: Progress | None) -> Iterator[Check]:
    from salm_lightning.release.measure import Meter

    meter, total, done = Meter(), release.specs["train_images"].shape[0], 0
    for ours, theirs in _pairs(release, original, "train_images"):
        meter.update(theirs, ours)
        done += len(ours)
        if on_progress is not None:
            on_progress(done, total)
    measured, bound = meter.compute(), manifest.bound
    violation = bound.violation(measured)
    pixels = "" if bound.max_changed_pixels is None else f", bound {bound.max_changed_pixels}"
    kept = f"{bound.reached(measured)}; at most {measured.l0_max} pixels changed{pixels}"
    yield Check("bound", violation is None, violation or kept)
    if manifest.coverage.selection is not None:
        selected = manifest.coverage.mask()
        # a mask of another length has failed the coverage check already
        touched = np.flatnonzero(meter.changed() & ~selected).tolist() if len(selected) == total else []
        wrong = f"{len(touched)} images that were not selected differ from the source, first indices {touched[:10]}"
        untouched = f"{total - manifest.coverage.selected} training images untouched"
        yield Check("not selected", not touched, wrong if touched else untouched)
    black = meter.blackened
    first = f"{len(black)} training images are all black and were not, first indices {black[:10]}"
    yield Check("black images", not black, first if black else "none that was not black before")
    yield _check_measured(measured, manifest.measured)


def _check_measured(found: Measured, stated: Measured) -> Check:
    ours, theirs = asdict(found), asdict(stated)
    wrong = [f"{key} is {ours[key]}, the manifest says {theirs[key]}" for key in ours if not _agree(ours[key], theirs[key])]
    psnr = "infinite" if found.psnr is None else f"{found.psnr:.2f} dB"
    summary = f"SSIM {found.ssim:.4f}, PSNR {psnr}, {100 * found.changed_share:.2f} % of the pixels changed, as in the manifest"
    return Check("measured values", not wrong, "; ".join(wrong) or summary)


def _agree(found: float | None, stated: float | None) -> bool:
    if isinstance(found, float) and isinstance(stated, float):
        return math.isclose(found, stated, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return found == stated


def _pairs(release: NpzReader, original: _Arrays, name: str) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    return zip(release.chunks(name, _ROWS), original.chunks(name, _ROWS), strict=True)
