"""EM: error-minimising noise, sample-wise (Huang et al. 2021; paper: Section 3.2 and Appendix C.2)."""

from __future__ import annotations

from typing import Literal

from salm_lightning.noise.methods.salm import SALM
from salm_lightning.noise.transforms import CropFlip


class EM(SALM):
    """SALM that may change every pixel: K = 100.

    Args:
        radius: rho_u in units of 1/255.
        step_size: alpha_u in units of 1/255.
        start: ``uniform`` in the radius, or ``zero``.
        transform: T; ``None`` is ``CropFlip()``.
        eot_samples: J, transforms averaged per gradient.

    Raises:
        ConfigurationError: A value is out of range.
    """

    def __init__(
        self,
        radius: float = 8.0,
        step_size: float = 1.6,
        start: Literal["uniform", "zero"] = "uniform",
        transform: CropFlip | None = None,
        eot_samples: int = 1,
    ) -> None:
        super().__init__(
            percent=100, radius=radius, step_size=step_size, start=start, transform=transform, eot_samples=eot_samples
        )
