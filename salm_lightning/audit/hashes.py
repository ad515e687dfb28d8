"""Perceptual hashes of many images at once: bit for bit those of the ImageHash library, which takes one image at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

_SIDE = 8  # bits
_DCT_SIDE = 32  # pixels
_LANCZOS = 3
_ONE = 2**22  # Pillow's coefficients are whole multiples of 1/_ONE
_Grey = NDArray[np.uint8]
_Bits = NDArray[np.bool_]


def average_hash(images: _Grey) -> _Bits:
    """Return whether each of 8x8 cells is lighter than their mean, boolean ``[B, 64]`` of grey images ``[B, H, W]``."""
    pixels = resize(images, _SIDE, _SIDE).reshape(len(images), -1)
    return np.asarray(pixels > pixels.mean(axis=1, keepdims=True))


def perceptual_hash(images: _Grey) -> _Bits:
    """Return whether each of the 8x8 lowest frequencies is above their median, boolean ``[B, 64]`` of grey images ``[B, H, W]``."""
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
    """Resize grey images ``[B, H, W]`` as Pillow does with its Lanczos filter, to the last grey level.

    Pillow resizes rows and then columns with whole-number weights and rounds in between; as products of matrices of float64, which hold
    these numbers exactly, that goes for all images at once.
    """
    rows, columns = _weights(images.shape[1], height), _weights(images.shape[2], width)
    return _rounded(rows @ _rounded(images.astype(np.float64) @ columns.T).astype(np.float64))


def _rounded(sums: NDArray[np.float64]) -> _Grey:
    return np.floor(sums / _ONE + 0.5).clip(0, 255).astype(np.uint8)


def _weights(size: int, new_size: int) -> NDArray[np.float64]:
    """Return what each old pixel counts for each new one, whole numbers ``[new_size, size]`` in units of 1/_ONE."""
    scale = size / new_size
    stretch = max(scale, 1.0)
    weights = np.zeros((new_size, size))
    for place, row in enumerate(weights):
        centre = (place + 0.5) * scale
        reach = np.arange(max(0, int(centre - _LANCZOS * stretch + 0.5)), min(size, int(centre + _LANCZOS * stretch + 0.5)))
        distance = (reach - centre + 0.5) / stretch
        row[reach] = np.where(np.abs(distance) < _LANCZOS, np.sinc(distance) * np.sinc(distance / _LANCZOS), 0.0)
    weights *= _ONE / weights.sum(axis=1, keepdims=True)
    return np.trunc(weights + np.copysign(0.5, weights))
