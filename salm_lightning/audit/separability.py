"""Whether the noise alone tells the classes apart to a linear model, which is what makes a shortcut (paper: Fig. 5)."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from salm_lightning.audit.pairs import Pairs
from salm_lightning.audit.results import Separability
from salm_lightning.data import Task
from salm_lightning.metrics import majority_baseline

_MOST_IMAGES = 5000
_MOST_VALUES = 2**26  # float32: 256 MiB; 28532 RGB images of 28 pixels, 445 of 224
_HELD_OUT = 0.2


def linear_separability(pairs: Pairs, seed: int = 0) -> Separability | None:
    """Fit logistic regression to the noise of some images and measure it on that of others.

    Args:
        pairs: The images; a sample of at most 5000, and fewer where images are large, is taken.
        seed: Settles the sample and which fifth of it is held out.

    Returns:
        ``None`` where too few images or a single class leave nothing to fit.
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
    model = OneVsRestClassifier(LogisticRegression(max_iter=200)) if multi_label else LogisticRegression(max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # noise without structure may be fitted for ever
        warnings.filterwarnings("ignore", message="Label .* is present in all training examples", category=UserWarning)
        model.fit(noise, targets[train])
    right = np.asarray(model.predict(held_out_noise) == targets[test])
    return Separability(float(right.mean()), majority_baseline(labels[test], info.task, info.num_classes), count, held_out)


def noise_of(pairs: Pairs, positions: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return protected minus original in grey levels, float32 ``[B, values]``, read some megabytes at a time."""
    noise, done = np.empty((len(positions), pairs.values), dtype=np.float32), 0
    for original, protected in pairs.chunks(positions):
        noise[done : done + len(original)] = (protected.astype(np.int16) - original).reshape(len(original), -1)
        done += len(original)
    return noise
