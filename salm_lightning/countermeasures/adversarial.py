"""Adversarial training: the images of every step are first made as hard as a radius allows."""

from __future__ import annotations

import torch
from torch import Tensor

from salm_lightning.countermeasures.base import Countermeasure, TrainingStep
from salm_lightning.errors import require
from salm_lightning.metrics import classification_loss
from salm_lightning.noise.draws import fold, uniform
from salm_lightning.noise.pgd import Objective, descend, frozen, project


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
