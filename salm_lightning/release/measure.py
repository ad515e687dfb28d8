"""What the noise did to the images, measured on the stored bytes, one chunk at a time."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from salm_lightning.data.arrays import to_tensor
from salm_lightning.errors import ReleaseError
from salm_lightning.release.manifest import Measured

_VALUES_AT_ONCE = 2**18  # per comparison: a dozen float64 arrays of that size are needed, and small ones stay in the cache
_SSIM_SIGMA = 1.5
_SSIM_REACH = 5  # pixels on each side of the centre: an 11x11 window
_BLOCK = 32  # places that are smoothed by one product
_C1, _C2 = 0.01**2, 0.03**2  # the constants of Wang et al. (2004) at a data range of 1


class Meter:
    """Accumulates chunks of images and their protected versions, integers from 0 to ``white``.

    Values are kept per image in float64 and summed exactly at the end, so where the chunks end does not matter.

    Attributes:
        blackened: Positions of images that are all black and were not.
    """

    def __init__(self, white: int = 255) -> None:
        self._white = white
        self.blackened: list[int] = []
        self._pixels = 0
        self._images = 0
        self._mean_square = 0.0
        self._values: dict[str, list[Any]] = {"ssim": [], "psnr": [], "linf": [], "l0": []}

    def update(self, original: NDArray[Any], protected: NDArray[Any]) -> None:
        """Add consecutive images, both ``[B, H, W]`` or ``[B, H, W, C]``.

        Raises:
            ReleaseError: The shapes differ.
        """
        if original.shape != protected.shape:
            raise ReleaseError(f"the originals are {list(original.shape)}, the protected images {list(protected.shape)}.")
        if len(original) == 0:
            return
        rows = max(1, _VALUES_AT_ONCE // (original[0].size or 1))
        for start in range(0, len(original), rows):
            self._update(original[start : start + rows], protected[start : start + rows])

    def _update(self, original: NDArray[Any], protected: NDArray[Any]) -> None:
        before, after = (to_tensor(images).to(torch.int32) for images in (original, protected))
        self._pixels += before[:, 0].numel()
        difference = (after - before).abs()
        self._values["linf"] += difference.flatten(1).amax(1).tolist()
        square = difference.flatten(1).to(torch.int64).square().sum(dim=1)
        self._mean_square = max(self._mean_square, int(square.max()) / difference[0].numel())
        changed = difference.amax(1).ne(0).flatten(1).sum(1)
        self._values["l0"] += changed.tolist()
        black = after.flatten(1).amax(1).eq(0) & before.flatten(1).amax(1).ne(0)
        self.blackened += (black.nonzero()[:, 0] + self._images).tolist()
        self._images += len(original)
        clean, noisy, differs = before.double() / self._white, after.double() / self._white, changed.ne(0)
        self._values["ssim"] += ssim_per_image(noisy, clean).tolist()
        psnr = torch.full(differs.shape, math.inf, dtype=torch.float64)
        if differs.any():
            psnr[differs] = _psnr(noisy[differs], clean[differs])
        self._values["psnr"] += psnr.tolist()

    def changed(self) -> NDArray[np.bool_]:
        """Say of each image added so far whether it differs from its original, boolean ``[N]``."""
        return np.array(self._values["l0"], dtype=np.int64) > 0

    def per_image(self) -> dict[str, NDArray[np.float64]]:
        """Return the values of every image added so far, each ``[N]``.

        Returns:
            ``ssim``, ``psnr`` (in dB; infinite for an image that equals its original), ``linf`` (in levels), ``l0`` (changed
            pixels) and ``changed_share`` (of the image's pixels); at least one image is needed.
        """
        values = {name: np.array(found, dtype=np.float64) for name, found in self._values.items()}
        return values | {"changed_share": values["l0"] / (self._pixels // self._images)}

    def compute(self) -> Measured:
        """Return the values over everything added so far; at least one image is needed."""
        ssim, psnr, linf, l0 = self._values.values()
        differing = [value for value in psnr if math.isfinite(value)]
        return Measured(
            images=self._images,
            images_unchanged=l0.count(0),
            linf=max(linf),
            rms_max=math.sqrt(self._mean_square),
            l0_mean=sum(l0) / self._images,
            l0_max=max(l0),
            changed_share=sum(l0) / self._pixels,
            ssim=math.fsum(ssim) / self._images,
            psnr=math.fsum(differing) / len(differing) if differing else None,
        )


def _psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of each pair of images in [0, 1] that differ, ``[B]``.

    With the logarithm of 10 in float32, as torchmetrics computes it: manifests that it has been written into are made again the same.
    """
    error = (a - b).square().sum(dim=(1, 2, 3)) / a[0].numel()
    return -error.log() * (10 / torch.tensor(10.0).log())


def ssim_per_image(a: Tensor, b: Tensor) -> Tensor:
    """Return the structural similarity ``[B]``, at most 1, of floating-point images ``[B, C, H, W]`` in [0, 1] (Wang et al., 2004).

    It is what ``torchmetrics.functional.image.structural_similarity_index_measure`` computes with ``data_range=1`` (to 1e-12 in
    float64), but the Gaussian window is applied as products with the band of a matrix instead of an 11x11 convolution: many times
    faster in float64 on a CPU, which a large dataset needs.
    """
    rows, columns = (_bands(size, a.dtype) for size in a.shape[-2:])
    # a strip at a time: large images would need a dozen times their size
    strips = [_strip(a[..., source, :], b[..., source, :], weights, columns) for source, weights in rows]
    return torch.stack(strips).sum(0) / a[0].numel()


def _strip(a: Tensor, b: Tensor, rows: Tensor, columns: list[tuple[slice, Tensor]]) -> Tensor:
    """Return the sum of the structural similarity over some rows, ``[B]``, from all rows that they depend on."""

    def smooth(images: Tensor) -> Tensor:
        return rows @ torch.cat([images[..., source] @ weights.T for source, weights in columns], dim=-1)

    mean_a, mean_b = smooth(a), smooth(b)
    means = mean_a * mean_b
    squares = mean_a.square_().add_(mean_b.square_())
    # the two variances occur as their sum alone: one smoothing for both
    variances = smooth(a.square().add_(b.square())).sub_(squares)
    covariance = smooth(a * b).sub_(means)
    luminance = means.mul_(2).add_(_C1).div_(squares.add_(_C1))
    structure = covariance.mul_(2).add_(_C2).div_(variances.add_(_C2))
    return luminance.mul_(structure).flatten(1).sum(1)


@functools.lru_cache(maxsize=4)
def _bands(size: int, dtype: torch.dtype) -> list[tuple[slice, Tensor]]:
    """Return for each block of places along an axis the places that it depends on and their weights, ``[block, places]``."""
    window = np.exp(-((np.arange(-_SSIM_REACH, _SSIM_REACH + 1) / _SSIM_SIGMA) ** 2) / 2)
    window /= window.sum()
    # unlike torch's padding, NumPy's also mirrors images that are smaller than the window
    mirrored, bands = np.pad(np.arange(size), _SSIM_REACH, mode="reflect"), []
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        source = slice(max(0, start - _SSIM_REACH), min(size, stop + _SSIM_REACH))
        weights = np.zeros((stop - start, source.stop - source.start))
        for shift, weight in enumerate(window):
            weights[np.arange(stop - start), mirrored[start + shift : stop + shift] - source.start] += weight
        bands.append((source, torch.from_numpy(weights).to(dtype)))
    return bands
