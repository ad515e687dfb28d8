"""TAP: targeted adversarial poisoning (Fowl et al. 2021; paper: "AdvT", Section 4.1 and Appendix C.1)."""

from __future__ import annotations

from math import inf
from typing import Literal

from salm_lightning.data.base import Task
from salm_lightning.errors import look_up, require
from salm_lightning.noise.draws import fold, normal
from salm_lightning.noise.methods.base import Method, Perturbation, check_step_size, full_mask
from salm_lightning.noise.pgd import Objective, descend, project
from salm_lightning.noise.transforms import CropFlip
from salm_lightning.tensors import Tensor


class TAP(Method):
    """Adversarial noise against a source model that was trained on the clean images; a victim learns the wrong classes' features.

    Training takes no PGD step and stores no noise. The last pass makes all of it: from a random start, signed steps towards the
    class after an image's own, ``(y + 1) mod C``, or with several labels towards the opposite of each. Steps may be far below the
    resolution of stored noise, which is not used.

    Args:
        radius: rho_u in units of 1/255.
        step_size: alpha_u in units of 1/255.
        targeted: Whether to descend to the other class; else ascend away from the own one (paper: Eq. 7).
        restarts: Runs from different starts, of which each image keeps the one that ends at the best loss. All ends are compared under
            one draw of the transforms.
        transform: T, also of the source model's training; ``None`` is ``CropFlip()``.
        eot_samples: J, transforms averaged per gradient.
        start: ``uniform`` in the radius, or ``normal``, with the radius as its standard deviation, clipped to it. Its authors begin there
            and take steps of 0.4.
    """

    trains_source_on = "clean"

    def __init__(
        self,
        radius: float = 8.0,
        step_size: float = 0.064,
        targeted: bool = True,
        restarts: int = 1,
        transform: CropFlip | None = None,
        eot_samples: int = 1,
        start: Literal["uniform", "normal"] = "uniform",
    ) -> None:
        super().__init__(radius, transform, eot_samples)
        check_step_size(step_size, radius)
        require("restarts", restarts, restarts >= 1, "give 1 or more")
        self.step_size = step_size
        self.start_from = look_up("start", start, ("uniform", "normal"))
        self.targeted = targeted
        self.restarts = restarts

    @property
    def last_pass_steps(self) -> int:
        """PGD steps of the last pass: 250 of 0.064 cross the radius twice."""
        return 250

    def start(self, images: Tensor, indices: Tensor, seed: int, *counters: int) -> Tensor:
        """Return the first noise, within the radius and [0, 1] of the images."""
        if self.start_from == "uniform":
            return super().start(images, indices, seed, *counters)
        draws = normal(fold(seed, "start", *counters), indices, images[0].numel()).view(images.shape).to(images.dtype)
        return project(self.radius_unit * draws, images, self.radius_unit)

    def improve(self, images: Tensor, delta: Tensor, objective: Objective, steps: int) -> Perturbation:
        """Run PGD from ``delta`` and from ``restarts - 1`` further starts, and keep each image's best end."""
        samples = objective.samples
        labels = samples.labels
        others = 1 - labels if samples.task == Task.MULTI_LABEL else (labels + 1) % samples.num_classes
        aim, sign = (objective.towards(others), 1.0) if self.targeted else (objective, -1.0)
        best, lowest = delta, delta.new_full((len(delta),), inf)
        for restart in range(self.restarts):
            noise = delta if restart == 0 else self.start(images, samples.indices, samples.seed, restart)
            for step in range(restart * steps, (restart + 1) * steps):
                noise = descend(noise, sign * aim(noise, step), images, self.step_size / 255, self.radius_unit)
            if self.restarts == 1:
                return Perturbation(noise, full_mask(noise))
            loss = sign * aim.losses(noise, self.restarts * steps)
            better = loss < lowest
            lowest = loss.where(better, lowest)
            best = noise.where(better[:, None, None, None], best)
        return Perturbation(best, full_mask(best))
