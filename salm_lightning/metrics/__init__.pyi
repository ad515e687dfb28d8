from .classification import ClassificationMetrics, majority_baseline
from .figures import confusion_image, confusion_table
from .loss import classification_loss

__all__ = ["ClassificationMetrics", "classification_loss", "confusion_image", "confusion_table", "majority_baseline"]
