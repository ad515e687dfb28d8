"""Image classifiers by name, for source models and victims alike."""

from salm_lightning.models.classifier import ARCHITECTURES, Classifier, build_classifier

__all__ = ["ARCHITECTURES", "Classifier", "build_classifier"]
