"""What a classifier makes of images: its logits, the features that its last layer takes, and whether it still reads protected ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


def logits_of(classifier: nn.Module, images: NDArray[np.uint8]) -> Tensor:
    """Return logits ``[B, num_classes]`` on the CPU for stored images ``[B, H, W]`` or ``[B, H, W, 3]``."""
    with _evaluating(classifier):
        return torch.cat(list(_run(classifier, images)))


def features_of(classifier: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what the last linear layer of a classifier takes, ``[B, D]``.

    Args:
        classifier: Takes images ``[B, C, H, W]`` in [0, 1].
        images: uint8 ``[B, H, W]`` or ``[B, H, W, 3]``.

    Raises:
        ConfigurationError: It has no linear layer.
    """
    layers = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ConfigurationError(f"classifier={type(classifier).__name__} has no linear layer whose input could be its features.")
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0].float().cpu())

    handle = layers[-1].register_forward_pre_hook(keep)
    try:
        logits_of(classifier, images)
    finally:
        handle.remove()
    features: NDArray[np.float32] = torch.cat(found).flatten(1).numpy()
    return features


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


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, and back again where it was training."""
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(training)


def _run(network: nn.Module, images: NDArray[np.uint8]) -> Iterator[Tensor]:
    device = next(network.parameters()).device
    for batch in to_tensor(images).split(_BATCH):  # type: ignore[no-untyped-call]
        yield network(batch.to(device).float() / 255).float().cpu()
