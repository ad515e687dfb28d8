"""The twelve 2-D datasets of MedMNIST by name, and any other archive in their layout."""

from __future__ import annotations

import io
import sys
import warnings
from contextlib import nullcontext, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

from salm_lightning.console import is_live
from salm_lightning.data.arrays import infer_info, read_npz
from salm_lightning.data.base import ANY_FINDING, DatasetInfo, Split, Task, any_finding
from salm_lightning.data.catalogue import INFO, MEDMNIST, SIZES, archive_path
from salm_lightning.data.datamodule import ImageDataModule
from salm_lightning.data.sums import file_sums
from salm_lightning.errors import ConfigurationError, DataError, look_up
from salm_lightning.files import building, expanded, one_at_a_time


class MedMNISTDataModule(ImageDataModule):
    """One of MedMNIST's 2-D datasets.

    Args:
        name: Name of the dataset, such as ``pathmnist``; one of :data:`MEDMNIST`.
        size: Height and width in pixels: 28, 64, 128 or 224.
        root: Folder of the dataset files; ``None`` takes ``SALM_DATA_ROOT``, else ``~/.medmnist``.
        download: Whether to download a file that is not there.
        any_finding: Make a dataset of several labels per image a binary one: any of them against none. Its name ends in ``-any``.
        **loading: See :class:`ImageDataModule`: ``batch_size``, ``seed``, ``resident``, ``num_workers`` and ``chunk_size``.

    Raises:
        ConfigurationError: The name or the size is not known, or a number is too small.
    """

    def __init__(
        self,
        name: str,
        size: int = 28,
        root: str | Path | None = None,
        download: bool = True,
        any_finding: bool = False,
        **loading: Any,
    ) -> None:
        look_up("name", name, MEDMNIST)
        if size not in SIZES:
            raise ConfigurationError(f"size={size} is not offered by MedMNIST. Choices: {', '.join(map(str, SIZES))}.")
        known = MEDMNIST[name]
        if any_finding and known.task is not Task.MULTI_LABEL:
            raise ConfigurationError(f"any_finding=True needs several labels per image, and {name} has one; leave it out.")
        self._stored = DatasetInfo(name, known.task, known.class_names, known.channels, size)
        self.any_finding = any_finding
        info = self._stored
        if any_finding:
            info = replace(info, name=f"{name}-any", task=Task.BINARY, class_names=("no finding", ANY_FINDING))
        super().__init__(info, **loading)
        self.download = download
        self._suffix = "" if size == 28 else f"_{size}"
        self.source_path: Path = archive_path(name, size, root)
        self.root = self.source_path.parent
        self._warned = False

    def prepare_data(self) -> None:
        """Download the file unless it exists, and compare its MD5 sum with the official one.

        A file with another sum is used all the same, with a warning that names both.

        Raises:
            DataError: The file does not exist and cannot be downloaded; the message says which file to put where.
        """
        if not self.source_path.is_file():
            with one_at_a_time(self.source_path):  # ranks come here together
                if not self.source_path.is_file():
                    self._download()
        official, found = INFO[self._stored.name][f"MD5{self._suffix}"], file_sums(self.source_path).md5
        if found != official and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.source_path} is not the official MedMNIST file: its MD5 sum is {found}, the official one {official}. "
                "It is used as it is; results are not comparable with published ones.",
                stacklevel=2,
            )

    def load_splits(self) -> dict[str, Split]:
        """Read and check the file."""
        if not self.source_path.is_file():
            raise DataError(f"{self.source_path}: no such file. {self._way_out()}")
        splits = read_npz(self.source_path, self._stored, self._resident_limit())
        if not self.any_finding:
            return splits
        return {name: Split(split.images, any_finding(split.labels)) for name, split in splits.items()}

    def describe(self) -> dict[str, Any]:
        """Return what a manifest records of the data, and whether its labels were made from several."""
        return {**super().describe(), **({"labels": ANY_FINDING} if self.any_finding else {})}

    def _download(self) -> None:
        if not self.download:
            raise DataError(f"{self.source_path}: no such file, and download=False. {self._way_out()}")
        import medmnist

        dataset = getattr(medmnist, INFO[self._stored.name]["python_class"])
        try:
            # An interrupted download must not leave part of a file under the final name.
            with building(self.source_path) as scratch:
                with nullcontext() if is_live(sys.stderr) else redirect_stderr(io.StringIO()):  # its bar
                    dataset(split="val", download=True, root=scratch, size=self.info.size)
                (scratch / self.source_path.name).replace(self.source_path)
        except (RuntimeError, OSError) as error:
            reason = "no connection, or a broken one" if isinstance(error, RuntimeError) else str(error)
            raise DataError(
                f"{self.source_path}: no such file, and it cannot be downloaded ({reason}). {self._way_out()}"
            ) from error

    def _way_out(self) -> str:
        url = INFO[self._stored.name][f"url{self._suffix}"]
        return (
            f"Put {self.source_path.name} from {url} into {self.root}, or set root (or the environment variable SALM_DATA_ROOT) "
            "to the folder that holds it."
        )


class NpzDataModule(ImageDataModule):
    """Any ``.npz`` archive in MedMNIST's layout; the dataset's name is the file's stem.

    The layout: ``{train,val,test}_images``, uint8 ``[N, H, H]`` or ``[N, H, H, 3]``, and ``{train,val,test}_labels``, integers
    ``[N, 1]``, or ``[N, L]`` of 0 and 1 for several labels. Other arrays are ignored.

    Args:
        path: The archive.
        task: What is predicted; ``None`` infers it from the labels: several columns are multi-label, two classes binary, more
            classes multi-class.
        **loading: See :class:`ImageDataModule`: ``batch_size``, ``seed``, ``resident``, ``num_workers`` and ``chunk_size``.

    Raises:
        DataError: The path is a folder, or the file is missing, damaged or not in the layout.
        ConfigurationError: A number is too small.
    """

    def __init__(self, path: str | Path, task: Task | None = None, **loading: Any) -> None:
        path = expanded(path)
        super().__init__(infer_info(path, None if task is None else Task(look_up("task", task, map(str, Task)))), **loading)
        self.source_path: Path = path

    def load_splits(self) -> dict[str, Split]:
        """Read and check the file."""
        return read_npz(self.source_path, self.info, self._resident_limit())
