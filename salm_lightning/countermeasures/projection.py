"""Orthogonal projection: what a linear model can tell the classes by is taken out of the images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from salm_lightning.countermeasures.base import Countermeasure, to_bytes
from salm_lightning.data.arrays import labels_to_tensor, to_tensor
from salm_lightning.data.base import DatasetInfo, Split
from salm_lightning.data.batches import permutation
from salm_lightning.data.prepared import Preparation
from salm_lightning.errors import require
from salm_lightning.metrics import classification_loss

_BATCH = 1024
_DEPENDENT = 1e-4
"""Share of the largest singular value below which a direction is none: a softmax's weight vectors sum up to nearly zero."""


class OrthogonalProjection(Countermeasure):
    """Train a linear model on the pixels and project the images onto the complement of its weight vectors (Sandoval-Segura et al. 2023).

    The model has no bias and takes values in [0, 1]; it is trained as the authors' is (SGD 0.1, batches of 1024, the rate divided by ten
    at half and three quarters of about as many steps as their 20 epochs of CIFAR-10), but from zero: random weights would stay in the
    vectors and blunt the projection. What is projected is rounded to bytes; values beyond them are clipped.

    Args:
        steps: Training steps of the linear model.
    """

    def __init__(self, steps: int = 1000) -> None:
        require("steps", steps, steps >= 1, "give 1 or more")
        self.steps = steps

    def preparation(self, train: Split, info: DatasetInfo, seed: int) -> Preparation | None:
        """Train the linear model and return the projection."""
        weights = linear_weights(train, info, seed, self.steps)
        basis, scales, _ = torch.linalg.svd(weights.double().T, full_matrices=False)
        basis = basis[:, scales > _DEPENDENT * scales[0]]
        return lambda images, indices: project_out(images, basis.to(images.device))


def linear_weights(train: Split, info: DatasetInfo, seed: int, steps: int) -> Tensor:
    """Return the weight vectors, ``[num_classes, C * H * W]``, of a linear model; ``seed`` is that of the order of the images."""
    model = nn.Linear(info.channels * info.size**2, info.num_classes, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = SGD(model.parameters(), lr=0.1)
    schedule = MultiStepLR(optimizer, [steps // 2, steps * 3 // 4])
    size = min(_BATCH, len(train))
    for step in range(steps):
        # The epochs are permutations, whose incomplete last batches are left out.
        epoch, number = divmod(step, len(train) // size)
        rows = np.sort(permutation(len(train), seed, "orthogonal projection", epoch)[number * size : (number + 1) * size])
        images = to_tensor(train.images[rows]).flatten(1).float() / 255
        loss = classification_loss(model(images), labels_to_tensor(train.labels[rows], info.task), info.task)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.weight.detach()


def project_out(images: Tensor, basis: Tensor) -> Tensor:
    """Return images, uint8 ``[B, C, H, W]``, without their part along orthonormal columns, float64 ``[C * H * W, K]``.

    Float64 keeps a byte from depending on the batch that it is in.
    """
    flat = images.flatten(1).double()
    return to_bytes(flat - (flat @ basis) @ basis.T).view(images.shape)
