"""SALM: Sparsity-Aware Local Masking (paper: Section 3.3, Algorithm 1)."""

from __future__ import annotations

from typing import Literal

from salm_lightning.errors import ConfigurationError, look_up, require
from salm_lightning.noise.masks import Score, keep_top, masked_count, top_percent_mask
from salm_lightning.noise.methods.base import Method, Perturbation, check_step_size
from salm_lightning.noise.pgd import Objective, descend
from salm_lightning.noise.transforms import CropFlip
from salm_lightning.tensors import Tensor, torch

_TIE = 1e-4
"""Noise, in [0, 1] units, that the steepest pixel counts for more than its own: less than stored noise resolves at the usual radii."""


class SALM(Method):
    """Error-minimising noise whose every step changes only the K percent of the pixels with the largest gradient.

    Args:
        percent: K, the share of pixels that a step may change, 0 to 100. 100 is EM; 0 leaves the images as they are.
        radius: rho_u in units of 1/255.
        step_size: alpha_u in units of 1/255.
        score: What is ranked.
        mask: ``per_step`` ranks anew at every step (Algorithm 1); ``fixed`` ranks once per call and
            clears the noise outside that mask; ``strict`` steps on all pixels and then keeps the noise of K percent of them, the largest,
            and of equal ones that with the largest gradient, so that no more are ever changed (Eq. 3), also between visits.
        project: After the last step keep only the top K percent of the pixels by ``abs(delta)``.
        start: ``uniform`` in the radius (Appendix B.2), or ``zero``; ``None`` is zero for a ``strict`` mask, else uniform.
        transform: T; ``None`` is ``CropFlip()``.
        eot_samples: J, transforms averaged per gradient.

    Raises:
        ConfigurationError: A value is unknown or out of range, or a ``strict`` mask is to start with noise everywhere.
    """

    def __init__(
        self,
        percent: float = 10.0,
        radius: float = 8.0,
        step_size: float = 1.6,
        score: Score = Score.PIXEL,
        mask: Literal["per_step", "fixed", "strict"] = "per_step",
        project: bool = False,
        start: Literal["uniform", "zero"] | None = None,
        transform: CropFlip | None = None,
        eot_samples: int = 1,
    ) -> None:
        super().__init__(radius, transform, eot_samples)
        require("percent", percent, 0 <= percent <= 100, "K is a share of the pixels: give 0 to 100, such as 10")
        check_step_size(step_size, radius)
        self.percent = percent
        self.step_size = step_size
        self.score = Score(look_up("score", score, Score))
        self.mask = look_up("mask", mask, ("per_step", "fixed", "strict"))
        self.project = project
        if start is None:
            start = "zero" if mask == "strict" else "uniform"
        self.start_from = look_up("start", start, ("uniform", "zero"))
        if mask == "strict" and start == "uniform":
            raise ConfigurationError(
                "start='uniform' puts noise on every pixel, and mask='strict' keeps what is larger than a step: the pixels would be drawn "
                "at random. Give start: zero, or leave it out."
            )
        if mask == "strict" and (self.score is not Score.PIXEL or project):
            given = "project=True" if project else f"score={self.score.value!r}"
            raise ConfigurationError(f"{given} has no effect with mask='strict', which keeps the largest noise; leave it out.")

    def max_changed_pixels(self, pixels: int, steps: int) -> int | None:
        """Return the count that ``project``, a ``strict`` mask and, taking steps, a ``fixed`` one of pixels guarantee, and 0 for K = 0."""
        by_pixel = self.mask == "fixed" and self.score is not Score.ELEMENT and steps > 0
        guaranteed = self.project or self.percent == 0 or self.mask == "strict" or by_pixel
        return masked_count(self.percent, pixels) if guaranteed else None

    def start(self, images: Tensor, indices: Tensor, seed: int, *counters: int) -> Tensor:
        """Return the first noise: zero when ``start`` is ``zero`` or K is 0, else uniform in the radius."""
        if self.start_from == "zero" or self.percent == 0:
            return torch.zeros_like(images)
        return super().start(images, indices, seed, *counters)

    def improve(self, images: Tensor, delta: Tensor, objective: Objective, steps: int) -> Perturbation:
        """Take ``steps`` masked PGD steps (Eq. 6); with K = 0 none at all."""
        mask, free = torch.zeros_like(delta[:, :1]), objective.samples.free
        if self.percent == 0:
            return Perturbation(torch.zeros_like(delta), mask)
        for step in range(steps):
            grad = objective(delta, step)
            if self.mask == "strict":
                delta = descend(delta, grad, images, self.step_size / 255, self.radius_unit)
                mask = self._largest(delta, grad, free)
                delta = delta * mask
                continue
            if self.mask == "per_step" or step == 0:
                mask = top_percent_mask(grad, self.percent, self.score, free)
            if self.mask == "fixed" and step == 0:
                # A uniform start, or noise of an earlier visit, would reach beyond the mask.
                delta = delta * mask
            delta = descend(delta, mask * grad, images, self.step_size / 255, self.radius_unit)
        if self.project:
            delta = delta * keep_top(delta.abs().amax(dim=1, keepdim=True), self.percent, free)
        return Perturbation(delta, mask)

    def _largest(self, delta: Tensor, grad: Tensor, free: Tensor | None) -> Tensor:
        size, slope = (values.abs().sum(dim=1, keepdim=True) for values in (delta, grad))
        tie = slope / slope.amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
        return keep_top(size + _TIE * tie, self.percent, free)
