"""A folder of images as a DataModule: what it is taken for, its images at the working size, and a part to measure on."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from salm_lightning.console import command, progress
from salm_lightning.data.base import SPLITS, DatasetInfo, Split, Task
from salm_lightning.data.datamodule import ImageDataModule
from salm_lightning.data.folder import read_folder, sum_of
from salm_lightning.data.holdout import holdout
from salm_lightning.data.keep_out import KEPT_OUT
from salm_lightning.data.mapped import rows_of
from salm_lightning.data.sums import FileSum
from salm_lightning.data.survey import SAME, Survey, survey, window_of
from salm_lightning.data.tables import FOLDERS, NONE, Reading
from salm_lightning.data.working import Range, Working, channels_of, decode, stat_of
from salm_lightning.errors import ConfigurationError, DataError
from salm_lightning.files import address, expanded

WORKING_SIZE = 64
"""Height and width at which models see the images of a folder, by default; of smaller images their own smaller side."""


class FolderDataModule(ImageDataModule):
    """A folder of PNG, JPEG, TIFF or DICOM images labelled by a table or class folders; ``salm-cli inspect`` says what it is taken for.

    The images are decoded once to one square size, whatever their shape, into the cache. The test split is the folder's own, else its
    validation split, else a part that is drawn: stratified, whole patients alone. Where there is no other validation split it is the same
    images.

    Args:
        path: The folder.
        size: Height and width at which models see the images; by default 64, or the smaller side of most images if that is less.
        range: What black and white are in images above 8 bits: ``window``, what DICOM files show by default; ``data``, the 0.5 and 99.5
            percentiles of the training images' values; or as in ``30000:34000``, in units. By default the window where there is one.
        labels: Table of the labels, a CSV; ``folders`` for class folders even if there is a table.
        file_column: Column of the file names.
        label_column: Column of the labels, or several of 0 and 1 with commas between.
        label_delimiter: What stands between several labels of an image; a vertical bar by default.
        split_column: Column that says train, val or test; ``none`` passes over one that is there.
        group_column: Column of patients, whose images stay in one split; ``none`` passes over one that is there.
        unlabelled: What becomes of images without a label: ``copy`` or ``skip``.
        allow_leak: Take splits that share a patient, or identical images.
        masks: Names of masks beside the images, as in ``*_mask.png``: their pixels that are not black keep their values.
        keep_out: Regions that keep their values: a folder of masks, or a table of boxes.
        holdout: Share of the images that is drawn to measure on where the folder has no splits.
        holdout_seed: Settles which ones.
        protects: Which images are protected, and so are this object's training split: ``train``, or ``all`` that are published, also those
            that are measured on.
        **loading: See :class:`ImageDataModule`: ``batch_size``, ``seed``, ``resident``, ``num_workers`` and ``chunk_size``.

    Attributes:
        survey: What was seen of the folder.

    Raises:
        DataError: The folder cannot be taken, or something stands in the way of protecting it.
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self,
        path: str | Path,
        size: int | None = None,
        range: str | None = None,
        labels: str | None = None,
        file_column: str | None = None,
        label_column: str | None = None,
        label_delimiter: str | None = None,
        split_column: str | None = None,
        group_column: str | None = None,
        unlabelled: Literal["copy", "skip"] | None = None,
        allow_leak: bool = False,
        masks: str | None = None,
        keep_out: str | None = None,
        holdout: float = 0.2,
        holdout_seed: int = 0,
        protects: Literal["train", "all"] = "train",
        **loading: Any,
    ) -> None:
        self.path = expanded(path)
        if size is not None:
            check_size(size)
        if not 0 < holdout < 1:
            raise ConfigurationError(f"holdout={holdout} is out of range; give more than 0 and less than 1.")
        self.reading = Reading(
            *(labels, file_column, label_column, label_delimiter, split_column, group_column, unlabelled, allow_leak),
            *(masks, keep_out),
        )
        with progress("looking at images") as on_progress:
            patients = group_column != NONE
            self.survey = survey(read_folder(self.path, self.reading), allow_leak, on_progress, patients)
        refuse_problems(self.path, self.survey)
        self._values = _range(range, self.survey)
        if range is not None and not any(facts.deep for facts in self.survey.facts):
            raise ConfigurationError(f"range={range} is for images above 8 bits, and those of {self.path} have 8; leave it out.")
        size = size or default_size(self.survey)
        self.holdout = holdout
        self.holdout_seed = holdout_seed
        self.protects = protects
        folder = self.survey.folder
        several = len(folder.class_names) > 2
        task = Task.MULTI_LABEL if folder.multi_label else Task.MULTI_CLASS if several else Task.BINARY
        name = self.path.resolve().name
        super().__init__(DatasetInfo(name, task, folder.class_names, channels_of(self.survey), size), **loading)

    @cached_property
    def working(self) -> Working:
        """The images at the working size, decoded when they are first asked for."""
        with progress("decoding images") as on_progress:
            return decode(self.survey, self.info.size, self.info.channels, self._values, on_progress=on_progress)

    @cached_property
    def split_of(self) -> NDArray[np.str_]:
        """The split of each file: the folder's, or ``train`` and what is held out as ``test``."""
        images = self.survey.folder.images
        if self.survey.folder.splits:
            return np.array([image.split for image in images])
        return np.where(holdout(self.survey.folder, self.holdout, self.holdout_seed, self.working.twins), "test", "train")

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of the working array that are in a split, int64."""
        there = set(self.split_of)
        measured = "test" if "test" in there else "val"
        wanted = {"train": "train", "test": measured, "val": "val" if "val" in there else measured}[split]
        chosen = self.split_of == wanted
        if split == "train" and self.protects == "all":
            chosen[:] = True
        return np.flatnonzero(chosen[self.working.file_of])

    def only_train(self) -> Self:
        """Return a DataModule of the same folder whose training split is the folder's, without what is measured on."""
        other = self.variant()
        other.protects, other._splits = "train", None
        return other

    def seen_at(self, size: int, values: Range | None = None) -> Self:
        """Return a DataModule of the same images in the same splits, as another user decodes them.

        Args:
            size: Height and width.
            values: What black and white are above 8 bits; by default the same as here.
        """
        _ = self.split_of  # which twins settle, too, and so stays as it is
        other = self.variant()
        other.info, other.image_size = replace(self.info, size=size), size
        other._splits, other._values = None, values or self.working.values
        del other.working  # the copy's alone
        return other

    @property
    def units(self) -> str:
        """What the range is in, such as ``HU``; empty for stored integers, and where files differ or do not say."""
        found = {facts.instance.units if facts.instance else "" for facts in self.survey.facts if facts.deep}
        return found.pop() if len(found) == 1 else ""

    @property
    def carries_noise(self) -> NDArray[np.bool_]:
        """Which files are protected, boolean, one for each image of the folder."""
        return np.ones(len(self.split_of), bool) if self.protects == "all" else self.split_of == "train"

    def load_splits(self) -> dict[str, Split]:
        """Decode the images, unless that was done before.

        Raises:
            DataError: An image is damaged, or two splits hold the same one.
        """
        working, labels = self.working, self.labels
        self._refuse_twins()
        found = {}
        for name in SPLITS:
            rows = self.rows(name)
            images = rows_of(working.images, rows)
            resident = len(rows) * working.images[:1].nbytes <= self._resident_limit()
            found[name] = Split(images[:] if resident else images, labels[working.file_of[rows]])
        self._train_rows = self.rows("train")
        return found

    def kept(self, indices: Tensor) -> Tensor | None:
        """Return which pixels of training images keep their values at the working size; see :meth:`ImageDataModule.kept`."""
        if self.working.kept is None:
            return None
        return torch.from_numpy(self.working.kept[self._train_rows[indices.cpu().numpy()]]).to(indices.device)

    def _refuse_twins(self) -> None:
        images, splits = self.survey.folder.images, self.split_of
        leaks = [(number, other) for number, other in self.working.twins if splits[number] != splits[other]]
        if leaks and not self.reading.allow_leak:
            shown = "; ".join(f"{images[number].path} as {images[other].path}" for number, other in leaks[:10])
            more = f"; and {len(leaks) - 10} more" if len(leaks) > 10 else ""
            raise DataError(f"{self.path}: {len(leaks)} {SAME.what}: {shown}{more}. {SAME.way_out}")

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels of each file, int64 ``[N, 1]``, or ``[N, L]`` of 0 and 1 where an image may have several."""
        folder = self.survey.folder
        if not folder.multi_label:
            return np.array([image.labels for image in folder.images], np.int64)
        labels = np.zeros((len(folder.images), len(folder.class_names)), np.int64)
        for row, image in zip(labels, folder.images, strict=True):
            row[list(image.labels)] = 1
        return labels

    def _file_now(self) -> FileSum:
        """Return the sum of all files as they were decoded, with their labels; another one if one of them was changed since."""
        folder, working = self.survey.folder, self.working
        changed = [
            image.path
            for image, stat in zip(folder.images, working.stats, strict=True)
            if stat_of(self.path / image.path) != stat
        ]
        return FileSum(self.info.name, sum_of(folder, working.sums, changed))

    def identity(self) -> dict[str, Any]:
        """Return what a model that is trained on the images depends on: the files, how they are decoded, and who is measured on."""
        seen = {"size": self.info.size, "values": list(self.working.values), "splits": address(self.split_of.tolist())}
        return {**super().identity(), **seen}

    @property
    def word(self) -> str:
        """The folder, as it was given."""
        return str(self.path)

    def describe(self) -> dict[str, Any]:
        """Return what a manifest records of the data, and how the folder was read."""
        default, reading = asdict(Reading()), asdict(self.reading)
        if self.reading.labels is not None and self.reading.labels != FOLDERS:
            reading["labels"] = Path(self.reading.labels).name  # a manifest holds no path of this machine
        how: dict[str, Any] = {name: value for name, value in reading.items() if value != default[name]}
        if regions := self.survey.folder.kept_out.sum():
            how = {name: value for name, value in how.items() if name != "keep_out"} | {KEPT_OUT: regions}
        if any(facts.deep for facts in self.survey.facts):
            how["range"] = "{}:{}".format(*self.working.values)
        if not self.survey.folder.splits:
            how |= {"holdout": self.holdout, "holdout_seed": self.holdout_seed}
        if self.protects != "train":
            how["protects"] = self.protects
        return {**super().describe(), "folder": how}


def check_size(size: int, argument: str = "size") -> None:
    """Refuse a size in pixels that no model sees images at, with a ConfigurationError."""
    if not 8 <= size <= 1024:
        raise ConfigurationError(f"{argument}={size} is out of range; give 8 to 1024 pixels.")


def default_size(found: Survey) -> int:
    """Return the working size of a folder: noise of a larger one than its images would be averaged away."""
    return max(8, min(WORKING_SIZE, usual_side(found)))


def usual_side(found: Survey) -> int:
    """Return the median of the images' smaller sides."""
    sides = sorted(min(facts.height, facts.width) for facts in found.facts)
    return sides[len(sides) // 2]


def _range(word: str | None, found: Survey) -> Range | None:
    """Return what black and white are; ``None`` if the values of the training images settle that."""
    if word not in (None, "window", "data"):
        return range_of(str(word))
    window = window_of(found) if word != "data" else None
    if window is None and word == "window":
        raise ConfigurationError(
            "range=window is of DICOM files with windows, and the training images have none; give range=data."
        )
    return None if window is None else Range.of(*window)


def range_of(word: str) -> Range:
    """Read what black and white are in units, as in ``30000:34000``.

    Raises:
        ConfigurationError: That is no range.
    """
    low, _, high = word.partition(":")
    try:
        values = Range.of(float(low), float(high))
    except (ValueError, OverflowError):
        values = Range(0, 0)
    if not values.low < values.high < math.inf:
        raise ConfigurationError(
            f"range={word} is no range of values; give the lowest and the highest that matter, as in 30000:34000, or window or data."
        )
    return values


def refuse_problems(path: Path, found: Survey) -> None:
    """Refuse a folder with problems, in one line.

    Raises:
        DataError: It has some.
    """
    if found.problems:
        kinds = Counter(problem.kind.what for problem in found.problems)
        shown = "; ".join(f"{what}: {count}" for what, count in kinds.most_common(5))
        raise DataError(
            f"{path} cannot be protected as it is ({shown}). {command('salm-cli', 'inspect', path)} lists them, with the ways out."
        )
