"""What a method promises about the stored images, and what was measured on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from salm_lightning.checked import Count
from salm_lightning.errors import ConfigurationError, look_up

NORMS = ("linf", "l2")
_ROUNDING = 1e-9  # of a square root in float64


@dataclass(frozen=True)
class Measured:
    """How far protected images are from their originals. A pixel is *changed* if any of its channels differs.

    Attributes:
        images: Number of images compared.
        images_unchanged: Images that are identical to their originals.
        linf: Largest difference of any value, in grey levels (0 to 255).
        rms_max: Root mean square of the differences of an image's values, in grey levels, of the image where it is largest: its l2 norm
            over the square root of the number of values.
        l0_mean: Changed pixels per image, mean over the images.
        l0_max: Changed pixels of the image with the most.
        changed_share: Changed pixels over all pixels, in [0, 1].
        ssim: Structural similarity (Gaussian window of 11 pixels, sigma 1.5, data range 1), mean over the images.
        psnr: Peak signal-to-noise ratio in dB with the peak at 255, mean over the images that differ from their
            originals (it is infinite for the others); None when none differs.
    """

    images: Count
    images_unchanged: Count
    linf: Count
    rms_max: float
    l0_mean: float
    l0_max: Count
    changed_share: float
    ssim: float
    psnr: float | None


@dataclass(frozen=True)
class Bound:
    """What a method promises about every image, checked on the stored bytes.

    Attributes:
        norm: ``"linf"``: no value of an image moves by more than ``radius``. ``"l2"``: the l2 norm of an image's differences is at most
            ``radius`` times the square root of the number of its values, that is, their root mean square is at most ``radius``, exactly,
            rounding to bytes included.
        radius: In units of 1/255.
        max_changed_pixels: Most pixels that may change in one image, for masks that guarantee it; None for no such promise.
    """

    norm: str
    radius: float
    max_changed_pixels: int | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Bound:
        """Build a bound from plain values.

        Raises:
            ConfigurationError: A key is missing or unknown, or a value cannot be.
        """
        if not {"norm", "radius"} <= set(values) <= {"norm", "radius", "max_changed_pixels"}:
            raise ConfigurationError(f"bound={dict(values)!r} needs the keys norm, radius and, if wanted, max_changed_pixels.")
        radius, pixels = values["radius"], values.get("max_changed_pixels")
        if isinstance(radius, bool) or not isinstance(radius, int | float) or not 0 <= radius <= 255:
            raise ConfigurationError(f"bound radius={radius!r} must be a number from 0 to 255, in units of 1/255.")
        if pixels is not None and (isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 0):
            raise ConfigurationError(f"bound max_changed_pixels={pixels!r} must be a whole number from 0, or left out.")
        return cls(look_up("bound norm", str(values["norm"]), NORMS), float(radius), pixels)

    def to_dict(self) -> dict[str, Any]:
        """Return the values under their names, ready for JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @property
    def grey_levels(self) -> int:
        """Largest difference between stored bytes that the radius allows."""
        return math.floor(self.radius)

    def reached(self, measured: Measured) -> str:
        """Say how much of the bound on the norm was used."""
        if self.norm == "l2":
            return f"largest root mean square difference {measured.rms_max:.4f} grey levels, bound {self.radius:g}"
        return f"largest difference {measured.linf} grey levels, bound {self.grey_levels}"

    def violation(self, measured: Measured) -> str | None:
        """Say how measured values exceed the bound; None when they do not."""
        if self.norm == "linf" and measured.linf > self.grey_levels:
            return f"a value differs by {measured.linf} grey levels, the bound is {self.grey_levels}"
        if self.norm == "l2" and measured.rms_max > self.radius * (1 + _ROUNDING):
            return f"the values of an image differ by {measured.rms_max:.6g} grey levels (root mean square), the bound is {self.radius:g}"
        if self.max_changed_pixels is not None and measured.l0_max > self.max_changed_pixels:
            return f"an image has {measured.l0_max} changed pixels, the bound is {self.max_changed_pixels}"
        return None
