"""What an unauthorised user may do to the images, or to the training, against the noise; all of it behind ``base``."""

from salm_lightning.countermeasures.base import Countermeasure, ImageCountermeasure, TrainingStep
from salm_lightning.countermeasures.finetuning import FineTune
from salm_lightning.countermeasures.images import (
    JPEG,
    BitDepth,
    CenterCrop,
    Gaussian,
    Grey,
    Mean,
    Median,
    Resample,
    TotalVariation,
)  # fmt: skip
from salm_lightning.countermeasures.projection import OrthogonalProjection
from salm_lightning.countermeasures.recipes import AdamWRecipe, MedMNISTRecipe, NoAugment
from salm_lightning.countermeasures.shallow import HogSvm, LogisticRegression, NearestNeighbours, RandomForest, Shallow
from salm_lightning.countermeasures.training import AdversarialTraining, CutMix, Cutout, Mixup, StrongAugment, UEraserMax
from salm_lightning.data.prepared import Preparation

COUNTERMEASURES: dict[str, type[Countermeasure]] = {
    kind.__name__.lower(): kind
    for kind in (
        Mean, Median, Gaussian, CenterCrop, JPEG, Grey, BitDepth, Resample, Cutout, Mixup, CutMix, StrongAugment, UEraserMax,
        AdversarialTraining, OrthogonalProjection, TotalVariation, FineTune, NoAugment, MedMNISTRecipe, AdamWRecipe,
    )
}  # fmt: skip
"""Countermeasures by their name in files and tables; nothing at all is :class:`Countermeasure`."""
SHALLOW: dict[str, type[Shallow]] = {
    kind.__name__.lower(): kind for kind in (LogisticRegression, RandomForest, NearestNeighbours, HogSvm)
}
"""Models that are no networks, which audits train, by their name."""

__all__ = [
    "COUNTERMEASURES", "JPEG", "SHALLOW", "AdamWRecipe", "AdversarialTraining", "BitDepth", "CenterCrop", "Countermeasure", "CutMix",
    "Cutout", "FineTune", "Gaussian", "Grey", "HogSvm", "ImageCountermeasure", "LogisticRegression", "Mean", "MedMNISTRecipe", "Median",
    "Mixup", "NearestNeighbours", "NoAugment", "OrthogonalProjection", "Preparation", "RandomForest", "Resample", "Shallow",
    "StrongAugment", "TotalVariation", "TrainingStep", "UEraserMax",
]  # fmt: skip
