"""What is measured, once, for modules and audit alike."""

from salm_lightning.metrics.classification import ClassificationMetrics, majority_baseline
from salm_lightning.metrics.figures import confusion_image
from salm_lightning.metrics.loss import classification_loss

__all__ = ["ClassificationMetrics", "classification_loss", "confusion_image", "majority_baseline"]
