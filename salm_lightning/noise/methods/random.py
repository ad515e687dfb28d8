"""Random noise: the control that any real method has to beat."""

from __future__ import annotations

from salm_lightning.noise.methods.base import Method, Perturbation, full_mask
from salm_lightning.noise.pgd import Objective
from salm_lightning.tensors import Tensor


class Random(Method):
    """Uniform noise in the radius, with no model behind it.

    Args:
        radius: rho_u in units of 1/255.
    """

    trains_source_on = None

    def __init__(self, radius: float = 8.0) -> None:
        super().__init__(radius)

    def improve(self, images: Tensor, delta: Tensor, objective: Objective, steps: int) -> Perturbation:
        """Return the noise as it is."""
        return Perturbation(delta, full_mask(delta))
