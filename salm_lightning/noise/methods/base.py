"""The interface of a method: how noise starts and how it is improved against a source model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import Any, ClassVar, Literal, NamedTuple

from salm_lightning.errors import require
from salm_lightning.noise.draws import fold, uniform
from salm_lightning.noise.pgd import Objective, project
from salm_lightning.noise.transforms import CropFlip
from salm_lightning.tensors import Tensor, torch


class Perturbation(NamedTuple):
    """Noise and the mask of its last step.

    Attributes:
        delta: ``[B, C, H, W]`` in [0, 1] units, within the method's bound; where it leads beyond [0, 1] the image is clipped.
        mask: ``[B, 1, H, W]`` or ``[B, C, H, W]`` of 0 and 1: what the last step was allowed to change.
    """

    delta: Tensor
    mask: Tensor


class Described:
    """What is known, in files and tables, by a name and its settings: methods and countermeasures."""

    @property
    def name(self) -> str:
        """Lower-case name for files and tables."""
        return type(self).__name__.lower()

    def settings(self) -> dict[str, Any]:
        """Return the name and every setting as JSON values; an enum member would make checkpoints unreadable without its class."""
        plain = {
            key: value.settings() if isinstance(value, CropFlip) else value.value if isinstance(value, StrEnum) else value
            for key, value in vars(self).items()
        }
        return {"name": self.name, **plain}


class Method(Described, ABC):
    """A way to make noise.

    A method is stateless: everything that depends on the run comes in as an argument, so one object serves training, the last pass and
    any number of ranks. ``docs/extending.md`` adds one in a file. Every constructor refuses values that are unknown or out of range.

    Args:
        radius: Bound of the noise rho_u, in units of 1/255.
        transform: T, drawn for every gradient and for the source model's step; ``None`` is ``CropFlip()``.
        eot_samples: J, transforms averaged per gradient.

    Attributes:
        norm: Norm of the bound that the released bytes keep, ``linf`` or ``l2``; see :class:`~salm_lightning.release.manifest.Bound`.
        noise_per: What has a noise of its own: each ``sample``, or each ``class``, whose samples share it.
        trains_source_on: What the source model is trained on: images with the noise, which is then improved at each visit; clean
            images, with noise in the last pass alone; or ``None`` for a method without a source model.

    Raises:
        ConfigurationError: A value is out of range.
    """

    norm: str = "linf"
    noise_per: Literal["sample", "class"] = "sample"
    trains_source_on: ClassVar[Literal["protected", "clean"] | None] = "protected"

    def __init__(self, radius: float = 8.0, transform: CropFlip | None = None, eot_samples: int = 1) -> None:
        require("radius", radius, 1 <= radius <= 255, "it is in units of 1/255: give 1 to 255, such as 8")
        require("eot_samples", eot_samples, eot_samples >= 1, "give 1 or more")
        self.radius = radius
        self.transform = transform or CropFlip()
        self.eot_samples = eot_samples

    @property
    def radius_unit(self) -> float:
        """The radius for images in [0, 1]."""
        return self.radius / 255

    @property
    def last_pass_steps(self) -> int:
        """PGD steps of the last pass unless the module is told another number."""
        return 0 if self.trains_source_on is None else 10

    def settings(self) -> dict[str, Any]:
        """Return the method's name and every setting as JSON values; ``start`` under its name, which as an attribute is a method's."""
        values = super().settings()
        return {"start" if name == "start_from" else name: value for name, value in values.items()}

    def max_changed_pixels(self, pixels: int, steps: int) -> int | None:
        """Say how many of an image's pixels a last pass of so many steps changes at most; ``None`` is no promise."""
        return None

    def start(self, images: Tensor, indices: Tensor, seed: int, *counters: int) -> Tensor:
        """Return the first noise of each sample: uniform in [-radius, radius] (paper: Appendix B.2), within [0, 1] of the images.

        Args:
            images: Clean images in [0, 1], ``[B, C, H, W]``.
            indices: Global sample indices ``[B]``; the classes where a class has one noise.
            seed: The run's seed.
            *counters: Further counters where a sample starts more than once.
        """
        return project(uniform_noise(images, indices, self.radius_unit, seed, *counters), images, self.radius_unit)

    @abstractmethod
    def improve(self, images: Tensor, delta: Tensor, objective: Objective, steps: int) -> Perturbation:
        """Improve noise by ``steps`` steps.

        Args:
            images: Clean images in [0, 1], ``[B, C, H, W]``.
            delta: Noise to begin with.
            objective: The source model's loss on these images, as a function of the noise, and what else is known of them.
            steps: PGD steps K_a.
        """


def check_step_size(step_size: float, radius: float) -> None:
    """Refuse a step size alpha_u that is not above 0 and at most the radius, both in units of 1/255."""
    way_out = f"it is in units of 1/255: give more than 0 and at most the radius ({radius:g})"
    require("step_size", step_size, 0 < step_size <= radius, way_out)


def uniform_noise(images: Tensor, indices: Tensor, radius: float, seed: int, *counters: int) -> Tensor:
    """Draw noise in [-radius, radius] for each index, in the shape of ``images``."""
    draws = uniform(fold(seed, "start", *counters), indices, images[0].numel()).view(images.shape)
    return (2 * draws - 1) * radius


def full_mask(delta: Tensor) -> Tensor:
    """Return the mask that allows every pixel, ``[B, 1, H, W]``."""
    return torch.ones_like(delta[:, :1])
