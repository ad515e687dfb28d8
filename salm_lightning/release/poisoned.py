"""The DataModule of a victim: trains on a protected dataset, validates and tests on its clean splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from salm_lightning.data.arrays import read_npz
from salm_lightning.data.base import SPLITS, Split
from salm_lightning.data.datamodule import ImageDataModule
from salm_lightning.data.mapped import rows_of
from salm_lightning.data.original import images_of_release
from salm_lightning.errors import ConfigurationError, DataError, look_up
from salm_lightning.files import expanded
from salm_lightning.release.manifest import Manifest, archive_name
from salm_lightning.release.verify import refuse_failed, verify_release

Part = Literal["all", "protected", "clean"]


class PoisonedDataModule(ImageDataModule):
    """A protected dataset: the training split carries the noise, val and test are clean.

    What the dataset is comes from the manifest; the files are checked against it before they are read.

    Args:
        root: Folder of the release.
        part: ``all`` training images, or of a release that protects some of them (paper: Section 7.2) only the ``protected`` or only
            the ``clean`` ones.
        original: What the release was made from, for one that publishes its training images alone: a MedMNIST name, an ``.npz`` file, or
            ``synthetic``; models are validated and tested on it.
        **loading: ``batch_size``, ``seed``, ``resident``, ``num_workers`` and ``chunk_size``, as every
            :class:`~salm_lightning.data.datamodule.ImageDataModule` has them.

    Attributes:
        manifest: The release's manifest.

    Raises:
        ReleaseError: The folder is not a release, or its manifest is not valid.
        ConfigurationError: A number is too small, or ``part`` is not known.
    """

    def __init__(self, root: str | Path, part: Part = "all", original: str | None = None, **loading: Any) -> None:
        self.part = look_up("part", part, get_args(Part))
        self.root = expanded(root)
        self.manifest = Manifest.read(self.root)
        super().__init__(self.manifest.info, **loading)
        self.source_path: Path = self.root / archive_name(self.manifest.info)
        self.original = original
        self._clean: ImageDataModule | None = None

    def setup(self, stage: str | None = None) -> None:
        """Load and check the splits, also clean ones, on which models are measured in every stage but ``predict``.

        Raises:
            ReleaseError: A file was changed, is missing, or is one too many.
            DataError: The arrays are not in MedMNIST's layout, or ``original`` is not what the release was made from.
            ConfigurationError: ``original`` is needed and missing.
        """
        super().setup(stage)
        if stage in ("fit", "validate", "test"):
            self.split("test")

    def split(self, name: str) -> Split:
        """Return a split by its name, ``train``, ``val`` or ``test``; what the release does not hold is that of the original.

        Raises:
            ConfigurationError: It is not in the release, and ``original`` is missing.
        """
        if name in self.manifest.published or name not in SPLITS:
            return super().split(name)
        if self._clean is None:
            if self.original is None:
                raise ConfigurationError(
                    f"root={self.root} publishes training images alone, and models are measured on clean ones: give what it was made "
                    f"from, as in --data.original {self.info.name}, or --source in other commands."
                )
            self.open_original(self.original)
        return cast("ImageDataModule", self._clean).split(name)

    def load_splits(self) -> dict[str, Split]:
        """Check the files against the manifest and read them."""
        refuse_failed(f"root={self.root}", verify_release(self.root))
        splits = read_npz(self.source_path, self.info, self._resident_limit(), self.manifest.published)
        if self.part != "all":
            selected, train = self.manifest.coverage.mask(), splits["train"]
            rows = np.flatnonzero(selected if self.part == "protected" else ~selected)
            if len(rows) == 0:
                raise ConfigurationError(
                    f"part={self.part!r} is empty: all training images of root={self.root} are protected; use all."
                )
            splits["train"] = Split(rows_of(train.images, rows), train.labels[rows])
        return splits

    def open_original(self, word: str, root: Path | None = None, **options: Any) -> ImageDataModule:
        """Open and load what this release was made from, for comparisons and for splits that it does not hold.

        It is named as :func:`~salm_lightning.data.original.named_images` takes it.

        Raises:
            SalmError: There is nothing of that name, or it cannot be read.
            DataError: The release was made from something else.
        """
        original = images_of_release(word, self.manifest.dataset, self.manifest.settings, root, **options).load()
        self.measure_on(original)
        return original

    def measure_on(self, original: ImageDataModule) -> None:
        """Take the splits that this release does not hold from what it was made from.

        Where both come from files, the checksum settles whether it was; else labels and clean images are compared.

        Raises:
            DataError: The release was made from something else.
        """
        known, given = self.manifest.source, original.source_file
        if known is not None and given is not None:
            if given.sha256 != known.sha256:
                raise DataError(
                    f"source={original.word} is not what {self.root} was made from: its SHA-256 is {given.sha256}, that of the "
                    f"original, {known.name}, is {known.sha256}. Give that file."
                )
        elif not all(self._holds(name, original.split(name)) for name in self.manifest.published):
            raise DataError(
                f"source={original.info.name} is not what {self.root} was made from: labels or test images differ. Give the data, size and "
                "seed that were protected."
            )
        self._clean = original

    def _holds(self, name: str, split: Split) -> bool:
        ours = super().split(name)
        if name == "train":
            return self.part != "all" or np.array_equal(ours.labels, split.labels)
        return np.array_equal(ours.labels, split.labels) and np.array_equal(ours.images[:], split.images[:])
