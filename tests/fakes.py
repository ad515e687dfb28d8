"""Tiny files in MedMNIST's layout, for tests of everything that reads data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from salm_lightning.data import SPLITS, DatasetInfo, Task


def fake_arrays(info: DatasetInfo, sizes: tuple[int, int, int] = (40, 12, 16), seed: int = 0) -> dict[str, np.ndarray]:
    """Draw the six arrays of the layout: random pixels, and labels in which every class occurs where there is room.

    Args:
        info: What the file claims to be.
        sizes: Images in train, val and test.
        seed: Seed of the content.
    """
    rng = np.random.default_rng(seed)
    shape = (info.size, info.size) if info.channels == 1 else (info.size, info.size, info.channels)
    arrays = {}
    for split, count in zip(SPLITS, sizes, strict=True):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        if info.task is Task.MULTI_LABEL:
            labels = rng.integers(0, 2, (count, info.num_classes), dtype=np.uint8)
        else:
            labels = rng.permutation(np.arange(count, dtype=np.uint8) % info.num_classes)[:, None]
        arrays[f"{split}_labels"] = labels
    return arrays


def write_fake_npz(
    path: Path,
    info: DatasetInfo,
    sizes: tuple[int, int, int] = (40, 12, 16),
    seed: int = 0,
    **replaced: Any,
) -> dict[str, np.ndarray]:
    """Write a small ``.npz`` in MedMNIST's layout and return its arrays.

    Args:
        path: The file; its folder is made.
        info: What the file claims to be.
        sizes: Images in train, val and test.
        seed: Seed of the content.
        **replaced: Arrays that take the place of generated ones or come on top; ``None`` leaves one out.
    """
    arrays = fake_arrays(info, sizes, seed) | replaced
    arrays = {name: array for name, array in arrays.items() if array is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return arrays
