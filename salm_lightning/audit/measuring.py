"""Measuring pairs of images, light enough to be done by many processes."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing import parent_process
from typing import NamedTuple

import numpy as np
import torch

from salm_lightning.audit.segmentation import Segmenter, compare_masks
from salm_lightning.audit.shown import Stored, eight_bits
from salm_lightning.audit.similarity import PerImage, Similarity


class Part(NamedTuple):
    """What was measured of some pairs: likeness, and how much their segmentation changes; each measure ``[B]``."""

    similarity: PerImage
    masks: PerImage


def measure(white: int, segmenter: Segmenter | None, original: Stored, protected: Stored) -> Part:
    """Measure some pairs of one size, integers from 0 to ``white``."""
    if parent_process() is not None:
        torch.set_num_threads(1)  # there is a process for each core
    meter = Similarity(white)
    meter.update(original, protected)
    if segmenter is None:
        return Part(meter.per_image(), {})
    masks = (segmenter(eight_bits(images, white)) for images in (original, protected))
    return Part(meter.per_image(), compare_masks(*masks))


def joined(parts: Sequence[PerImage]) -> PerImage:
    """Return measures of consecutive pairs as those of all."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
