"""Denoising: images made as smooth as they can be without losing their edges."""

from __future__ import annotations

from torch import Tensor

from salm_lightning.countermeasures.base import ImageCountermeasure, to_bytes
from salm_lightning.errors import ConfigurationError

_ITERATIONS = 50
"""At the default weight a byte is then within one of its limit, in the mean."""


class TotalVariation(ImageCountermeasure):
    """Total-variation denoising of each channel (Rudin, Osher and Fatemi 1992) by Chambolle's (2004) algorithm.

    ``skimage.restoration.denoise_tv_chambolle`` with as many iterations gives the same.

    Args:
        weight: Weight of smoothness against likeness to the image in [0, 1]; more is smoother.

    Raises:
        ConfigurationError: ``weight`` is not positive.
    """

    def __init__(self, weight: float = 0.1) -> None:
        if not weight > 0:
            raise ConfigurationError(f"weight={weight} is out of range; give more than 0, such as 0.1.")
        self.weight = weight

    def prepare(self, images: Tensor) -> Tensor:
        """Return the denoised images."""
        noisy = images.float() / 255
        dual = noisy.new_zeros(2, *noisy.shape)
        for _ in range(_ITERATIONS):
            gradient = _gradient(noisy - _divergence(dual))
            length = gradient.square().sum(dim=0).sqrt()
            dual = (dual - 0.25 * gradient) / (1 + 0.25 / self.weight * length)
        return to_bytes(255 * (noisy - _divergence(dual)))


def _gradient(images: Tensor) -> Tensor:
    """Return the differences to the next row and column, ``[2, B, C, H, W]``; 0 at the last ones."""
    result = images.new_zeros(2, *images.shape)
    result[0, :, :, :-1] = images.diff(dim=2)
    result[1, :, :, :, :-1] = images.diff(dim=3)
    return result


def _divergence(dual: Tensor) -> Tensor:
    """Return the divergence of a field, ``[B, C, H, W]``; minus it is the adjoint of :func:`_gradient`."""
    down, across = dual.unbind()
    result = down + across
    result[:, :, 1:] -= down[:, :, :-1]
    result[:, :, :, 1:] -= across[:, :, :, :-1]
    return result
