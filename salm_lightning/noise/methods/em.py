"""EM: error-minimising noise, sample-wise or class-wise (Huang et al. 2021; paper: Section 3.2 and Appendix C.2)."""

from __future__ import annotations

from typing import Literal, cast

from salm_lightning.errors import look_up
from salm_lightning.noise.methods.base import Perturbation, full_mask, uniform_noise
from salm_lightning.noise.methods.salm import SALM
from salm_lightning.noise.pgd import Objective, project
from salm_lightning.noise.transforms import CropFlip
from salm_lightning.tensors import Tensor, torch


class EM(SALM):
    """SALM that may change every pixel: K = 100.

    With ``noise_per: class`` all samples of a class share one noise. A step on it follows the gradients of the batch's samples of that
    class, averaged, each taken at the sample's clipped image; the noise itself is held to the radius alone. It needs one label per
    image, the persistent loop and one device, and it is released as it was trained: the last pass takes no step, because each chunk
    would make a noise of its own.

    Args:
        radius: rho_u in units of 1/255.
        step_size: alpha_u in units of 1/255.
        start: ``uniform`` in the radius, or ``zero``.
        noise_per: ``sample`` or ``class``.
        transform: T; ``None`` is ``CropFlip()``.
        eot_samples: J, transforms averaged per gradient.
    """

    def __init__(
        self,
        radius: float = 8.0,
        step_size: float = 1.6,
        start: Literal["uniform", "zero"] = "uniform",
        noise_per: Literal["sample", "class"] = "sample",
        transform: CropFlip | None = None,
        eot_samples: int = 1,
    ) -> None:
        super().__init__(
            percent=100, radius=radius, step_size=step_size, start=start, transform=transform, eot_samples=eot_samples
        )
        self.noise_per = cast(Literal["sample", "class"], look_up("noise_per", noise_per, ("sample", "class")))

    @property
    def last_pass_steps(self) -> int:
        """PGD steps of the last pass: none for a class's noise."""
        return 0 if self.noise_per == "class" else super().last_pass_steps

    def start(self, images: Tensor, indices: Tensor, seed: int, *counters: int) -> Tensor:
        """Return the first noise; that of a class, by whose number it is drawn, is not clipped to an image."""
        if self.noise_per == "class" and self.start_from == "uniform":
            return uniform_noise(images, indices, self.radius_unit, seed, *counters)
        return super().start(images, indices, seed, *counters)

    def improve(self, images: Tensor, delta: Tensor, objective: Objective, steps: int) -> Perturbation:
        """Take ``steps`` PGD steps, on each sample's noise or on each class's."""
        if self.noise_per == "sample":
            return super().improve(images, delta, objective, steps)
        labels = objective.samples.labels
        for step in range(steps):
            gradient = objective(project(delta, images, self.radius_unit), step)
            # The sign of a sum is that of the mean.
            shared = _class_sums(gradient, labels, objective.samples.num_classes)[labels]
            delta = (delta - self.step_size / 255 * shared.sign()).clamp(-self.radius_unit, self.radius_unit)
        return Perturbation(delta, full_mask(delta))


def _class_sums(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Add up the samples of each class, ``[num_classes, C, H, W]``; unlike ``index_add``, always in the same order."""
    members = labels[:, None, None, None]
    return torch.stack([torch.where(members == number, values, 0.0).sum(dim=0) for number in range(num_classes)])
