"""Datasets as LightningDataModules, and the loaders under them."""

from salm_lightning.data.base import SPLITS, Batch, DatasetInfo, Split, Task
from salm_lightning.data.datamodule import ImageDataModule
from salm_lightning.data.medmnist import MEDMNIST, MedMNISTDataModule, NpzDataModule
from salm_lightning.data.synthetic import SyntheticDataModule

__all__ = [
    "MEDMNIST",
    "SPLITS",
    "Batch",
    "DatasetInfo",
    "ImageDataModule",
    "MedMNISTDataModule",
    "NpzDataModule",
    "Split",
    "SyntheticDataModule",
    "Task",
]
