"""Whether a classifier that was trained on clean images still reads protected ones: the nearest thing to "our tools still work"."""

from __future__ import annotations

import math

from torch import nn

from salm_lightning.audit.networks import logits_of
from salm_lightning.audit.pairs import Pairs
from salm_lightning.data.arrays import labels_to_tensor
from salm_lightning.metrics import ClassificationMetrics, majority_baseline


def readability(classifier: nn.Module, pairs: Pairs) -> dict[str, float | None]:
    """Measure a clean-trained classifier on the protected training images and on their originals.

    It has usually been trained on those originals, so ``clean_acc`` is no estimate for new images; what counts is the difference.

    Args:
        classifier: Takes images ``[B, C, H, W]`` in [0, 1], returns logits ``[B, num_classes]``.
        pairs: The images.

    Returns:
        ``clean_acc``, ``protected_acc``, ``clean_auc`` and ``protected_auc``, in [0, 1] (an AUC is ``None`` where the labels have one
        class only), and ``majority``, the accuracy of the most common answer.
    """
    info = pairs.info
    meters = {name: ClassificationMetrics(info.task, info.num_classes) for name in ("clean", "protected")}
    done = 0
    for chunk in pairs.chunks():
        labels = labels_to_tensor(pairs.labels[done : done + len(chunk[0])], info.task)
        for meter, images in zip(meters.values(), chunk, strict=True):
            meter.update(logits_of(classifier, images), labels)
        done += len(labels)
    results = {name: meter.compute() for name, meter in meters.items()}
    values = {f"{name}_{metric}": float(results[name][metric]) for metric in ("acc", "auc") for name in results}
    values["majority"] = majority_baseline(pairs.labels, info.task, info.num_classes)
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
