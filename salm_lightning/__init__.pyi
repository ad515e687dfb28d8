from .data import FolderDataModule, ImageDataModule, MedMNISTDataModule, NpzDataModule, SyntheticDataModule, Task
from .errors import SalmError
from .modules import FractionalStepLR, NoiseGeneratorModule, VictimModule
from .noise.masks import Score
from .noise.methods import EM, SALM, SP, TAP, Method, Random
from .noise.transforms import CropFlip
from .release import PoisonedDataModule, verify_release
from .runs.generation import generate
from .version import __version__

__all__ = [
    "EM",
    "SALM",
    "SP",
    "TAP",
    "CropFlip",
    "FolderDataModule",
    "FractionalStepLR",
    "ImageDataModule",
    "MedMNISTDataModule",
    "Method",
    "NoiseGeneratorModule",
    "NpzDataModule",
    "PoisonedDataModule",
    "Random",
    "SalmError",
    "Score",
    "SyntheticDataModule",
    "Task",
    "VictimModule",
    "__version__",
    "generate",
    "verify_release",
]
