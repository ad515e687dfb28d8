"""JPEG: what lossy compression leaves of the noise."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from salm_lightning.countermeasures.base import ImageCountermeasure
from salm_lightning.data.arrays import to_tensor
from salm_lightning.errors import ConfigurationError


class JPEG(ImageCountermeasure):
    """Encode and decode each image with libjpeg, colours at half the resolution (4:2:0), as files on the web are.

    Args:
        quality: 1 (worst) to 100.

    Raises:
        ConfigurationError: ``quality`` is out of range.
    """

    def __init__(self, quality: int = 10) -> None:
        if not 1 <= quality <= 100:
            raise ConfigurationError(f"quality={quality} is out of range; give 1 (worst) to 100, such as 10.")
        self.quality = quality

    def prepare(self, images: Tensor) -> Tensor:
        """Return the images as they come back from the codec, which takes one at a time."""
        pixels = images.permute(0, 2, 3, 1).squeeze(3).cpu().numpy()
        return to_tensor(np.stack([self._through_codec(image) for image in pixels])).to(images.device)

    def _through_codec(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=self.quality)
        return np.asarray(Image.open(file))
