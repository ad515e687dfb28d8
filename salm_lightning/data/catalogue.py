"""MedMNIST's 2-D datasets by name."""

from __future__ import annotations

import os
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from salm_lightning.data.base import DatasetInfo, Task
from salm_lightning.files import expanded

SIZES = (28, 64, 128, 224)
"""The sizes in pixels in which MedMNIST offers each dataset."""


def _read_info() -> dict[str, dict[str, Any]]:
    """Return MedMNIST's table without importing its package, which takes torch, pandas and scikit-learn along."""
    package = find_spec("medmnist")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("medmnist is not installed; install salm-lightning with its dependencies.")
    table: dict[str, dict[str, Any]] = runpy.run_path(str(Path(package.origin).with_name("info.py")))["INFO"]
    return table


def _describe(name: str, entry: dict[str, Any]) -> DatasetInfo:
    task = Task.MULTI_LABEL if entry["task"].startswith("multi-label") else Task(entry["task"])
    names = tuple(entry["label"][str(number)] for number in range(len(entry["label"])))
    return DatasetInfo(name, task, names, channels=entry["n_channels"], size=28)


INFO = _read_info()
"""What MedMNIST's package says of each dataset: addresses, checksums, labels."""
MEDMNIST: dict[str, DatasetInfo] = {name: _describe(name, entry) for name, entry in INFO.items() if not name.endswith("3d")}
"""The 2-D datasets by name, described at 28 pixels."""


def archive_path(name: str, size: int = 28, root: str | Path | None = None) -> Path:
    """Return where a dataset's file is looked for; ``root`` is :func:`default_root` by default."""
    folder = default_root() if root is None else expanded(root)
    return folder / f"{name}{'' if size == 28 else f'_{size}'}.npz"


def default_root() -> Path:
    """Return the folder where dataset files are looked for: ``SALM_DATA_ROOT``, else ``~/.medmnist``."""
    return expanded(os.environ.get("SALM_DATA_ROOT") or "~/.medmnist")
