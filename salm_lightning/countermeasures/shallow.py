"""Models that are no networks, trained on the stored bytes: what is left for those who take the simplest thing that may work."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from salm_lightning.countermeasures.base import Countermeasure
from salm_lightning.data.base import DatasetInfo, Split, Task
from salm_lightning.errors import ConfigurationError


class Shallow(Countermeasure, ABC):
    """Train no network but a model of scikit-learn's, which audits do; defaults are scikit-learn's where nothing else is said.

    Attributes:
        most_images: A larger training split is sampled.
    """

    most_images: ClassVar[int] = 10_000

    def fit(self, train: Split, info: DatasetInfo, seed: int) -> Callable[[NDArray[np.uint8]], Tensor]:
        """Train on a split.

        Returns:
            What makes scores, float32 ``[B, num_classes]`` in [0, 1], of stored images ``[B, H, W]`` or ``[B, H, W, 3]``.

        Raises:
            ConfigurationError: The training images are all of one class.
        """
        rows = np.sort(np.random.default_rng(seed).permutation(len(train))[: self.most_images])
        multi_label = info.task is Task.MULTI_LABEL
        labels = train.labels[rows] if multi_label else train.labels[rows, 0]
        if not multi_label and len(np.unique(labels)) < 2:
            raise ConfigurationError(f"countermeasure={self.name} needs training images of two classes or more.")
        model = fitted(self.estimator(seed), self.features(np.asarray(train.images[rows])), labels, info.task)
        return lambda images: _scores(model, self.features(images), info)

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what the model sees of stored images: ``[B, D]``, by default the values in [0, 1]."""
        values: NDArray[np.float32] = images.reshape(len(images), -1).astype(np.float32)
        return values / np.float32(255)

    @abstractmethod
    def estimator(self, seed: int) -> Any:
        """Return scikit-learn's classifier, untrained."""

    def initialise(self, network: nn.Module) -> None:
        """Refuse to be given to a network.

        Raises:
            ConfigurationError: Always.
        """
        raise ConfigurationError(
            f"countermeasure={self.name} trains no network; it is for audits: salm-cli audit RELEASE --countermeasures {self.name}"
        )


class LogisticRegression(Shallow):
    """Fit a logistic regression to standardised pixels."""

    def estimator(self, seed: int) -> Any:
        """Return it, with at most 500 iterations."""
        from sklearn.linear_model import LogisticRegression as Classifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        return make_pipeline(StandardScaler(), Classifier(max_iter=500))


class RandomForest(Shallow):
    """Fit a random forest to the pixels (Breiman 2001)."""

    def estimator(self, seed: int) -> Any:
        """Return 200 trees."""
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(200, random_state=seed, n_jobs=-1)


class NearestNeighbours(Shallow):
    """Let the five nearest training images vote, by the distance of their pixels."""

    def estimator(self, seed: int) -> Any:
        """Return the vote."""
        from sklearn.neighbors import KNeighborsClassifier

        return KNeighborsClassifier(5, n_jobs=-1)


class HogSvm(Shallow):
    """Fit a linear support vector machine to histograms of oriented gradients (Dalal and Triggs 2005), on four by four cells."""

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the histograms, of the channel with the largest gradient where there are colours."""
        from skimage.feature import hog

        colour, cell = -1 if images.ndim == 4 else None, (images.shape[1] // 4, images.shape[2] // 4)
        found = [hog(image, pixels_per_cell=cell, cells_per_block=(2, 2), channel_axis=colour) for image in images]
        return np.asarray(found, dtype=np.float32)

    def estimator(self, seed: int) -> Any:
        """Return the machine, whose distances from the boundary stand for logits."""
        from sklearn.svm import LinearSVC

        return LinearSVC(random_state=seed)


def fitted(estimator: Any, features: NDArray[np.float32], labels: NDArray[np.integer], task: Task) -> Any:
    """Return scikit-learn's classifier, trained on ``[B, D]`` and class indices ``[B]``, or for several labels 0 and 1, ``[B, L]``."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.multiclass import OneVsRestClassifier

    model = OneVsRestClassifier(estimator) if task is Task.MULTI_LABEL else estimator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # noise without structure may be fitted for ever
        warnings.filterwarnings("ignore", message="Label .* is present in all training examples", category=UserWarning)
        return model.fit(features, labels)


def _scores(model: Any, features: NDArray[np.float32], info: DatasetInfo) -> Tensor:
    """Return the model's probabilities, float32 ``[B, num_classes]``; of one without, softmax or sigmoid of its distances."""
    known, several = hasattr(model, "predict_proba"), info.task is Task.MULTI_LABEL
    values = torch.from_numpy(np.asarray(model.predict_proba(features) if known else model.decision_function(features))).float()
    if values.ndim == 1:  # of two classes the second one's
        values = torch.stack([torch.zeros_like(values), values], dim=1)
    if not known:
        values = values.sigmoid() if several else values.softmax(dim=1)
    if several:
        return values
    scores = torch.zeros(len(values), info.num_classes)  # a class without training images is never guessed
    scores[:, torch.from_numpy(np.asarray(model.classes_, dtype=np.int64))] = values
    return scores
