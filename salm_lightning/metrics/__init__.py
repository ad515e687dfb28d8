"""What is measured, once, for modules and audit alike."""

from salm_lightning.metrics.classification import ClassificationMetrics, majority_baseline
from salm_lightning.metrics.figures import confusion_image, confusion_table
from salm_lightning.metrics.loss import classification_loss

__all__ = ["ClassificationMetrics", "classification_loss", "confusion_image", "confusion_table", "majority_baseline"]
