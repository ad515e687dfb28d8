from .classification import ClassificationMetrics, classification_loss, majority_baseline
from .figures import confusion_image

__all__ = ["ClassificationMetrics", "classification_loss", "confusion_image", "majority_baseline"]
