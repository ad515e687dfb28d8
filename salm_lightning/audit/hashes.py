"""Perceptual hashes of many images at once: bit for bit those of the ImageHash library, which takes one image at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIDE = 8  # bits
_DCT_SIDE = 32  # pixels
_Grey = NDArray[np.uint8]
_Bits = NDArray[np.bool_]


def average_hash(images: _Grey) -> _Bits:
    """Return whether each of 8x8 cells is lighter than their mean, boolean ``[B, 64]`` of grey images ``[B, H, W]``."""
    pixels = resize(images, _SIDE, _SIDE).reshape(len(images), -1)
    return np.asarray(pixels > pixels.mean(axis=1, keepdims=True))


def perceptual_hash(images: _Grey) -> _Bits:
    """Return whether each of the 8x8 lowest frequencies is above their median, boolean ``[B, 64]`` of grey images ``[B, H, W]``."""
    from scipy.fft import dct

    pixels = resize(images, _DCT_SIDE, _DCT_SIDE).astype(np.float64)
    frequencies = dct(dct(pixels, axis=1), axis=2)[:, :_SIDE, :_SIDE].reshape(len(images), -1)
    return np.asarray(frequencies > np.median(frequencies, axis=1, keepdims=True))


def difference_hash(images: _Grey) -> _Bits:
    """Return whether each of 8x8 cells is lighter than the one on its left, boolean ``[B, 64]`` of grey images ``[B, H, W]``."""
    pixels = resize(images, _SIDE, _SIDE + 1)
    return np.asarray(pixels[:, :, 1:] > pixels[:, :, :-1]).reshape(len(images), -1)


HASHES: dict[str, Callable[[_Grey], _Bits]] = {"ahash": average_hash, "phash": perceptual_hash, "dhash": difference_hash}
"""The hashes by name; each takes grey images uint8 ``[B, H, W]`` and returns boolean ``[B, 64]``."""


def resize(images: _Grey, height: int, width: int) -> _Grey:
    """Resize grey images ``[B, H, W]`` with Pillow's Lanczos filter."""
    return np.stack([np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)) for image in images])
