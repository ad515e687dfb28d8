"""The training loss that belongs to a task, the same for source models and victims."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from salm_lightning.data.base import Task


def classification_loss(logits: Tensor, labels: Tensor, task: Task, reduction: Literal["mean", "none"] = "mean") -> Tensor:
    """Return the cross-entropy, or for a multi-label task the binary cross-entropy of each label.

    Computed in float32 whatever the logits' type is.

    Args:
        logits: ``[B, num_classes]``, before softmax or sigmoid.
        labels: int64 class indices ``[B]``; for a multi-label task 0 and 1, ``[B, num_classes]``.
        task: What is predicted.
        reduction: ``"mean"`` over the batch (and over the labels of a multi-label task), or ``"none"``: the loss of each sample,
            summed over its labels.

    Returns:
        A float32 scalar; ``[B]`` without reduction.
    """
    if task == Task.MULTI_LABEL:
        losses = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction=reduction)
        return losses.sum(dim=1) if reduction == "none" else losses
    return F.cross_entropy(logits.float(), labels, reduction=reduction)
