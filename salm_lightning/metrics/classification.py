"""The loss, accuracy, AUC, balanced accuracy, recall and confusion of the four tasks, as MedMNIST and scikit-learn define them."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import classification

from salm_lightning.data.base import Task

SCALARS = ("acc", "auc", "balanced_acc")
"""Metrics of every task that are single numbers, in the order in which they are shown."""
_THRESHOLD = 0.5


class ClassificationMetrics(nn.Module):
    """Collects predictions over a split and measures them; torchmetrics holds the state and synchronises ranks.

    Every number is what ``medmnist.Evaluator`` and scikit-learn return for the same softmax or sigmoid scores in float32.

    Args:
        task: What is predicted.
        num_classes: Number of classes (two for a binary task), or of labels for a multi-label task.

    Attributes:
        scalars: Names of the metrics that are single numbers, in the order in which they are shown.
    """

    def __init__(self, task: Task, num_classes: int) -> None:
        super().__init__()
        self.task = Task(task)
        self.num_classes = num_classes
        self.scalars: tuple[str, ...] = SCALARS
        # validate_args=False: torchmetrics' checks of every batch read values back from the device, which stalls it.
        self.confusion: classification.MulticlassConfusionMatrix | classification.MultilabelConfusionMatrix
        self.auroc: classification.BinaryAUROC | classification.MulticlassAUROC | classification.MultilabelAUROC
        if self.task == Task.MULTI_LABEL:
            self.confusion = classification.MultilabelConfusionMatrix(num_classes, threshold=_THRESHOLD, validate_args=False)
            self.auroc = classification.MultilabelAUROC(num_classes, average="none", validate_args=False)
        else:
            self.confusion = classification.MulticlassConfusionMatrix(num_classes, validate_args=False)
            self.auroc = classification.MulticlassAUROC(num_classes, average="none", validate_args=False)
        if self.task == Task.BINARY:
            self.auroc = classification.BinaryAUROC(validate_args=False)
        if self.task == Task.ORDINAL:
            self.scalars += ("kappa",)
            self.kappa = classification.MulticlassCohenKappa(num_classes, weights="quadratic", validate_args=False)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            logits: ``[B, num_classes]``, before softmax or sigmoid, of any floating type.
            labels: int64 class indices ``[B]``; for a multi-label task 0 and 1, ``[B, num_classes]``.
        """
        # Scores, never logits: torchmetrics guesses batch by batch whether it was given logits, and is wrong for a batch
        # whose logits all happen to lie in [0, 1].
        values = logits.detach().float()
        self.update_scores(values.sigmoid() if self.task == Task.MULTI_LABEL else values.softmax(dim=1), labels)

    def update_scores(self, scores: Tensor, labels: Tensor) -> None:
        """Add a batch of scores in [0, 1], ``[B, num_classes]``: softmax, or for a multi-label task sigmoid."""
        if self.task == Task.MULTI_LABEL:
            guessed, labels = scores, labels.long()
        elif self.task == Task.BINARY:
            scores = scores[:, 1]
            guessed = (scores > _THRESHOLD).long()
        else:
            guessed = scores.argmax(dim=1)
        self.confusion.update(guessed, labels)
        self.auroc.update(scores, labels)
        if self.task == Task.ORDINAL:
            self.kappa.update(guessed, labels)

    def compute(self) -> dict[str, Tensor]:
        """Measure everything that was added since the last reset, on all ranks together.

        Returns:
            A dict with these keys, the numbers in [0, 1] and float32:

            - ``acc``: accuracy; for a multi-label task the mean over samples and labels of single yes-or-no answers.
            - ``auc``: area under the ROC curve, averaged over classes (one against the rest) or labels.
            - ``balanced_acc``: mean recall of the classes; for a multi-label task the mean over labels of
              (true positive rate + true negative rate) / 2.
            - ``kappa``, for an ordinal task alone: Cohen's kappa with quadratic weights, from -1 to 1; a wrong answer counts the more
              the further it is off.
            - ``recall``: ``[num_classes]``, recall of each class or true positive rate of each label.
            - ``confusion``: int64 counts, rows true and columns predicted: ``[num_classes, num_classes]``, or
              ``[num_classes, 2, 2]`` for a multi-label task.

            A class that the labels lack has recall NaN and stays out of the averages, as in scikit-learn; ``auc`` is NaN
            where no class has both positive and negative samples.
        """
        confusion: Tensor = self.confusion.compute()
        right = confusion.diagonal(dim1=-2, dim2=-1)
        per_row = right.float() / confusion.sum(dim=-1)
        result = {
            "acc": right.sum().float() / confusion.sum(),
            "auc": self._auc(confusion),
            "balanced_acc": per_row.nanmean(dim=-1).mean(),
            "recall": per_row[:, 1] if self.task == Task.MULTI_LABEL else per_row,
            "confusion": confusion,
        }
        if self.task == Task.ORDINAL:
            result["kappa"] = self.kappa.compute()
        return result

    def reset(self) -> None:
        """Forget everything that was added."""
        for metric in (self.confusion, self.auroc, *([self.kappa] if self.task == Task.ORDINAL else [])):
            metric.reset()

    def _auc(self, confusion: Tensor) -> Tensor:
        with warnings.catch_warnings():
            # It warns of one-sided classes and calls their AUC 0, which would then count in the mean; they are left out below.
            warnings.simplefilter("ignore", UserWarning)
            per_class: Tensor = self.auroc.compute()
        support = confusion.sum(dim=-1)
        if self.task == Task.BINARY:
            two_sided = (support > 0).all()
        elif self.task == Task.MULTI_LABEL:
            two_sided = (support > 0).all(dim=-1)
        else:
            two_sided = (support > 0) & (support < support.sum())
        return torch.where(two_sided, per_class, torch.nan).nanmean()


def majority_baseline(labels: NDArray[np.integer] | Tensor, task: Task, num_classes: int) -> float:
    """Return the accuracy in [0, 1] of always giving a split's most common answer, the line beside every accuracy.

    Args:
        labels: Class indices ``[N]`` or ``[N, 1]``; for a multi-label task 0 and 1, ``[N, num_classes]``; ``N`` at least 1.
        task: What is predicted; a multi-label task is answered and counted label by label.
        num_classes: Number of classes or labels.
    """
    values = np.asarray(labels)
    if task == Task.MULTI_LABEL:
        positive = (values > 0).mean(axis=0)
        return float(np.maximum(positive, 1.0 - positive).mean())
    counts = np.bincount(values.reshape(-1).astype(np.int64), minlength=num_classes)
    return float(counts.max() / counts.sum())


def classification_loss(logits: Tensor, labels: Tensor, task: Task, reduction: Literal["mean", "none"] = "mean") -> Tensor:
    """Return the cross-entropy, or for a multi-label task the binary cross-entropy of each label, in float32 whatever the logits' type.

    Args:
        logits: ``[B, num_classes]``, before softmax or sigmoid.
        labels: int64 class indices ``[B]``; for a multi-label task 0 and 1, ``[B, num_classes]``.
        task: What is predicted.
        reduction: ``"mean"`` over the batch (and over the labels of a multi-label task), a scalar, or ``"none"``: the loss of each
            sample, summed over its labels, ``[B]``.
    """
    if task == Task.MULTI_LABEL:
        losses = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction=reduction)
        return losses.sum(dim=1) if reduction == "none" else losses
    return F.cross_entropy(logits.float(), labels, reduction=reduction)
