"""The originals of a protected folder, listed again as its manifest says, and compared with the table of its files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from salm_lightning.data.folder import ImageFolder, as_read, read_folder, sum_of
from salm_lightning.data.holdout import holdout
from salm_lightning.data.survey import grouped, survey
from salm_lightning.data.tables import NONE, FolderOptions
from salm_lightning.data.working import Range, decode
from salm_lightning.release.folder_manifest import COPIED, FileRecord, FolderManifest


def read_originals(source: Path, manifest: FolderManifest, keep_out: str | None) -> ImageFolder:
    """Return what the originals are taken for if they are read as the manifest says.

    Args:
        source: The originals.
        manifest: What the result says of itself.
        keep_out: Masks or boxes that it was made with.

    Raises:
        SalmError: They cannot be read so.
    """
    options = _options(manifest)
    folder = read_folder(source, replace(options, keep_out=keep_out), "source")
    return folder if options.group_column == NONE else grouped(folder)


def faults(folder: ImageFolder, manifest: FolderManifest, records: Iterable[FileRecord]) -> list[str]:
    """Return in what a table of files is not that of these originals: other files, labels or groups, an image without its noise.

    Raises:
        DataError: An original that has to be decoded for that is damaged.
    """
    known = {record.file: record for record in records}
    expected = {*folder.others, *folder.unlabelled, *(image.path for image in folder.images)}
    found = [f"{path} of the source is missing" for path in sorted(expected - known.keys())]
    found += [f"{path} is not in the source" for path in sorted(known.keys() - expected)]
    if found:
        return found
    noisy, carrying = {path for path, record in known.items() if record.format != COPIED}, _carrying(folder, manifest)
    found = [f"{path} has to carry noise, and is the original" for path in sorted(carrying - noisy)]
    found += [f"{path} carries noise, and is none of the images to protect" for path in sorted(noisy - carrying)]
    if sum_of(folder, [known[image.path].before for image in folder.images]) != manifest.source.sha256:
        found.append("files, labels, splits or patients are others than the result was made from")
    return found


def _carrying(folder: ImageFolder, manifest: FolderManifest) -> set[str]:
    """Return the images that are protected; only where those to measure on were drawn, pictures are decoded, since twins stay together."""
    if as_read(manifest.dataset).get("protects") == "all":
        return {image.path for image in folder.images}
    if folder.splits:
        return {image.path for image in folder.images if image.split == "train"}
    options, info = _options(manifest), manifest.info
    decoded = decode(survey(folder, options.allow_leak, patients=False), info.size, info.channels, Range(*manifest.range))
    drawn = holdout(folder, options.holdout, options.holdout_seed, decoded.twins)
    return {image.path for image, measured in zip(folder.images, drawn, strict=True) if not measured}


def _options(manifest: FolderManifest) -> FolderOptions:
    options: FolderOptions = as_read(manifest.dataset)["folder"]
    return options
