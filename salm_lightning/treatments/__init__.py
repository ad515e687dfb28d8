"""What an unauthorised user may do to the images, or to the training, against the noise: a file for each family, behind ``base``."""

from salm_lightning.data.prepared import Preparation
from salm_lightning.treatments.base import ImageTreatment, TrainingStep, Treatment
from salm_lightning.treatments.filters import Gaussian, Mean, Median
from salm_lightning.treatments.jpeg import JPEG
from salm_lightning.treatments.levels import BitDepth, Grey
from salm_lightning.treatments.mixing import CutMix, Cutout, Mixup
from salm_lightning.treatments.scaling import CenterCrop, Resample

TREATMENTS: dict[str, type[Treatment]] = {
    kind.__name__.lower(): kind
    for kind in (Mean, Median, Gaussian, CenterCrop, JPEG, Grey, BitDepth, Resample, Cutout, Mixup, CutMix)
}
"""Treatments by their name in files and tables; nothing at all is :class:`Treatment`."""

__all__ = [
    "JPEG",
    "TREATMENTS",
    "BitDepth",
    "CenterCrop",
    "CutMix",
    "Cutout",
    "Gaussian",
    "Grey",
    "ImageTreatment",
    "Mean",
    "Median",
    "Mixup",
    "Preparation",
    "Resample",
    "TrainingStep",
    "Treatment",
]
