"""The DataModule of a victim of a protected folder: it trains on the files as they are stored, and is measured on the originals."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

from salm_lightning.console import progress
from salm_lightning.data.base import Split
from salm_lightning.data.datamodule import ImageDataModule
from salm_lightning.data.folder_images import FolderDataModule
from salm_lightning.data.mapped import rows_of
from salm_lightning.data.original import images_of_release
from salm_lightning.data.survey import Survey, survey
from salm_lightning.data.working import Range, decode
from salm_lightning.errors import DataError, ReleaseError
from salm_lightning.files import expanded, file_sha256
from salm_lightning.release.folder_manifest import PROTECTED, FolderManifest
from salm_lightning.release.manifest import MANIFEST, RELEASE
from salm_lightning.release.verify import refuse_failed
from salm_lightning.release.verify_folder import original_tree, verify_folder


class StoredFolder(ImageDataModule):
    """The protected images of a folder result, decoded from the files as they are stored; val and test are the originals.

    Args:
        result: The result.
        images: What it was made from.
        **loading: See :class:`ImageDataModule`.
    """

    def __init__(self, result: Path, images: FolderDataModule, **loading: Any) -> None:
        super().__init__(images.info, **loading)
        self.result = result
        self.images = images

    def checksum(self) -> str:
        """Return the SHA-256 of the result's manifest, which holds that of the table, which holds those of all files."""
        return file_sha256(self.result / RELEASE / MANIFEST)

    def identity(self) -> dict[str, Any]:
        """Return what a model that is trained on the images depends on."""
        return self.images.identity() | {"sha256": self.checksum()}

    @cached_property
    def checked(self) -> Survey:
        """The files as they are stored, their sums checked.

        Raises:
            ReleaseError: A file was changed, is missing, is one too many, or cannot be read.
        """
        refuse_failed(str(self.result), verify_folder(self.result))
        found = survey(replace(self.images.survey.folder, root=self.result / PROTECTED), allow_leak=True, patients=False)
        refused = [header.path for header in found.headers if header.facts is None]
        if refused:
            raise ReleaseError(f"{self.result / PROTECTED / refused[0]} cannot be read; protect the folder anew.")
        return found

    def seen_at(self, size: int, values: Range | None = None) -> Self:
        """Return the same files as another user decodes them, see :meth:`FolderDataModule.seen_at`; they are not checked again."""
        other = self.variant()
        other.checked, other.images = self.checked, self.images.seen_at(size, values)
        other.info, other.image_size, other._splits = other.images.info, size, None
        return other

    def load_splits(self) -> dict[str, Split]:
        """Decode the files of the training split, whose sums are checked before.

        Raises:
            ReleaseError: A file was changed, is missing, is one too many, or cannot be read.
        """
        images = self.images
        with progress("decoding protected images") as on_progress:
            stored = decode(self.checked, images.info.size, images.info.channels, images.working.values, on_progress=on_progress)
        train = Split(rows_of(stored.images, images.rows("train")), images.split("train").labels)
        return {"train": train, "val": images.split("val"), "test": images.split("test")}


class ProtectedFolderDataModule(StoredFolder):
    """The result of a protected folder, for victims: trains on its stored files, validates and tests on the originals.

    Args:
        root: The result, which holds ``protected`` and ``release``.
        original: The folder that was protected.
        **loading: ``batch_size``, ``seed``, ``resident``, ``num_workers`` and ``chunk_size``, as every
            :class:`~salm_lightning.data.datamodule.ImageDataModule` has them.

    Raises:
        ReleaseError: ``root`` holds no such result.
        DataError: It was made from something else than ``original``.
    """

    def __init__(self, root: str | Path, original: str | Path, **loading: Any) -> None:
        result = expanded(root)
        super().__init__(result, original_folder(result, str(original), "original"), **loading)


def original_folder(
    result: Path, word: str, argument: str = "source", keep_out: str | None = None, **options: Any
) -> FolderDataModule:
    """Return the folder that a result was made from, read as then; its training split is without what is measured on.

    Args:
        result: The result.
        word: The user's word for the folder.
        argument: What the user calls it.
        keep_out: Masks or boxes that the result was made with, where somebody wants to know them.
        **options: Further options of the DataModule.

    Raises:
        ReleaseError: There is no such result.
        DataError: The folder is not there, or another one, or the regions are others.
    """
    manifest = FolderManifest.read(result)
    place = str(original_tree(word, argument).absolute())  # the name of a folder may be a dataset's, too
    opened = images_of_release(place, manifest.dataset, manifest.settings, keep_out=keep_out, **options)
    images = cast("FolderDataModule", opened)
    if keep_out is not None and images.survey.folder.kept_out.sum() != manifest.kept_out:
        raise DataError(f"keep_out={keep_out} is not what {result} was made with: the regions that were kept out are others.")
    if images.checksum() != manifest.source.sha256:
        raise DataError(
            f"{argument}={word} is not what {result} was made from: images or labels differ. Give the folder that was protected."
        )
    return images.only_train()
