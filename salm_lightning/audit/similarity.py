"""How similar protected images are to their originals (paper: Table 5), per image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from salm_lightning.audit.results import Extremes
from salm_lightning.audit.shown import Stored, eight_bits, grey
from salm_lightning.release import Meter

NAMES = {
    **{"ssim": "SSIM", "psnr": "PSNR", "ahash": "aHash", "phash": "pHash", "dhash": "dHash", "nmi": "NMI"},
    **{"linf": "largest change", "l0": "changed pixels", "changed_share": "share of changed\npixels"},
}
"""What the measures are called in pictures, in the order in which they are given."""
PerImage = dict[str, NDArray[np.float64]]
"""Measures of images by name, each ``[N]``."""
DISTANCES = frozenset({"linf", "l0", "changed_share"})
"""Measures that grow as images differ more; all others fall."""
_LEVELS = 256
_TAIL = 5  # percent
_SIDE = 8  # bits of a hash
_DCT_SIDE = 32  # pixels
_Grey = NDArray[np.uint8]
_Bits = NDArray[np.bool_]


class Similarity:
    """Accumulates pairs of images and measures each of them.

    Beside what :class:`~salm_lightning.release.Meter` measures per image, these are ``ahash``, ``phash`` and ``dhash``, the share of
    equal bits of the average, perceptual and difference hash (64 bits each), and ``nmi``, which
    :func:`normalised_mutual_information` defines; these look at images of 8 bits. ``white`` is what white is in the images' integers.
    """

    def __init__(self, white: int = 255) -> None:
        self._white = white
        self._meter = Meter(white)
        self._others: dict[str, list[NDArray[np.float64]]] = {name: [] for name in (*HASHES, "nmi")}

    def update(self, original: Stored, protected: Stored) -> None:
        """Add consecutive images, ``[B, H, W]`` or ``[B, H, W, 3]``.

        Raises:
            ReleaseError: The shapes differ.
        """
        self._meter.update(original, protected)
        before, after = (grey(eight_bits(images, self._white)) for images in (original, protected))
        for name, bits in HASHES.items():
            self._others[name].append((bits(before) == bits(after)).mean(axis=1))
        self._others["nmi"].append(normalised_mutual_information(before, after))

    def per_image(self) -> PerImage:
        """Return every measure; at least one image is needed."""
        measured = self._meter.per_image() | {name: np.concatenate(values) for name, values in self._others.items()}
        return {name: measured[name] for name in NAMES}


def average_hash(images: _Grey) -> _Bits:
    """Return whether each of 8x8 cells is lighter than their mean."""
    pixels = resize(images, _SIDE, _SIDE).reshape(len(images), -1)
    return np.asarray(pixels > pixels.mean(axis=1, keepdims=True))


def perceptual_hash(images: _Grey) -> _Bits:
    """Return whether each of the 8x8 lowest frequencies is above their median."""
    from scipy.fft import dct

    pixels = resize(images, _DCT_SIDE, _DCT_SIDE).astype(np.float64)
    frequencies = dct(dct(pixels, axis=1), axis=2)[:, :_SIDE, :_SIDE].reshape(len(images), -1)
    return np.asarray(frequencies > np.median(frequencies, axis=1, keepdims=True))


def difference_hash(images: _Grey) -> _Bits:
    """Return whether each of 8x8 cells is lighter than the one on its left."""
    pixels = resize(images, _SIDE, _SIDE + 1)
    return np.asarray(pixels[:, :, 1:] > pixels[:, :, :-1]).reshape(len(images), -1)


HASHES: dict[str, Callable[[_Grey], _Bits]] = {"ahash": average_hash, "phash": perceptual_hash, "dhash": difference_hash}
"""The hashes by name, bit for bit those of the ImageHash library: boolean ``[B, 64]`` of grey images uint8 ``[B, H, W]``."""


def resize(images: _Grey, height: int, width: int) -> _Grey:
    """Resize grey images ``[B, H, W]`` with Pillow's Lanczos filter."""
    return np.stack([np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)) for image in images])


def normalised_mutual_information(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the normalised mutual information of the grey levels of each pair of images.

    Each of the 256 grey levels is a bin of its own. It is twice the mutual information over the sum of the two entropies, which is what
    ``sklearn.metrics.normalized_mutual_info_score`` computes, here for all images at once: 0 for independent levels, 1 where one
    image's levels tell the other's. Two images of one level each have 1. The levels are uint8 ``[B, H, W]``, the result is ``[B]``.
    """
    levels_a, levels_b = (images.reshape(len(images), -1).astype(np.int64) for images in (a, b))
    entropies = _entropy(levels_a) + _entropy(levels_b)
    mutual = entropies - _entropy(levels_a * _LEVELS + levels_b)
    flat = entropies < np.finfo(np.float64).eps
    return np.where(flat, 1.0, np.clip(2 * mutual / np.where(flat, 1.0, entropies), 0.0, 1.0))


def summarise(values: NDArray[np.float64], rows: NDArray[np.int64], *, high_is_bad: bool) -> Extremes | None:
    """Return mean, 5th percentile on the bad side, and the worst image; ``None`` when no value is finite.

    Args:
        values: A measure per image, ``[N]``; those that are not finite, such as the PSNR of equal images, stay out.
        rows: Positions of the images in the training split, ``[N]``.
        high_is_bad: Whether a larger value is worse.
    """
    finite = np.isfinite(values)
    values, rows = values[finite], rows[finite]
    if len(values) == 0:
        return None
    worst = int(values.argmax() if high_is_bad else values.argmin())
    tail = np.percentile(values, 100 - _TAIL if high_is_bad else _TAIL)
    return Extremes(float(values.mean()), float(tail), float(values[worst]), int(rows[worst]))


def _entropy(symbols: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the entropy in nats of each row of symbols from 0 to 65535, ``[B]`` of ``[B, P]``."""
    offset = _LEVELS**2
    rows = np.arange(len(symbols))[:, None] * offset
    found, counts = np.unique(symbols + rows, return_counts=True)
    share = counts / symbols.shape[1]
    entropies = np.bincount(found // offset, weights=-share * np.log(share), minlength=len(symbols))
    return entropies.astype(np.float64, copy=False)
