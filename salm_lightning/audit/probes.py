"""What models make of the images: whether a classifier still reads protected ones, and whether the noise alone tells the classes apart."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from salm_lightning.audit.pairs import Pairs
from salm_lightning.audit.results import Readability, Separability
from salm_lightning.countermeasures.shallow import fitted
from salm_lightning.data import Task
from salm_lightning.data.arrays import labels_to_tensor, to_tensor
from salm_lightning.errors import ConfigurationError
from salm_lightning.metrics import ClassificationMetrics, majority_baseline

_BATCH = 256
_MOST_IMAGES = 5000
_MOST_VALUES = 2**26  # float32: 256 MiB; 28532 RGB images of 28 pixels, 445 of 224
_HELD_OUT = 0.2


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
    measured = [meter.compute() for meter in meters]
    acc = [float(values["acc"]) for values in measured]
    auc = [None if math.isnan(values["auc"]) else float(values["auc"]) for values in measured]
    return Readability(acc[0], acc[1], auc[0], auc[1], majority_baseline(pairs.labels, info.task, info.num_classes))


def linear_separability(pairs: Pairs, seed: int = 0) -> Separability | None:
    """Fit logistic regression to the noise of some images and measure it on others'; ``None`` if few images or one class leave no fit.

    Args:
        pairs: The images; a sample of at most 5000, and fewer where images are large, is taken.
        seed: Settles the sample and which fifth of it is held out.
    """
    count = min(len(pairs), _MOST_IMAGES, max(1, _MOST_VALUES // pairs.values))
    order = np.random.default_rng(seed).permutation(len(pairs))[:count]
    held_out = round(_HELD_OUT * count)
    test, train = order[:held_out], order[held_out:]
    labels, info = pairs.labels, pairs.info
    multi_label = info.task is Task.MULTI_LABEL
    targets = labels if multi_label else labels[:, 0]
    if held_out == 0 or (not multi_label and len(np.unique(targets[train])) < 2):
        return None
    noise, held_out_noise = noise_of(pairs, train), noise_of(pairs, test)
    scale = float(noise.std()) or 1.0
    noise /= scale  # in place: they may be large
    held_out_noise /= scale
    model = fitted(LogisticRegression(max_iter=200), noise, targets[train], info.task)
    right = np.asarray(model.predict(held_out_noise) == targets[test])
    return Separability(float(right.mean()), majority_baseline(labels[test], info.task, info.num_classes), count, held_out)


def noise_of(pairs: Pairs, positions: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return protected minus original in grey levels, float32 ``[B, values]``, read some megabytes at a time."""
    noise, done = np.empty((len(positions), pairs.values), dtype=np.float32), 0
    for original, protected in pairs.chunks(positions):
        noise[done : done + len(original)] = (protected.astype(np.int16) - original).reshape(len(original), -1)
        done += len(original)
    return noise
