"""Ways to make noise that lasts beside those of the package, for ``benchmarks/robust.yaml``."""

from __future__ import annotations

from dataclasses import fields

from source_models import Turns
from torch import Tensor

from salm_lightning.models.backbones import vit
from salm_lightning.models.cnn import CNN
from salm_lightning.noise.draws import fold, uniform
from salm_lightning.noise.methods import EM, Perturbation
from salm_lightning.noise.pgd import Objective
from salm_lightning.noise.transforms import CropFlip


class Tied(EM):
    """EM whose noise is the same in all channels, so that making images grey changes nothing of it.

    Where an image is black or white in a channel its noise is clipped in that channel alone.
    """

    def start(self, images: Tensor, indices: Tensor, seed: int, *counters: int) -> Tensor:
        """Return the first noise: that of the first channel in all of them."""
        return super().start(images, indices, seed, *counters)[:, :1].expand_as(images).clone()

    def improve(self, images: Tensor, delta: Tensor, objective: Objective, steps: int) -> Perturbation:
        """Take ``steps`` PGD steps along the gradients' sums over the channels."""
        given = {field.name: getattr(objective, field.name) for field in fields(objective) if field.init}
        return super().improve(images, delta, _Summed(**given), steps)


class _Summed(Objective):
    """An objective whose gradient is the same in all channels: their sum."""

    def _gradient(self, delta: Tensor, step: int, scale: float) -> Tensor:
        return super()._gradient(delta, step, scale).sum(dim=1, keepdim=True).expand_as(delta)


class Noisy(CropFlip):
    """T with uniform noise of so many levels added to what the source model sees, as adversarial training adds its own.

    Args:
        levels: Largest value, in units of 1/255.
        grey: As CropFlip's.
        jpeg: As CropFlip's.
    """

    def __init__(self, levels: float = 8.0, grey: float = 0.0, jpeg: float = 0.0) -> None:
        super().__init__(grey=grey, jpeg=jpeg)
        self.levels = levels

    def __call__(self, images: Tensor, indices: Tensor, seed: int, purpose: str, *counters: int) -> Tensor:
        """Return the transformed batch."""
        seen = super().__call__(images, indices, seed, purpose, *counters)
        drawn = uniform(fold(fold(seed, purpose, *counters), "levels"), indices, images[0].numel()).view_as(images)
        return seen + (2 * drawn - 1) * (self.levels / 255)


class WithViT(Turns):
    """A tiny CNN and a small vision transformer in turn.

    Args:
        num_classes: Length of the logits.
        channels: 1 (grey) or 3 (RGB).
        image_size: Height and width in pixels.
    """

    def __init__(self, num_classes: int, channels: int, image_size: int) -> None:
        super().__init__(CNN(num_classes, channels), vit(num_classes, channels, image_size, 0.25))
