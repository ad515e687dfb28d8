"""SALM: make medical image datasets unlearnable with sparsity-aware local masking (arXiv 2403.10573)."""

from importlib.metadata import PackageNotFoundError, version

from salm_lightning.data import ImageDataModule, MedMNISTDataModule, NpzDataModule, SyntheticDataModule, Task
from salm_lightning.errors import SalmError
from salm_lightning.generation import generate
from salm_lightning.modules import FractionalStepLR, NoiseGeneratorModule, VictimModule
from salm_lightning.noise.masks import Score
from salm_lightning.noise.methods import EM, SALM, SP, TAP, Method, Random
from salm_lightning.noise.transforms import CropFlip
from salm_lightning.release import PoisonedDataModule, verify_release

try:
    __version__ = version("salm-lightning")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "EM",
    "SALM",
    "SP",
    "TAP",
    "CropFlip",
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
