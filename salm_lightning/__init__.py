"""SALM: make medical image datasets unlearnable with sparsity-aware local masking (arXiv 2403.10573)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from salm_lightning.data import ImageDataModule, MedMNISTDataModule, NpzDataModule, SyntheticDataModule, Task
    from salm_lightning.errors import SalmError
    from salm_lightning.modules import FractionalStepLR, NoiseGeneratorModule, VictimModule
    from salm_lightning.noise.masks import Score
    from salm_lightning.noise.methods import EM, SALM, SP, TAP, Method, Random
    from salm_lightning.noise.transforms import CropFlip
    from salm_lightning.release import PoisonedDataModule, verify_release
    from salm_lightning.runs.generation import generate

_ROOMS = {
    "data": ("ImageDataModule", "MedMNISTDataModule", "NpzDataModule", "SyntheticDataModule", "Task"),
    "errors": ("SalmError",),
    "modules": ("FractionalStepLR", "NoiseGeneratorModule", "VictimModule"),
    "noise.masks": ("Score",),
    "noise.methods": ("EM", "SALM", "SP", "TAP", "Method", "Random"),
    "noise.transforms": ("CropFlip",),
    "release": ("PoisonedDataModule", "verify_release"),
    "runs.generation": ("generate",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

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


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562): the package itself loads neither torch nor Lightning."""
    if name == "__version__":
        return _version()
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("salm-lightning")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0+unknown"
