"""Which images a victim trains on: what identifies them, and whether a release was made from them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from salm_lightning.data import SPLITS, ImageDataModule
from salm_lightning.errors import DataError
from salm_lightning.files import file_sha256
from salm_lightning.release import PoisonedDataModule


def identify(images: ImageDataModule, sha256: str) -> dict[str, Any]:
    """Return what a victim's result depends on of the images it trains on, whatever they are called.

    Args:
        images: The images.
        sha256: Checksum of what they were read from.
    """
    return {
        "sha256": sha256,
        "task": str(images.task),
        "num_classes": images.num_classes,
        "labels": images.describe().get("labels"),
    }


def checksum(images: ImageDataModule) -> str:
    """Return the SHA-256 of the file that images come from, or of their arrays where they were drawn."""
    if images.source_path is not None:
        return file_sha256(images.source_path)
    digest = hashlib.sha256()
    for name in SPLITS:
        split = images.split(name)
        digest.update(np.ascontiguousarray(split.images).tobytes())
        digest.update(np.ascontiguousarray(split.labels).tobytes())
    return digest.hexdigest()


def require_original(images: ImageDataModule, release: PoisonedDataModule) -> str:
    """Refuse images that a release was not made from, and return their checksum.

    Where both come from files, the checksum settles it; else labels and the clean test images are compared.

    Args:
        images: The images.
        release: The release.

    Raises:
        DataError: The release was made from others.
    """
    known, sha256 = release.manifest.source, checksum(images)
    if known is not None and images.source_path is not None:
        if known.sha256 != sha256:
            raise DataError(
                f"source={images.source_path} is not what {release.root} was made from: its SHA-256 is {sha256}, that of the original, "
                f"{known.name}, is {known.sha256}. Give that file."
            )
        return sha256
    same = all(np.array_equal(images.split(name).labels, release.split(name).labels) for name in SPLITS)
    tests = [np.asarray(data.split("test").images) for data in (images, release)]
    if not same or not np.array_equal(tests[0], tests[1]):
        raise DataError(
            f"source={images.info.name} is not what {release.root} was made from: labels or test images differ. Give the data, size and "
            "seed that were protected."
        )
    return sha256
