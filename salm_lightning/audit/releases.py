"""What can be audited, compared with its originals and reported on: a release of arrays, or the result of a protected folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from salm_lightning.audit.results import TrainedOn
from salm_lightning.data import formats
from salm_lightning.errors import ConfigurationError, ReleaseError
from salm_lightning.files import file_sha256
from salm_lightning.release.folder_manifest import FolderManifest
from salm_lightning.release.manifest import MANIFEST, RELEASE, Manifest, is_folder_result
from salm_lightning.release.verify import Check, verify_release
from salm_lightning.release.verify_folder import original_tree, verify_folder

if TYPE_CHECKING:
    from salm_lightning.data import FolderDataModule, ImageDataModule, Split

_SIZES = (28, 64, 224)
"""Sizes to which people scale images of any size, in pixels."""
OnProgress = Callable[[int, int], None]


class View(NamedTuple):
    """A way to see the images of a release, in words (none where there is but one), and what victims are trained on then."""

    words: str
    images: dict[TrainedOn, ImageDataModule]


class Release(ABC):
    """A release, as whoever audits it or reports on it needs it; nothing of it is trusted but what was checked.

    Attributes:
        path: Its folder.
        manifest: What it says of itself.
        manifest_path: The file that says so.
        sha256: A checksum that another release has not: results are bound to it.
    """

    kind: ClassVar[str]
    """Which of the kinds it is."""
    most_compared: ClassVar[int | None]
    """Images that are compared with their originals unless a user wants more; ``None`` for all."""
    path: Path
    manifest: Manifest | FolderManifest
    manifest_path: Path
    sha256: str

    @abstractmethod
    def check(
        self, source: str | None = None, on_progress: OnProgress = lambda done, total: None, keep_out: str | None = None
    ) -> list[Check]:
        """Compare its files with the manifest, and with ``source`` those of a folder with the originals.

        Args:
            source: The originals of a folder's result.
            on_progress: Takes how many files were looked at, and of how many.
            keep_out: Masks or boxes that a folder was protected with.

        Raises:
            ConfigurationError: An option is for another kind of release.
        """

    @abstractmethod
    def originals(
        self, source: str, root: Path | None = None, batch_size: int | None = None, keep_out: str | None = None
    ) -> ImageDataModule:
        """Open what it was made from, as the user names it, and with ``keep_out`` the regions of a folder that were to be as they are.

        Raises:
            SalmError: There is nothing of that name, or it is something else, or an option is for another kind of release.
        """

    @abstractmethod
    def views(
        self, source: str | None, root: Path | None = None, batch_size: int | None = None, sizes: Sequence[int] | None = None
    ) -> list[View]:
        """Open what victims are trained on, in each of the ways in which they see it; the main one first.

        Args:
            source: What it was made from, as the user names it, if they do.
            root: Folder of MedMNIST's files.
            batch_size: Images per step; by default what suits the size.
            sizes: Heights and widths of the ways.

        Raises:
            SalmError: The release is damaged, ``source`` is not what it was made from or is needed and missing, or ``sizes`` make no
                sense.
        """

    @abstractmethod
    def compared(self, originals: ImageDataModule) -> tuple[Split, NDArray[np.int64]]:
        """Return the protected training images as models see those of ``originals``, and the rows of those that carry noise."""


class ArchiveRelease(Release):
    """A release of arrays in MedMNIST's layout."""

    kind = "archive"
    most_compared = None
    manifest: Manifest

    def __init__(self, path: Path) -> None:
        self.path, self.manifest, self.manifest_path = path, Manifest.read(path), path / MANIFEST
        self.sha256 = self.manifest.archive.sha256

    def check(
        self, source: str | None = None, on_progress: OnProgress = lambda done, total: None, keep_out: str | None = None
    ) -> list[Check]:
        """Compare the archive with the manifest.

        Raises:
            ConfigurationError: ``source`` is given, whose pictures come from an audit, or ``keep_out``.
        """
        self._refuse(source=source, keep_out=keep_out)
        return verify_release(self.path)

    def _refuse(self, **options: str | None) -> None:
        for name, value in options.items():
            if value is not None:
                raise ConfigurationError(
                    f"{name}={value} is for the results of folders; {self.path} is an .npz release. Leave it out."
                )

    def originals(
        self, source: str, root: Path | None = None, batch_size: int | None = None, keep_out: str | None = None
    ) -> ImageDataModule:
        """Open a MedMNIST name, an archive, a folder or drawn images.

        Raises:
            ConfigurationError: ``keep_out`` is given.
        """
        from salm_lightning.release.poisoned import PoisonedDataModule

        self._refuse(keep_out=keep_out)
        return PoisonedDataModule(self.path).open_original(source, root, batch_size=batch_size)

    def views(
        self, source: str | None, root: Path | None = None, batch_size: int | None = None, sizes: Sequence[int] | None = None
    ) -> list[View]:
        """Open its arrays, the one way to see them."""
        from salm_lightning.release.poisoned import PoisonedDataModule

        if sizes is not None:
            raise ConfigurationError(
                f"sizes={list(sizes)} is for the results of folders; the images of {self.path} have {self.manifest.info.size} pixels. "
                "Leave it out."
            )
        protected = PoisonedDataModule(self.path, batch_size=batch_size)
        protected.setup()
        images: dict[TrainedOn, ImageDataModule] = {"protected": protected}
        if source is not None:
            images["clean"] = protected.open_original(source, root, batch_size=batch_size)
        protected.setup("fit")  # a release may leave the clean splits to its originals
        return [View("", images)]

    def compared(self, originals: ImageDataModule) -> tuple[Split, NDArray[np.int64]]:
        """Return its arrays, and the rows that its coverage names."""
        from salm_lightning.release.poisoned import PoisonedDataModule

        return PoisonedDataModule(self.path).split("train"), np.flatnonzero(self.manifest.coverage.mask())


class FolderResult(Release):
    """The result of a protected folder: files as they are published, each of its own size."""

    kind = "folder"
    most_compared = 500  # at about a second each, where they are large
    manifest: FolderManifest

    def __init__(self, path: Path) -> None:
        self.path, self.manifest, self.manifest_path = path, FolderManifest.read(path), path / RELEASE / MANIFEST
        self.sha256 = file_sha256(self.manifest_path)  # the manifest holds the sum of the table, and that the sums of all files

    def check(
        self, source: str | None = None, on_progress: OnProgress = lambda done, total: None, keep_out: str | None = None
    ) -> list[Check]:
        """Compare each file with the manifest, and with ``source`` with its original."""
        return verify_folder(self.path, None if source is None else original_tree(source), on_progress, keep_out)

    def originals(
        self, source: str, root: Path | None = None, batch_size: int | None = None, keep_out: str | None = None
    ) -> FolderDataModule:
        """Open the folder; its training split is without what is measured on."""
        from salm_lightning.release.protected_folder import original_folder

        return original_folder(self.path, source, keep_out=keep_out, batch_size=batch_size)

    def views(
        self, source: str | None, root: Path | None = None, batch_size: int | None = None, sizes: Sequence[int] | None = None
    ) -> list[View]:
        """Open the files at some sizes, and above 8 bits at the first one also with all values that the files can hold."""
        from salm_lightning.data.datamodule import default_batch_size
        from salm_lightning.data.folder_images import check_size, usual_side
        from salm_lightning.data.working import Range
        from salm_lightning.release.protected_folder import StoredFolder

        if source is None:
            raise ConfigurationError(
                f"source is missing: models are measured on clean images, which {self.path} does not hold; give the folder that was "
                "protected, as in --source scans."
            )
        for size in sizes or ():
            check_size(size, "sizes")
        first = sizes[0] if sizes else self.manifest.info.size
        originals = self.originals(source, root, batch_size or default_batch_size(first))
        sizes = sizes or [first, *(size for size in _SIZES if size <= usual_side(originals.survey))]
        ways: list[tuple[int, Range | None]] = [(size, None) for size in dict.fromkeys(sizes)]
        if any(facts.deep for facts in originals.survey.facts):
            ends = [formats.in_units(np.array(facts.limits), facts) for facts in originals.survey.facts]
            ways.append((first, Range.of(float(np.min(ends)), float(np.max(ends)))))
        views, files = [], StoredFolder(self.path, originals, batch_size=originals.batch_size)
        for size, values in ways:
            stored = files.seen_at(size, values)
            stored.setup()
            views.append(
                View(f"{size} px{'' if values is None else ' with all values'}", {"protected": stored, "clean": stored.images})
            )
        return views

    def compared(self, originals: ImageDataModule) -> tuple[Split, NDArray[np.int64]]:
        """Return the files of the training split, decoded as ``originals`` are; all of them carry noise.

        Raises:
            ReleaseError: ``originals`` are no folder.
        """
        from salm_lightning.data.folder_images import FolderDataModule
        from salm_lightning.release.protected_folder import StoredFolder

        if not isinstance(originals, FolderDataModule):
            raise ReleaseError(f"source={originals.word} is no folder; give the one that was protected.")
        split = StoredFolder(self.path, originals).split("train")
        return split, np.arange(len(split))


def open_release(path: Path) -> ArchiveRelease | FolderResult:
    """Open what lies in a folder.

    Raises:
        ReleaseError: It is neither kind of release, or its manifest is not valid.
    """
    return FolderResult(path) if is_folder_result(path) else ArchiveRelease(path)
