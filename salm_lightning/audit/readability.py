"""Whether a classifier that was trained on clean images still reads protected ones: the nearest thing to "our tools still work"."""

from __future__ import annotations

import math

from torch import nn

from salm_lightning.audit.networks import logits_of
from salm_lightning.audit.pairs import Pairs
from salm_lightning.audit.results import Readability
from salm_lightning.data.arrays import labels_to_tensor
from salm_lightning.metrics import ClassificationMetrics, majority_baseline


def readability(classifier: nn.Module, pairs: Pairs) -> Readability:
    """Measure a clean-trained classifier on the protected training images and on their originals.

    Args:
        classifier: Takes images ``[B, C, H, W]`` in [0, 1], returns logits ``[B, num_classes]``.
        pairs: The images.
    """
    info = pairs.info
    meters = {name: ClassificationMetrics(info.task, info.num_classes) for name in ("clean", "protected")}
    done = 0
    for chunk in pairs.chunks():
        labels = labels_to_tensor(pairs.labels[done : done + len(chunk[0])], info.task)
        for meter, images in zip(meters.values(), chunk, strict=True):
            meter.update(logits_of(classifier, images), labels)
        done += len(labels)
    (clean_acc, clean_auc), (protected_acc, protected_auc) = (
        (float(result["acc"]), float(result["auc"])) for result in (meter.compute() for meter in meters.values())
    )
    majority = majority_baseline(pairs.labels, info.task, info.num_classes)
    return Readability(clean_acc, protected_acc, _known(clean_auc), _known(protected_auc), majority)


def _known(auc: float) -> float | None:
    return auc if math.isfinite(auc) else None
