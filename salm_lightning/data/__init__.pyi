from .base import SPLITS, Batch, DatasetInfo, Split, Task
from .catalogue import MEDMNIST
from .datamodule import ImageDataModule
from .folder_images import FolderDataModule
from .medmnist import MedMNISTDataModule, NpzDataModule
from .synthetic import SyntheticDataModule

__all__ = [
    "MEDMNIST",
    "SPLITS",
    "Batch",
    "DatasetInfo",
    "FolderDataModule",
    "ImageDataModule",
    "MedMNISTDataModule",
    "NpzDataModule",
    "Split",
    "SyntheticDataModule",
    "Task",
]
