"""What an unauthorised user may do to the images, or to the training, against the noise: one file each, behind ``base``."""

from salm_lightning.treatments.base import Preparation, TrainingStep, Treatment

__all__ = ["Preparation", "TrainingStep", "Treatment"]
