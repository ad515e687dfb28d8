"""Tiny files in MedMNIST's layout, for tests of everything that reads data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from salm_lightning.data import SPLITS, DatasetInfo, NpzDataModule, Task
from salm_lightning.data.base import ARRAYS
from salm_lightning.data.npz import ArraySpec
from salm_lightning.release import Manifest
from salm_lightning.release.manifest import Bound, Coverage, FileSum, Measured
from salm_lightning.runs.record import DONE
from salm_lightning.sweep.job import Job

FAKE_MANIFEST = Manifest(
    dataset={"name": "d", "task": "multi-class", "class_names": ["a", "b"], "channels": 3, "size": 16},
    settings={},
    bound=Bound("linf", 8.0),
    measured=Measured(
        images=1, images_unchanged=0, linf=8, rms_max=4.0, l0_mean=1.0, l0_max=1, changed_share=0.5, ssim=0.9, psnr=30.0
    ),
    coverage=Coverage.of(1, None),
    source=None,
    archive=FileSum("d.npz", "0" * 64),
    arrays={name: ArraySpec("uint8", (1,)) for name in ARRAYS},
    versions={},
)


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


def training_batches(data: NpzDataModule, steps: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the training batches of a DataModule like ``data``, epoch after epoch, for a plain loop to train on."""
    own, given = NpzDataModule(data.source_path, data.task, batch_size=data.batch_size, seed=data.seed), 0
    loader = own.train_dataloader()
    while True:
        for images, labels, indices in loader:
            yield images.float() / 255, labels, indices
            given += 1
            if given == steps:
                return


def as_tensor(images: np.ndarray) -> Tensor:
    """Return uint8 images as float ``[N, C, H, W]`` in [0, 1]."""
    planes = images[..., None] if images.ndim == 3 else images
    return torch.from_numpy(planes).permute(0, 3, 1, 2).float() / 255


def pretend_fit(job: Job, **test: Any) -> None:
    """Leave the artefacts of a sweep's fit, and a note that it is done, without the fit.

    Args:
        job: The fit.
        **test: What a victim's test found, in place of a half for each metric.
    """
    job.product.parent.mkdir(parents=True, exist_ok=True)
    made = {"test": {"acc": 0.5, "auc": 0.5, "balanced_acc": 0.5} | test, "history": {}, "majority": 0.25}
    job.product.write_text(FAKE_MANIFEST.to_json() if job.makes_release else json.dumps(made))
    job.note(DONE, 1.0)
