"""A measure of many images in four numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from salm_lightning.audit.results import Extremes

_TAIL = 5  # percent


def summarise(values: NDArray[np.float64], rows: NDArray[np.int64], *, high_is_bad: bool) -> Extremes | None:
    """Return mean, 5th percentile on the bad side, and the worst image.

    Args:
        values: A measure per image, ``[N]``; those that are not finite, such as the PSNR of equal images, stay out.
        rows: Positions of the images in the training split, ``[N]``.
        high_is_bad: Whether a larger value is worse.

    Returns:
        ``None`` when no value is finite.
    """
    finite = np.isfinite(values)
    values, rows = values[finite], rows[finite]
    if len(values) == 0:
        return None
    worst = int(values.argmax() if high_is_bad else values.argmin())
    tail = np.percentile(values, 100 - _TAIL if high_is_bad else _TAIL)
    return Extremes(float(values.mean()), float(tail), float(values[worst]), int(rows[worst]))
