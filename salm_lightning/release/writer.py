"""Writing a protected dataset: streamed, measured while it is written, and there completely or not at all."""

from __future__ import annotations

import json
import os
import platform
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salm_lightning.data.base import ARRAYS, Split
from salm_lightning.data.datamodule import ImageDataModule
from salm_lightning.data.npz import ArraySpec, NpzReader, copy_array, slices, write_array
from salm_lightning.data.sums import FileSum, file_sums
from salm_lightning.errors import ConfigurationError, OutputExistsError, ReleaseError
from salm_lightning.files import building, exchange, flush, remove, remove_leftovers, write_text, writing
from salm_lightning.release.manifest import (
    DATAMODULE,
    DATAMODULE_TEXT,
    MANIFEST,
    Bound,
    Coverage,
    Manifest,
    Publish,
    archive_name,
    extra_arrays,
    info_of,
    safe_name,
)
from salm_lightning.release.measure import Meter
from salm_lightning.release.parts import as_stored, clear_parts

_PACKAGES = ("lightning", "numpy", "salm-lightning", "torch", "torchvision")
_ROWS = 128  # of the splits that are copied


def check_destination(folder: Path | str, overwrite: bool = False) -> None:
    """Refuse, before any work is done, a destination that :func:`write_release` would refuse.

    It only looks, so all ranks may call it.

    Raises:
        OutputExistsError: The folder exists and ``overwrite`` is off, or it is on and the folder is not a protected dataset:
            other files are never deleted.
        ConfigurationError: It cannot be made there.
    """
    folder = _absolute(folder)
    # a run that was killed while it replaced a release may have left it set aside
    present = folder if os.path.lexists(folder) else _aside(folder)
    above = next(path for path in folder.parents if path.exists())
    if not above.is_dir():
        raise ConfigurationError(f"{folder} cannot be made: {above} is no folder; name another one.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{folder} cannot be made: {above} is not writable; name another folder.")
    if not os.path.lexists(present):
        return
    if not overwrite:
        raise OutputExistsError(f"{present} exists; name another folder, or pass --overwrite true to replace the release in it.")
    if not _is_release(present):
        raise OutputExistsError(
            f"{present} exists and is not a protected dataset (or holds other files too), so it is not overwritten; "
            "name another folder, or remove it yourself."
        )


def write_release(
    folder: Path | str,
    source: ImageDataModule,
    protected: Iterable[NDArray[np.uint8]],
    settings: Mapping[str, Any],
    bound: Mapping[str, Any],
    overwrite: bool = False,
    selected: NDArray[np.bool_] | None = None,
    announce: Callable[[str], None] = lambda manifest: None,
    publish: Publish = "all",
) -> Manifest:
    """Write a protected dataset: ``<name>.npz``, ``manifest.json`` and ``datamodule.yaml``.

    The folder is built under a temporary name beside the destination and renamed when complete. A process that is killed
    leaves nothing else than that temporary folder, which the next call removes; a release that is replaced stays until the new
    one is complete. Memory is bounded by the blocks of ``protected``. The same images and settings give the same bytes of the
    ``.npz`` and of the manifest.

    Args:
        folder: Destination.
        source: DataModule of the originals, set up. Its val and test splits, all labels, and whatever else its file holds, such as
            names, are copied as they are.
        protected: The protected training images in index order, each exactly once, in blocks of any length: uint8
            ``[B, H, W]``, ``[B, H, W, C]`` or ``[B, C, H, W]``.
        settings: The method with every setting, and the seed; plain values that JSON can hold.
        bound: ``norm`` (``"linf"`` or ``"l2"``), ``radius`` in units of 1/255, and for masks that guarantee it ``max_changed_pixels``.
        overwrite: Replace an existing release.
        selected: Which training images may differ from the originals, boolean ``[N]``; None for all.
        announce: Called with the manifest's text when everything is written and only the renaming is left.
        publish: ``all`` is MedMNIST's layout, whose val and test images are the clean ones; ``train`` leaves these out.

    Returns:
        The manifest, as written.

    Raises:
        OutputExistsError: See :func:`check_destination`.
        ConfigurationError: ``settings`` or ``bound`` cannot be written down.
        ReleaseError: Images are missing, are too many, have another shape, exceed the bound, became black, or
            differ though they were not selected. Nothing is written then.
    """
    folder = _absolute(folder)
    check_destination(folder, overwrite)
    plain, promise, dataset = _plain(settings), Bound.from_dict(bound), _plain(source.describe())
    dataset["name"] = safe_name(dataset["name"])
    recover(folder)
    with building(folder) as made:
        path, meter = made / archive_name(info_of(dataset)), Meter()
        specs = _write_archive(path, source, _measured_blocks(source.split("train"), protected, meter), publish)
        measured = meter.compute()
        _refuse_bad_images(promise.violation(measured), meter, selected)
        manifest = Manifest(
            dataset=dataset,
            settings=plain,
            bound=promise,
            measured=measured,
            coverage=Coverage.of(measured.images, selected),
            source=source.source_file,
            archive=FileSum(path.name, file_sums(path).sha256),
            arrays=specs,
            versions=versions_here(),
        )
        write_text(made / DATAMODULE, DATAMODULE_TEXT)
        write_text(made / MANIFEST, manifest.to_json())
        announce(manifest.to_json())
        _publish(made, folder)
    return manifest


def recover(folder: Path | str) -> None:
    """Clear what a killed run left beside a destination, and put a release back that it had set aside."""
    folder = _absolute(folder)
    remove_leftovers(folder.parent.glob(".*.tmp"))
    aside = _aside(folder)
    if aside.exists() and not folder.exists():
        aside.rename(folder)
    remove(aside)


def remove_release(folder: Path) -> None:
    """Delete a release that has no other files in its folder, and what was kept for it; anything else is left alone."""
    recover(folder)
    clear_parts(folder)
    if _is_release(folder):
        remove(folder)


def _write_archive(
    path: Path, source: ImageDataModule, train_images: Iterator[NDArray[np.uint8]], publish: Publish
) -> dict[str, ArraySpec]:
    specs = {}
    with writing(path), zipfile.ZipFile(path, "w") as archive:
        for name in ARRAYS:
            split, _, kind = name.partition("_")
            if publish not in ("all", split):
                continue
            array = getattr(source.split(split), kind)
            specs[name] = ArraySpec.of(array)
            write_array(archive, name, specs[name], train_images if name == "train_images" else slices(array, _ROWS))
        if source.source_path is not None:
            with NpzReader(source.source_path, needed=ARRAYS) as original:
                for name in extra_arrays(original.specs, publish):  # such as names, copied byte for byte
                    copy_array(archive, name, original.stored(name))
                    specs[name] = original.specs[name]
    flush(path)
    return specs


def _measured_blocks(train: Split, protected: Iterable[NDArray[np.uint8]], meter: Meter) -> Iterator[NDArray[np.uint8]]:
    """Pass the protected blocks through and compare each with the originals of the same indices."""
    start = 0
    for block in protected:
        images = as_stored(block, train.images.shape[1:])
        if start + len(images) > len(train):
            raise ReleaseError(f"more than the {len(train)} training images were given; each must be given exactly once.")
        meter.update(train.images[start : start + len(images)], images)
        start += len(images)
        yield images
    if start != len(train):
        raise ReleaseError(
            f"{start} of {len(train)} training images were protected; run the last pass to its end, every image exactly once."
        )


def _refuse_bad_images(violation: str | None, meter: Meter, selected: NDArray[np.bool_] | None) -> None:
    if selected is not None and (wrong := meter.changed() & ~selected).any():
        raise ReleaseError(
            f"training image {int(wrong.argmax())} was not selected and differs from its original. Nothing was written."
        )
    if violation:
        raise ReleaseError(f"the protected images break the method's bound: {violation}. Nothing was written.")
    if meter.blackened:
        raise ReleaseError(
            f"{len(meter.blackened)} protected images would be all black though their originals are not (first indices: "
            f"{meter.blackened[:10]}). Such originals are nearly black: remove them, or use a smaller radius."
        )


def versions_here() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape a release."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # used from a source tree
            versions[package] = "unknown"
    return versions


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as JSON gives them back, so that a manifest in memory equals the one on disk."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(values), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"settings={dict(values)!r} cannot be written as JSON ({error}); use plain values.") from error
    return plain


def _is_release(folder: Path) -> bool:
    """Whether a folder holds what :func:`write_release` writes and nothing else, so that deleting it loses nothing else."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    names = {entry.name for entry in folder.iterdir()}
    others = names - {MANIFEST, DATAMODULE}
    return MANIFEST in names and len(others) <= 1 and all(name.endswith(".npz") for name in others)


def _absolute(folder: Path | str) -> Path:
    return Path(os.path.abspath(folder))  # noqa: PTH100 (Path.resolve would follow links)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.salm-old")


def _publish(made: Path, folder: Path) -> None:
    if not folder.exists():
        made.rename(folder)
    elif not exchange(made, folder):
        _publish_in_two_steps(made, folder)
    flush(folder.parent)  # a power cut must not leave the old release gone and the new one without its name
    remove(_aside(folder))


def _publish_in_two_steps(made: Path, folder: Path) -> None:
    """Replace a release where the system cannot do so in one; :func:`recover` puts it back if it is killed between the two."""
    aside = _aside(folder)
    folder.rename(aside)
    try:
        made.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
