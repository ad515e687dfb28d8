"""What a user names as images, and what a release was made from, found again from its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from salm_lightning.checked import Count, member, parse
from salm_lightning.data.base import ANY_FINDING, SPLITS, Task
from salm_lightning.data.catalogue import MEDMNIST
from salm_lightning.data.datamodule import ImageDataModule
from salm_lightning.data.folder import as_read
from salm_lightning.data.folder_images import FolderDataModule
from salm_lightning.data.medmnist import MedMNISTDataModule, NpzDataModule
from salm_lightning.data.synthetic import SYNTHETIC, SyntheticDataModule
from salm_lightning.data.tables import FolderOptions
from salm_lightning.errors import ConfigurationError, DataError, did_you_mean

Kind = type[SyntheticDataModule] | type[MedMNISTDataModule] | type[NpzDataModule] | type[FolderDataModule]


def kind_of(word: str) -> Kind | None:
    """Return the kind of data that a user's word means, if any.

    That is their name, a MedMNIST name in any case, a folder, or another path or ``.npz`` name.
    """
    if word.lower() == SYNTHETIC:
        return SyntheticDataModule
    if word.lower() in MEDMNIST:
        return MedMNISTDataModule
    if Path(word).expanduser().is_dir():
        return FolderDataModule
    return NpzDataModule if word.endswith(".npz") or Path(word).exists() else None


def named_images(
    word: str,
    size: int | None = None,
    root: Path | None = None,
    argument: str = "data",
    folder: FolderOptions = FolderOptions(),  # noqa: B008 (frozen)
    **options: Any,
) -> ImageDataModule:
    """Return what a user names as images.

    Args:
        word: A MedMNIST name in any case, an ``.npz`` file in MedMNIST's layout, a folder of images, or ``synthetic``.
        size: Height and width for a name, 28 by default, and for a folder, by default 64 or less.
        root: Folder of MedMNIST's files.
        argument: What the user calls it.
        folder: How a folder is read.
        **options: Further options of the DataModule.

    Raises:
        SalmError: It is none of them, or an option cannot work.
    """
    kind = kind_of(word)
    if kind is None:
        raise DataError(
            f"{argument}={word!r} is neither a MedMNIST name, nor an .npz file in MedMNIST's layout, nor a folder, nor {SYNTHETIC!r}"
            f"{did_you_mean(word, [*MEDMNIST, SYNTHETIC]) or '.'} Names: {', '.join(MEDMNIST)}."
        )
    if kind is FolderDataModule:
        return FolderDataModule(word, size, **asdict(folder) | options)
    given = [field.name for field in fields(folder) if getattr(folder, field.name) != field.default]
    if given:
        raise ConfigurationError(
            f"{given[0]}={getattr(folder, given[0])} is for folders of images, and {argument}={word} is none."
        )
    if kind is SyntheticDataModule:
        return SyntheticDataModule(size=size or 28, **options)
    if kind is MedMNISTDataModule:
        return MedMNISTDataModule(word.lower(), size or 28, root, **options)
    if size is not None:
        raise ConfigurationError(
            f"size={size} is for MedMNIST names; the images of {word} have the size that they have. Leave it out."
        )
    return NpzDataModule(word, **options)


def images_of_release(
    word: str, dataset: Mapping[str, Any], settings: Mapping[str, Any], root: Path | None = None, **options: Any
) -> ImageDataModule:
    """Return what a release was made from, as :func:`named_images` does.

    ``dataset`` and ``settings`` of its manifest say what the user's word for it leaves open.

    Raises:
        SalmError: There is nothing of that name, or an option cannot work.
    """
    kind, derived, known = kind_of(word), dataset.get("labels") == ANY_FINDING, {}
    if kind is SyntheticDataModule:
        known = _drawn(dataset, settings)
    elif kind is MedMNISTDataModule:
        known = {"size": dataset["size"], "any_finding": derived}
    elif kind is FolderDataModule:
        known = {"size": dataset["size"], **as_read(dataset)}
    elif kind is NpzDataModule and derived:
        raise ConfigurationError(
            f"source={word}: its labels were derived from several per image; give the MedMNIST name, and its folder with --root."
        )
    elif kind is NpzDataModule:
        known = {"task": dataset["task"]}
    return named_images(word, root=root, argument="source", **{**known, **options})


def _drawn(dataset: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of drawn images, from values of a manifest that anybody may have written."""
    kinds = {"size": Count, "channels": Count, "imbalance": float, "background": str}
    known = {name: parse(kind, dataset[name], f"dataset.{name}") for name, kind in kinds.items() if name in dataset}
    counts = member(dict(dataset), "num_samples", "dataset")
    for split in SPLITS:
        known[f"{split}_size"] = parse(Count, member(counts, split, "dataset.num_samples"), f"dataset.num_samples.{split}")
    seed = parse(Count, member(dict(settings), "seed", "settings"), "settings.seed")
    multi_label = dataset["task"] == Task.MULTI_LABEL
    return {**known, "num_classes": len(dataset["class_names"]), "multi_label": multi_label, "seed": seed}
