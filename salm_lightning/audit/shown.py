"""How images and their noise are shown to people, and to what looks at 8 bits or at grey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

Image = NDArray[np.uint8]
"""``[H, W]`` or ``[H, W, 3]``."""
Images = Sequence[Image] | Image
"""Some of them, or ``[B, H, W]`` or ``[B, H, W, 3]`` if they have one size."""
Stored = NDArray[Any]
"""Images of one size, ``[B, H, W]`` or ``[B, H, W, 3]``: uint8, or uint16 from 0 to what white is."""


def eight_bits(images: Stored, white: int) -> NDArray[np.uint8]:
    """Return images from 0 to ``white`` as they are shown, 0 to 255; those that are uint8 are already."""
    if images.dtype == np.uint8:
        return images
    return np.rint(images * (255 / white)).astype(np.uint8)


def grey(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return grey levels ``[B, H, W]`` of images ``[B, H, W]`` or ``[B, H, W, 3]``: luma (ITU-R 601), rounded as Pillow does."""
    if images.ndim == 3:
        return images
    rows = np.ascontiguousarray(images).reshape(-1, *images.shape[2:])  # one tall image, converted at once
    return np.asarray(Pillow.fromarray(rows).convert("L")).reshape(images.shape[:3])


def noise_limit(original: Images, protected: Images) -> int:
    """Return the largest difference in grey levels, at least 1."""
    differences = (np.abs(after.astype(np.int16) - before).max() for before, after in zip(original, protected, strict=True))
    return max(1, *(int(difference) for difference in differences))


def noise_image(original: Image, protected: Image, limit: int) -> Image:
    """Show noise as an image: grey is no change, black and white are a change by ``limit`` grey levels."""
    difference = protected.astype(np.float64) - original
    return np.rint(127.5 + 127.5 * difference / limit).clip(0, 255).astype(np.uint8)
