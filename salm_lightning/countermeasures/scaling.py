"""What scales images: cutting out their centre (paper: Section 5.3, Table 4), and losing detail in between."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate

from salm_lightning.countermeasures.base import ImageCountermeasure, to_bytes
from salm_lightning.errors import require


class CenterCrop(ImageCountermeasure):
    """Cut out the centre and scale it bilinearly to the images' size.

    The paper states neither how much it cuts off nor whether the test images are cropped; its Table 4 is about models "trained on
    different kinds of data", which leaves the test split as it is.

    Args:
        share: Side of the centre as a share of the image's, in (0, 1).
        on_test: Whether val and test images are cropped as well.
    """

    def __init__(self, share: float = 0.75, on_test: bool = False) -> None:
        require("share", share, 0 < share < 1, "give a share of the side between 0 and 1, such as 0.75")
        self.share = share
        self.on_test = on_test

    def prepare(self, images: Tensor) -> Tensor:
        """Return the scaled centres."""
        size = images.shape[-1]
        side = max(1, round(self.share * size))
        first = (size - side) // 2
        return _enlarge(images[..., first : first + side, first : first + side].float(), size)


class Resample(ImageCountermeasure):
    """Scale images down, each pixel the mean of those it covers, and up again bilinearly.

    Args:
        factor: How many times smaller the images become in between, more than 1.
    """

    def __init__(self, factor: float = 2.0) -> None:
        require("factor", factor, factor > 1, "give more than 1, such as 2 for half the side")
        self.factor = factor

    def prepare(self, images: Tensor) -> Tensor:
        """Return the images without the detail that is lost."""
        size = images.shape[-1]
        small = max(1, round(size / self.factor))
        return _enlarge(interpolate(images.float(), size=(small, small), mode="area"), size)


def _enlarge(images: Tensor, size: int) -> Tensor:
    return to_bytes(interpolate(images, size=(size, size), mode="bilinear", align_corners=False))
