"""Folders of images, one subfolder per class: which files are images, and reading each of them right or refusing it by its name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from salm_lightning.data.tables import split_of
from salm_lightning.data.walk import is_junk, walk
from salm_lightning.errors import DataError

_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def image_classes(root: Path, argument: str) -> dict[str, list[Path]]:
    """Return the images of a folder by class, both sorted by name; what is hidden, as programs leave it behind, does not count.

    Raises:
        DataError: It holds no subfolder, or subfolders that are splits.
    """
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not is_junk(entry.name))
    if not folders:
        raise DataError(f"{argument}={root} is no image folder; it needs one subfolder with images per class.")
    splits = [name for name in folders if split_of(name)]
    if splits:
        raise DataError(
            f"{argument}={root} holds the folders {', '.join(splits)}, which are splits and no classes; give the folder above the classes, "
            f"such as {root / splits[-1]}."
        )
    files, problems = walk(root)
    for problem in problems:
        raise DataError(f"{argument}={root}: {problem.path} is one of {problem.kind.what}. {problem.kind.way_out}")
    images: dict[str, list[Path]] = {name: [] for name in folders}
    for path in files:
        if "/" in path and path.lower().endswith(_ENDINGS):
            images[path.partition("/")[0]].append(root / path)
    return images


def read_image(path: Path, argument: str) -> NDArray[np.uint8]:
    """Return an image upright and in colour, uint8 ``[H, W, 3]``; 16 bits are scaled to 8.

    Raises:
        DataError: It cannot be read, or holds numbers whose range is not known.
    """
    try:
        # By its name Pillow would map an uncompressed TIFF, and scramble one that is stored turned.
        with path.open("rb") as stream, Image.open(stream) as file:
            image: Image.Image = ImageOps.exif_transpose(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{argument}: {path} cannot be read ({error}); take it out of the folder, or copy it again.") from error
    if image.mode.startswith("I;16") or (image.mode == "I" and file.format == "PNG"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "32-bit" if image.mode == "I" else "floating-point"
        raise DataError(f"{argument}: {path} holds {kind} numbers, whose range is not known; store it with 8 or 16 bits.")
    return np.asarray(image.convert("RGB"))
