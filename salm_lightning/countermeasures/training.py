"""What changes the images of each training step: regularisers, strong augmentation, and adversarial training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from salm_lightning.countermeasures.base import Countermeasure, TrainingStep
from salm_lightning.data.base import Task
from salm_lightning.errors import ConfigurationError, require
from salm_lightning.metrics import classification_loss
from salm_lightning.noise.draws import fold, integers, uniform
from salm_lightning.noise.pgd import Objective, descend, frozen, project

GREY = 0.5
"""What a hole is filled with: zero once images are normalised."""
_FIELD = 4
"""Side of the coarse grid of the random light."""


class Cutout(Countermeasure):
    """Hide a square at a random place of each augmented image (DeVries and Taylor 2017); it may reach over the border.

    Args:
        share: Side of the square as a share of the image's, in (0, 1].
    """

    def __init__(self, share: float = 0.5) -> None:
        require("share", share, 0 < share <= 1, "give a share of the side above 0 up to 1, such as 0.5")
        self.share = share

    def loss(self, step: TrainingStep) -> Tensor:
        """Return the loss on images with holes."""
        images = step.augmented()
        side = torch.full((len(images), 1), max(1, round(self.share * images.shape[-1])), device=images.device)
        hole = random_boxes(images, side, fold(step.seed, "cutout", step.number), step.indices)
        return classification_loss(step.network(images.masked_fill(hole, GREY)), step.labels, step.task)


class _Mixture(Countermeasure, ABC):
    """Mix each image with another one of its batch and learn both labels by their shares, drawn uniformly for each image."""

    def loss(self, step: TrainingStep) -> Tensor:
        """Return the loss on mixed images, each label weighted by the share of its image."""
        images, partners = step.augmented(), self._partners(step)
        share = uniform(self._key(step, "share"), step.indices, 1)[:, 0]
        mixed, share = self._mix(images, images[partners], share, step)
        logits = step.network(mixed)
        own, other = (
            classification_loss(logits, labels, step.task, reduction="none") for labels in (step.labels, step.labels[partners])
        )
        loss = (share * own + (1 - share) * other).mean()
        return loss / step.labels.shape[1] if step.task == Task.MULTI_LABEL else loss

    @abstractmethod
    def _mix(self, images: Tensor, others: Tensor, share: Tensor, step: TrainingStep) -> tuple[Tensor, Tensor]:
        """Return mixed images and the share ``[B]`` of the first ones in them."""

    def _partners(self, step: TrainingStep) -> Tensor:
        """Return the position of each image's partner: the next in a random circle through the batch, never itself if there are two."""
        circle = uniform(self._key(step, "partner"), step.indices, 1)[:, 0].argsort(stable=True)
        return torch.empty_like(circle).scatter_(0, circle, circle.roll(-1))

    def _key(self, step: TrainingStep, what: str) -> int:
        return fold(step.seed, f"{self.name} {what}", step.number)


class Mixup(_Mixture):
    """Blend each image with another one (Zhang et al. 2018); shares are uniform, which is their Beta(1, 1)."""

    def _mix(self, images: Tensor, others: Tensor, share: Tensor, step: TrainingStep) -> tuple[Tensor, Tensor]:
        weight = share[:, None, None, None]
        return weight * images + (1 - weight) * others, share


class CutMix(_Mixture):
    """Paste a rectangle of another image into each one (Yun et al. 2019); its area is uniform before the border cuts it."""

    def _mix(self, images: Tensor, others: Tensor, share: Tensor, step: TrainingStep) -> tuple[Tensor, Tensor]:
        side = ((1 - share).sqrt() * images.shape[-1]).long()[:, None]
        box = random_boxes(images, side, self._key(step, "box"), step.indices)
        return torch.where(box, others, images), 1 - box.float().mean(dim=(1, 2, 3))


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


class AdversarialTraining(Countermeasure):
    """Train on images under PGD against the network as it stands (Madry et al. 2018), which drowns noise of the same size.

    PGD starts at a random point of the l-inf ball and takes signed steps of a quarter of its radius, with the running statistics of
    batch norm; crop and flip are those that the training step then uses.

    Args:
        radius: Bound, in units of 1/255.
        pgd_steps: Steps; a training step takes about as many times longer.
    """

    def __init__(self, radius: float = 8.0, pgd_steps: int = 7) -> None:
        require("radius", radius, 0 < radius <= 255, "it is in units of 1/255: give more than 0, such as 8")
        require("pgd_steps", pgd_steps, pgd_steps >= 1, "give 1 or more")
        self.radius = radius
        self.pgd_steps = pgd_steps

    def loss(self, step: TrainingStep) -> Tensor:
        """Return the loss on adversarial images."""
        attacked = step.images + self.perturbation(step)
        view = step.transform(attacked, step.indices, step.seed, "victim", step.number, 0, 0)
        return classification_loss(step.network(view), step.labels, step.task)

    def perturbation(self, step: TrainingStep) -> Tensor:
        """Return what PGD adds to the images ``[B, C, H, W]``."""
        radius = self.radius / 255
        draws = uniform(fold(step.seed, "adversarial start", step.number), step.indices, step.images[0].numel())
        delta = project((2 * draws.view(step.images.shape) - 1) * radius, step.images, radius)
        device = step.images.device.type
        half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
        gradient = Objective(step.network, step, step.transform, "victim", (step.number,), half=half)
        with frozen(step.network):
            for _ in range(self.pgd_steps):
                # The same number at every step keeps crop and flip.
                delta = descend(delta, -gradient(delta, 0), step.images, radius / 4, radius)
        return delta


def random_boxes(images: Tensor, side: Tensor, key: int, indices: Tensor) -> Tensor:
    """Return squares of ``side`` pixels, int64 ``[B, 1]``, around random pixels, cut by the border: bool ``[B, 1, H, W]``."""
    spans = []
    for name, size in zip(("row", "column"), images.shape[-2:], strict=True):
        places = torch.arange(size, device=images.device) - integers(fold(key, name), indices, 1, size) + side // 2
        spans.append((places >= 0) & (places < side))
    return (spans[0][:, :, None] & spans[1][:, None, :])[:, None]


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
