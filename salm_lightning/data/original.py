"""Originals: what a user names as images, opened, identified by a checksum, and found again from a release's manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from salm_lightning.data.catalogue import MEDMNIST
from salm_lightning.data.datamodule import ImageDataModule
from salm_lightning.data.medmnist import MedMNISTDataModule, NpzDataModule
from salm_lightning.data.sums import FileSum, file_sums
from salm_lightning.data.synthetic import SYNTHETIC, SyntheticDataModule
from salm_lightning.errors import DataError, did_you_mean


class Kind(Protocol):
    """What a DataModule class offers that users can name their images to."""

    def takes(self, word: str) -> bool:
        """Return whether a user's word means this kind of data."""

    def named(self, word: str, size: int | None, root: Path | None, **options: Any) -> ImageDataModule:
        """Return the DataModule for a user's word; ``size`` and ``root`` are for names."""

    def options_of(self, word: str, dataset: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options, ``size`` among them, that open what a release with these values in its manifest was made from."""


KINDS: tuple[Kind, ...] = (SyntheticDataModule, MedMNISTDataModule, NpzDataModule)
"""Every kind of data; of those that take a user's word the first one has it."""


@dataclass(frozen=True)
class Original:
    """Images as their owner has them.

    Attributes:
        images: Their DataModule.
    """

    images: ImageDataModule

    @classmethod
    def named(
        cls, word: str, size: int | None = None, root: Path | None = None, argument: str = "data", **options: Any
    ) -> Original:
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
        return cls(_kind(word, argument).named(word, size, root, **options))

    @classmethod
    def of_release(
        cls, word: str, dataset: Mapping[str, Any], settings: Mapping[str, Any], root: Path | None = None, **options: Any
    ) -> Original:
        """Return what a release was made from; its manifest says what the user's word for it leaves open.

        Args:
            word: See :meth:`named`.
            dataset: ``dataset`` of the manifest.
            settings: ``settings`` of the manifest.
            root: Folder of MedMNIST's files.
            **options: Further options of the DataModule.

        Raises:
            SalmError: There is nothing of that name, or an option cannot work.
        """
        kind = _kind(word, "source")
        known = kind.options_of(word, dataset, settings)
        return cls(kind.named(word, root=root, **{"size": None, **known, **options}))

    def load(self) -> ImageDataModule:
        """Return the images, downloaded if need be and read.

        Raises:
            DataError: They cannot be.
        """
        self.images.prepare_data()
        self.images.setup("fit")
        return self.images

    @property
    def sha256(self) -> str:
        """The checksum of the file that the images come from, or of their arrays where they were drawn."""
        return self.images.checksum()

    @property
    def file(self) -> FileSum | None:
        """What a manifest says of where the images come from; ``None`` where they were drawn, or are not there yet."""
        path = self.images.source_path
        return FileSum(path.name, file_sums(path).sha256) if path is not None and path.is_file() else None

    @property
    def word(self) -> str:
        """What names the images to a command, in the working directory."""
        return self.images.info.name if self.images.source_path is None else str(self.images.source_path)

    def identity(self) -> dict[str, Any]:
        """Return what a model that is trained on the images depends on, whatever they are called."""
        images = self.images
        labels = images.describe().get("labels")
        return {"sha256": self.sha256, "task": str(images.task), "num_classes": images.num_classes, "labels": labels}


def _kind(word: str, argument: str) -> Kind:
    kind = next((kind for kind in KINDS if kind.takes(word)), None)
    if kind is None:
        raise DataError(
            f"{argument}={word!r} is neither a MedMNIST name, nor an .npz file in MedMNIST's layout, nor {SYNTHETIC!r}"
            f"{did_you_mean(word, [*MEDMNIST, SYNTHETIC]) or '.'} Names: {', '.join(MEDMNIST)}."
        )
    return kind
