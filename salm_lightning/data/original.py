"""What a user names as images, and what a release was made from, found again from its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salm_lightning.data.catalogue import MEDMNIST
from salm_lightning.data.datamodule import ImageDataModule
from salm_lightning.data.medmnist import MedMNISTDataModule, NpzDataModule
from salm_lightning.data.synthetic import SYNTHETIC, SyntheticDataModule
from salm_lightning.errors import DataError, did_you_mean

Kind = type[SyntheticDataModule] | type[MedMNISTDataModule] | type[NpzDataModule]
KINDS: tuple[Kind, ...] = (SyntheticDataModule, MedMNISTDataModule, NpzDataModule)
"""Every kind of data; of those that take a user's word the first one has it."""


def named_images(
    word: str, size: int | None = None, root: Path | None = None, argument: str = "data", **options: Any
) -> ImageDataModule:
    """Return what a user names as images.

    Args:
        word: A MedMNIST name in any case, an ``.npz`` file in MedMNIST's layout, or ``synthetic``.
        size: Height and width for a name; ``None`` is 28.
        root: Folder of MedMNIST's files.
        argument: What the user calls it.
        **options: Further options of the DataModule.

    Raises:
        SalmError: It is none of them, or an option cannot work.
    """
    return _kind(word, argument).named(word, size, root, **options)


def images_of_release(
    word: str, dataset: Mapping[str, Any], settings: Mapping[str, Any], root: Path | None = None, **options: Any
) -> ImageDataModule:
    """Return what a release was made from, as :func:`named_images` does.

    ``dataset`` and ``settings`` of its manifest say what the user's word for it leaves open.

    Raises:
        SalmError: There is nothing of that name, or an option cannot work.
    """
    kind = _kind(word, "source")
    known = kind.options_of(word, dataset, settings)
    return kind.named(word, root=root, **{"size": None, **known, **options})


def _kind(word: str, argument: str) -> Kind:
    kind = next((kind for kind in KINDS if kind.takes(word)), None)
    if kind is None:
        raise DataError(
            f"{argument}={word!r} is neither a MedMNIST name, nor an .npz file in MedMNIST's layout, nor {SYNTHETIC!r}"
            f"{did_you_mean(word, [*MEDMNIST, SYNTHETIC]) or '.'} Names: {', '.join(MEDMNIST)}."
        )
    return kind
