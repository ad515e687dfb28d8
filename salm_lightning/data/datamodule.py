"""The base of every DataModule: splits, shards, loaders, and the way from stored bytes to what a network sees."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor

from salm_lightning.data.base import SPLITS, Batch, DatasetInfo, Split
from salm_lightning.data.batches import chunk_indices, evaluation_batches, per_rank_batch_size, stratified_shard
from salm_lightning.data.loaders import DeviceReader, EvaluationLoader, MappedReader, Reader, TrainLoader
from salm_lightning.data.mapped import RESIDENT_LIMIT, MappedRows, Scratch
from salm_lightning.data.prepared import Preparation, prepare
from salm_lightning.data.sums import FileSum, file_sums
from salm_lightning.errors import ConfigurationError, DataError, look_up

Resident = Literal["auto", "device", "mapped"]


def default_batch_size(size: int) -> int:
    """Return the paper's images per training step at a size in pixels (Appendix B.2)."""
    return 64 if size >= 224 else 128


class ImageDataModule(LightningDataModule, ABC):
    """Labelled images in three splits, sharded over ranks here and not by Lightning.

    Pass ``use_distributed_sampler=False`` to the Trainer. Every loader yields :class:`~salm_lightning.data.base.Batch`.

    Args:
        info: What the data is.
        batch_size: Images per training step, in total over all ranks; ``None`` is 128, or 64 at 224 pixels.
        seed: Seed of the shards and of the order of the training images, and of drawn pictures.
        resident: Where the images live while training: ``device`` (uint8 on the device), ``mapped`` (a memory map on disk, read
            by workers), or ``auto``: on the device if they fit (256 MiB on a CPU, half of the free memory on a GPU).
        num_workers: Processes that read ahead; they are used for memory-mapped images alone.
        chunk_size: Images per chunk of the last pass (``predict``).

    Attributes:
        info, num_classes, channels, image_size, task: What the data is, as a :class:`~salm_lightning.data.base.DatasetInfo` and by itself.
        source_path: The file that the splits come from; ``None`` where there is none.

    Raises:
        ConfigurationError: A number is too small, or ``resident`` is not known.
    """

    source_path: Path | None = None
    _preparation: Callable[[], Preparation | None] | None
    _to_prepare: Collection[str]

    def __init__(
        self,
        info: DatasetInfo,
        *,
        batch_size: int | None = None,
        seed: int = 0,
        resident: Resident = "auto",
        num_workers: int = 2,
        chunk_size: int = 128,
    ) -> None:
        super().__init__()
        batch_size = default_batch_size(info.size) if batch_size is None else batch_size
        for name, value, least in (("batch_size", batch_size, 1), ("chunk_size", chunk_size, 1), ("num_workers", num_workers, 0)):
            if value < least:
                raise ConfigurationError(f"{name}={value} is too small; give a whole number of at least {least}.")
        look_up("resident", resident, get_args(Resident))
        self.info = info
        self.num_classes = info.num_classes
        self.channels = info.channels
        self.image_size = info.size
        self.task = info.task
        self.batch_size = batch_size
        self.seed = seed
        self.resident = resident
        self.num_workers = num_workers
        self.chunk_size = chunk_size
        self._predicted: Sequence[int] | Literal["test"] | None = None
        # A rank may be left without a chunk when the last pass is resumed.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self._splits: dict[str, Split] | None = None
        self._opened: FileSum | None = None  # what was there when the splits were read
        self._end_preparation()

    @abstractmethod
    def load_splits(self) -> dict[str, Split]:
        """Read or draw, and check, the splits ``train``, ``val`` and ``test``; called once, by :meth:`setup`."""

    def setup(self, stage: str | None = None) -> None:
        """Load and check the splits, the same for every stage.

        Raises:
            DataError: A file is missing, damaged or not in the right layout.
        """
        if self._splits is None:
            self._opened = self._file_now()
            self._splits = self.load_splits()

    def load(self) -> Self:
        """Return this object with its images, downloaded if need be and read.

        Raises:
            DataError: They cannot be.
        """
        self.prepare_data()
        self.setup("fit")
        return self

    def split(self, name: str) -> Split:
        """Return a split by its name, ``train``, ``val`` or ``test``, and load the data if that has not happened yet."""
        look_up("split", name, SPLITS)
        self.setup()
        return cast("dict[str, Split]", self._splits)[name]

    def variant(self, *, seed: int | None = None, predicted: Sequence[int] | Literal["test"] | None = None) -> Self:
        """Return a DataModule of the same images with other settings; this one stays as it is, and both share what is loaded.

        Args:
            seed: Seed of the shards and of the order of the training images; ``None`` keeps it.
            predicted: What ``predict_dataloader`` yields: some chunks of the last pass by their numbers, or the ``test`` split; ``None``
                keeps it.
        """
        if seed is not None:
            self.setup()  # drawn images depend on the seed, too
        other = copy.copy(self)
        other.seed = self.seed if seed is None else seed
        other._predicted = self._predicted if predicted is None else predicted
        other._end_preparation()
        return other

    def prepare_images(self, make: Callable[[], Preparation | None], splits: Collection[str], monitor_test: bool = False) -> None:
        """Have the loaders for training and evaluation yield prepared images, until the next ``teardown``.

        Splits and chunks of the last pass stay as they are stored.

        Args:
            make: Returns what is done to images, or ``None`` for nothing; called when a loader first needs it.
            splits: Names of the splits that are prepared.
            monitor_test: Whether ``val_dataloader`` also yields the test split, second, for learning curves on it.
        """
        self.teardown("fit")
        self._monitors_test, self._preparation, self._to_prepare = monitor_test, cache(make), splits

    def on_exception(self, exception: BaseException) -> None:
        """Let go of prepared images, or whoever uses this object next would get them."""
        self.teardown("fit")

    def teardown(self, stage: str) -> None:
        """Let go of prepared images."""
        self._room.close()
        self._end_preparation()

    def _end_preparation(self) -> None:
        self._monitors_test = False
        self._preparation, self._to_prepare = None, ()
        self._prepared: dict[str, Split] = {}  # each made when a loader first asks for it
        self._room = Scratch(self._resident_limit())

    def checksum(self) -> str:
        """Return the SHA-256 of the file that the splits come from, or of their arrays where there is none."""
        if (file := self.source_file) is not None:
            return file.sha256
        total = hashlib.sha256()
        for split in map(self.split, SPLITS):
            total.update(np.ascontiguousarray(split.images).data)
            total.update(np.ascontiguousarray(split.labels).data)
        return total.hexdigest()

    @property
    def source_file(self) -> FileSum | None:
        """What a manifest says of where the images come from; ``None`` where they were drawn, or are not there yet.

        Raises:
            DataError: The file is another one than the splits were read from.
        """
        found = self._file_now()
        if self._splits is not None and found != self._opened:
            raise DataError(
                f"{self.source_path} was changed or removed after it was opened, so that nothing can say what was read; leave it alone and "
                "repeat the command."
            )
        return found

    def _file_now(self) -> FileSum | None:
        path = self.source_path
        return FileSum(path.name, file_sums(path).sha256) if path is not None and path.is_file() else None

    @property
    def word(self) -> str:
        """What names the images to a command, in the working directory."""
        return self.info.name if self.source_path is None else str(self.source_path)

    def identity(self) -> dict[str, Any]:
        """Return what a model that is trained on the images depends on, whatever they are called."""
        labels = self.describe().get("labels")
        return {"sha256": self.checksum(), "task": str(self.task), "num_classes": self.num_classes, "labels": labels}

    def describe(self) -> dict[str, Any]:
        """Return what a manifest records of the data: JSON-compatible values."""
        return {
            "name": self.info.name,
            "size": self.info.size,
            "channels": self.info.channels,
            "task": str(self.info.task),
            "class_names": list(self.info.class_names),
            "num_samples": {name: len(self.split(name)) for name in SPLITS},
        }

    def kept(self, indices: Tensor) -> Tensor | None:
        """Return which pixels of training images ``[B]`` keep their values, boolean ``[B, H, W]``; ``None`` where none does."""
        return None

    @property
    def num_chunks(self) -> int:
        """Number of chunks of the last pass."""
        return -(-len(self.split("train")) // self.chunk_size)

    def shard(self, rank: int, world: int) -> NDArray[np.int64]:
        """Return the training images that a rank owns, int64; see :func:`~salm_lightning.data.batches.stratified_shard`."""
        return stratified_shard(self.split("train").labels, self.seed, rank, world)

    def train_dataloader(self) -> TrainLoader:
        """Return shuffled batches of this rank's shard; the same number on every rank, no image twice in a batch."""
        split, (rank, world, device) = self.split("train"), self._place()
        shard, batch_size = self.shard(rank, world), per_rank_batch_size(self.batch_size, world)
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        read = self._reader("train", shard, device)
        return TrainLoader(read, shard, len(split) // world, batch_size, self.seed, world, limit)

    def val_dataloader(self) -> list[EvaluationLoader]:
        """Return this rank's share of the validation split, in order; where the test split is monitored, its share too."""
        return [self._evaluation_loader(name) for name in (("val", "test") if self._monitors_test else ("val",))]

    def test_dataloader(self) -> EvaluationLoader:
        """Return this rank's share of the test split, in order."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> EvaluationLoader:
        """Return the training images as chunks of ``chunk_size`` consecutive indices, for the last pass; see :meth:`variant`.

        The tail is filled up by repeating its first image, so that every batch has the same size. Rank r takes every
        world-th of the chunks; a chunk's number is ``indices[0] // chunk_size``.
        """
        if self._predicted == "test":
            return self.test_dataloader()
        split, (rank, world, device) = self.split("train"), self._place()
        chunks = range(self.num_chunks) if self._predicted is None else self._predicted
        batches = [chunk_indices(chunk, len(split), self.chunk_size) for chunk in chunks[rank::world]]
        workers = self.num_workers if isinstance(split.images, np.memmap | MappedRows) else 0
        return EvaluationLoader(MappedReader(split, self.task, workers, pin_memory=device.type == "cuda"), batches)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn uint8 images into float32 in [0, 1], on the device."""
        if batch.images.dtype != torch.uint8:
            return batch
        return batch._replace(images=batch.images.to(torch.float32).div_(255.0))

    def _evaluation_loader(self, name: str) -> EvaluationLoader:
        rank, world, device = self._place()
        batches = evaluation_batches(len(self.split(name)), per_rank_batch_size(self.batch_size, world), rank, world)
        return EvaluationLoader(self._reader(name, np.concatenate(batches), device), batches)

    def _reader(self, name: str, rows: NDArray[np.int64], device: torch.device) -> Reader:
        """Return what reads some rows of a split, prepared if that is asked for."""
        split = self.split(name)
        make = self._preparation if name in self._to_prepare else None
        if make is not None and (preparation := make()) is not None:
            if name not in self._prepared:
                self._prepared[name] = prepare(split, rows, preparation, device, self._room)
            split = self._prepared[name]
        if self._fits(split.images[:1].nbytes * len(rows), device):
            return DeviceReader(split, rows, self.task, device)
        return MappedReader(split, self.task, self.num_workers, pin_memory=device.type == "cuda")

    def _fits(self, num_bytes: int, device: torch.device) -> bool:
        if self.resident != "auto":
            return self.resident == "device"
        if device.type == "cuda":
            return num_bytes <= torch.cuda.mem_get_info(device)[0] // 2
        return num_bytes <= RESIDENT_LIMIT

    def _resident_limit(self) -> int:
        """Return the bytes up to which an archive is read into memory instead of being mapped."""
        return 0 if self.resident == "mapped" else RESIDENT_LIMIT

    def _place(self) -> tuple[int, int, torch.device]:
        """Return this rank, the number of ranks, and the device."""
        if self.trainer is None:
            return 0, 1, torch.device("cpu")
        return self.trainer.global_rank, self.trainer.world_size, self.trainer.strategy.root_device
