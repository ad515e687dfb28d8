from .classification import ClassificationMetrics, majority_baseline
from .figures import confusion_image
from .loss import classification_loss

__all__ = ["ClassificationMetrics", "classification_loss", "confusion_image", "majority_baseline"]
