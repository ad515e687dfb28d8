"""Strong augmentation, and adversarial augmentation: the worst of several draws of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from salm_lightning.countermeasures.base import Countermeasure, TrainingStep
from salm_lightning.errors import ConfigurationError, require
from salm_lightning.metrics import classification_loss
from salm_lightning.noise.draws import fold, uniform
from salm_lightning.noise.pgd import frozen

_FIELD = 4
"""Side of the coarse grid of the random light."""


class StrongAugment(Countermeasure):
    """Change shape, light and colours of each image at random, after crop and flip, each image in its own way.

    In the manner of RandAugment, colour jitter and UEraser (Qin et al. 2023), whose "plasma" light and shuffled channels undo noise that
    colours images: an affine map (turned by up to 30 degrees, scaled by up to a quarter, sheared by up to 15 degrees), smooth random
    light of up to half the range, contrast and saturation between nothing and nearly double, and each with a chance: channels in
    another order (1/2), grey (1/5), values above a threshold inverted (1/5).

    Args:
        strength: Factor on all ranges and chances, in (0, 1].
    """

    def __init__(self, strength: float = 1.0) -> None:
        require("strength", strength, 0 < strength <= 1, "give more than 0 up to 1")
        self.strength = strength

    def view(self, step: TrainingStep, draw: int = 0) -> Tensor:
        """Return the augmented images of a training step; another ``draw`` is another augmentation."""
        return strongly_augmented(step.augmented(draw), step.indices, fold(step.seed, "strong", step.number, draw), self.strength)

    def loss(self, step: TrainingStep) -> Tensor:
        """Return the loss on strongly augmented images."""
        return classification_loss(step.network(self.view(step)), step.labels, step.task)


class UEraserMax(StrongAugment):
    """Draw several strong augmentations of each image and train on the one with the largest loss (UEraser-max, Qin et al. 2023).

    The losses that choose are taken with the running statistics of the network, whose own training then sees the chosen images alone.

    Args:
        draws: Augmentations of each image to choose from, 2 or more.
        strength: Factor on their ranges and chances, in (0, 1].
    """

    def __init__(self, draws: int = 5, strength: float = 1.0) -> None:
        super().__init__(strength)
        if draws < 2:
            raise ConfigurationError(f"draws={draws} leaves nothing to choose; give 2 or more, or use StrongAugment.")
        self.draws = draws

    def loss(self, step: TrainingStep) -> Tensor:
        """Return the loss on the worst view of each image."""
        worst, highest = step.images, torch.full_like(step.indices, -math.inf, dtype=torch.float32)
        with torch.no_grad(), frozen(step.network):
            for draw in range(self.draws):
                view = self.view(step, draw)
                losses = classification_loss(step.network(view), step.labels, step.task, reduction="none")
                worse = losses > highest
                highest = torch.where(worse, losses, highest)
                worst = torch.where(worse[:, None, None, None], view, worst)
        return classification_loss(step.network(worst), step.labels, step.task)


def strongly_augmented(images: Tensor, indices: Tensor, key: int, strength: float) -> Tensor:
    """Return each image, ``[B, C, H, W]`` in [0, 1], under its own random affine map, light and colours.

    Key and sample indices ``[B]`` settle the draws. ``strength``, in [0, 1], is a factor on ranges and chances; 0 changes nothing.
    """
    signed = strength * (2 * uniform(fold(key, "ranges"), indices, 5) - 1)
    chances = uniform(fold(key, "chances"), indices, 4)
    light = 0.5 * strength * (2 * uniform(fold(key, "light"), indices, _FIELD**2) - 1)
    images = affine(images, 30 * signed[:, 0], 1 + 0.25 * signed[:, 1], 15 * signed[:, 2])
    images = lighten(images, light.view(-1, 1, _FIELD, _FIELD))
    images = adjust_contrast(images, 1 + 0.9 * signed[:, 3])
    if images.shape[1] == 3:
        images = adjust_saturation(images, torch.where(chances[:, 0] < 0.2 * strength, 0.0, 1 + 0.9 * signed[:, 4]))
        images = shuffle_channels(images, uniform(fold(key, "channels"), indices, 3), chances[:, 1] < 0.5 * strength)
    return solarise(images, torch.where(chances[:, 2] < 0.2 * strength, chances[:, 3], math.inf))


def affine(images: Tensor, angle: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """Turn (degrees, clockwise), scale and shear (degrees, along the rows), each ``[B]``, images ``[B, C, H, W]`` about their centre.

    Bilinearly, and black beyond the border.
    """
    turn, slant = angle.deg2rad(), shear.deg2rad().tan()
    cosine, sine, zero = turn.cos(), turn.sin(), torch.zeros_like(turn)
    # Where a pixel comes from: the inverse of the map.
    first = torch.stack([cosine - sine * slant, sine + cosine * slant, zero], dim=1)
    second = torch.stack([-sine, cosine, zero], dim=1)
    inverse = torch.stack([first, second], dim=1) / scale[:, None, None]
    grid = affine_grid(inverse, list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def lighten(images: Tensor, light: Tensor) -> Tensor:
    """Add light ``[B, 1, h, w]``, a coarse grid that is interpolated."""
    field = interpolate(light, size=images.shape[-2:], mode="bilinear", align_corners=False)
    return (images + field).clamp(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance of each value from the image's mean brightness by ``factor`` ``[B]``."""
    return _blend(images, _brightness(images).mean(dim=(1, 2, 3), keepdim=True), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance of each colour from grey by ``factor`` ``[B]``; 0 is grey."""
    return _blend(images, _brightness(images), factor)


def shuffle_channels(images: Tensor, draws: Tensor, chosen: Tensor) -> Tensor:
    """Put the channels into the order of ``draws`` ``[B, C]`` where ``chosen`` ``[B]``."""
    order = draws.argsort(dim=1)[:, :, None, None].expand_as(images)
    return torch.where(chosen[:, None, None, None], images.gather(1, order), images)


def solarise(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert values of at least ``threshold`` ``[B]``."""
    return torch.where(images >= threshold[:, None, None, None], 1 - images, images)


def _brightness(images: Tensor) -> Tensor:
    """Return the luma, ``[B, 1, H, W]``."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def _blend(images: Tensor, others: Tensor, share: Tensor) -> Tensor:
    weight = share[:, None, None, None]
    return (weight * images + (1 - weight) * others).clamp(0, 1)
