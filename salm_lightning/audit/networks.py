"""What a classifier makes of images: its logits, the features that its last layer takes, and whether it still reads protected ones."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from salm_lightning.audit.pairs import Pairs
from salm_lightning.audit.results import Readability
from salm_lightning.data.arrays import labels_to_tensor, to_tensor
from salm_lightning.errors import ConfigurationError
from salm_lightning.metrics import ClassificationMetrics, majority_baseline

_BATCH = 256


@torch.inference_mode()
def logits_of(classifier: nn.Module, images: NDArray[np.uint8]) -> Tensor:
    """Return logits ``[B, num_classes]`` on the CPU for stored images ``[B, H, W]`` or ``[B, H, W, 3]``; the network gets [0, 1]."""
    training, device = classifier.training, next(classifier.parameters()).device
    batches = to_tensor(images).split(_BATCH)  # type: ignore[no-untyped-call]
    classifier.eval()
    try:
        return torch.cat([classifier(batch.to(device).float() / 255).float().cpu() for batch in batches])
    finally:
        classifier.train(training)


def features_of(classifier: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what the last linear layer of a classifier takes, ``[B, D]``, for stored images ``[B, H, W]`` or ``[B, H, W, 3]``.

    Raises:
        ConfigurationError: It has no linear layer.
    """
    layers = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ConfigurationError(f"classifier={type(classifier).__name__} has no linear layer whose input could be its features.")
    found: list[Tensor] = []
    with layers[-1].register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].float().cpu())):
        logits_of(classifier, images)
    features: NDArray[np.float32] = torch.cat(found).flatten(1).numpy()
    return features


def readability(classifier: nn.Module, pairs: Pairs) -> Readability:
    """Measure a clean-trained classifier on the protected training images and on their originals."""
    info, done = pairs.info, 0
    labels = labels_to_tensor(pairs.labels, info.task)
    meters = [ClassificationMetrics(info.task, info.num_classes) for _ in ("clean", "protected")]
    for chunk in pairs.chunks():
        for meter, images in zip(meters, chunk, strict=True):
            meter.update(logits_of(classifier, images), labels[done : done + len(images)])
        done += len(chunk[0])
    clean, protected = (
        {name: float(value) for name, value in meter.compute().items() if name in ("acc", "auc")} for meter in meters
    )
    return Readability(
        clean_acc=clean["acc"],
        protected_acc=protected["acc"],
        clean_auc=None if math.isnan(clean["auc"]) else clean["auc"],
        protected_auc=None if math.isnan(protected["auc"]) else protected["auc"],
        majority=majority_baseline(pairs.labels, info.task, info.num_classes),
    )
