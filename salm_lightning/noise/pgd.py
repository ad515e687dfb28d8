"""Projected gradient descent on the input: gradient over transforms, step, projection, also to bytes (paper: Eq. 4, 6, Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Self

from salm_lightning.data.base import Task
from salm_lightning.noise.transforms import CropFlip
from salm_lightning.tensors import Tensor, torch

FP16_SCALE = 4096.0
"""Factor on the summed loss in fp16. 65536 overflows with a confident source and wrong targets."""


@dataclass(frozen=True)
class Samples:
    """A batch, and what it is part of.

    Attributes:
        images: In [0, 1] and without augmentation, ``[B, C, H, W]``.
        labels: int64 ``[B]``, or for multi-label tasks float32 of 0 and 1 ``[B, L]``.
        indices: Global sample indices ``[B]``; draws keyed by them depend neither on the batch nor on its order.
        task: What is predicted.
        num_classes: Classes or labels.
        seed: The run's seed.
        free: 1.0 where noise may be and 0.0 where pixels keep their values, ``[B, 1, H, W]``; ``None`` where it may be everywhere.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    task: Task
    num_classes: int
    seed: int
    free: Tensor | None = field(default=None, kw_only=True)


@contextmanager
def frozen(network: torch.nn.Module, batch_statistics: bool = False) -> Iterator[None]:
    """Hold a network's parameters and buffers, and restore its mode afterwards.

    Without it a third of the backward pass goes into parameter gradients that nobody reads.

    Args:
        network: The network; in evaluation mode meanwhile.
        batch_statistics: Whether batch norm uses the statistics of each batch instead of the running ones, which stay as they are.
    """
    training = network.training
    wanted = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    network.eval()
    norms = [
        module for module in network.modules() if batch_statistics and isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    ]
    for norm in norms:
        norm.train()
        norm.track_running_stats = False
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for norm in norms:
            norm.track_running_stats = True
        network.train(training)


@dataclass
class Objective:
    """The loss that noise is to change, as a function of it: the source model's, averaged over transforms (paper: Algorithm 1, line 6).

    Attributes:
        network: The source model f', frozen by the caller; takes images in [0, 1], returns logits.
        samples: The batch, without noise.
        transform: T.
        purpose: Name of the stream of transforms.
        counters: What tells this call from others of the same purpose (the training step).
        eot_samples: J, transforms per gradient; they are stacked into one batch.
        half: The forward pass runs in fp16: the loss is scaled, and a gradient that overflows is computed again at half the scale.
    """

    network: torch.nn.Module
    samples: Samples
    transform: CropFlip
    purpose: str
    counters: tuple[int, ...] = ()
    eot_samples: int = 1
    half: bool = False
    _scale: float = field(default=FP16_SCALE, init=False)

    def __call__(self, delta: Tensor, step: int) -> Tensor:
        """Return the gradient with respect to ``delta``, up to a positive factor that neither sign nor rank depends on.

        The loss is summed over the samples: a mean would divide the gradients of a converged source by the batch size, and in fp16 that
        alone flushes most of them to zero.

        Args:
            delta: Noise in [0, 1] units, ``[B, C, H, W]``.
            step: PGD step; it settles the draws of the transforms: the same number draws the same.
        """
        if not self.half:
            return self._gradient(delta, step, 1.0)
        while True:
            gradient = self._gradient(delta, step, self._scale)
            if self._scale <= 1.0 or bool(gradient.isfinite().all()):
                return gradient.nan_to_num()
            self._scale /= 2

    def losses(self, delta: Tensor, step: int) -> Tensor:
        """Return the loss of each sample, float32 ``[B]``, averaged over the transforms that a gradient at ``step`` would draw."""
        with torch.no_grad():
            return self._losses(delta, step).view(self.eot_samples, -1).mean(dim=0)

    def towards(self, labels: Tensor) -> Self:
        """Return the objective of the same batch with other labels."""
        return replace(self, samples=replace(self.samples, labels=labels))

    def _gradient(self, delta: Tensor, step: int, scale: float) -> Tensor:
        with torch.enable_grad():
            delta = delta.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self._losses(delta, step).sum() * scale, delta)
        return gradient

    def _losses(self, delta: Tensor, step: int) -> Tensor:
        """Return the loss of every view, ``[J * B]``."""
        from salm_lightning.metrics import classification_loss

        samples = self.samples
        protected = samples.images + (delta if samples.free is None else delta * samples.free)
        views = [
            self.transform(protected, samples.indices, samples.seed, self.purpose, *self.counters, step, draw)
            for draw in range(self.eot_samples)
        ]
        labels = samples.labels.repeat(self.eot_samples, *[1] * (samples.labels.dim() - 1))
        stacked = views[0] if len(views) == 1 else torch.cat(views)
        return classification_loss(self.network(stacked), labels, samples.task, reduction="none")


def project(delta: Tensor, images: Tensor, radius: float) -> Tensor:
    """Project noise onto the l-inf ball of ``radius`` around images ``[B, C, H, W]``, within [0, 1], the unit of all (the paper's Pi)."""
    delta = delta.clamp(-radius, radius)
    return delta.maximum(-images).minimum(1 - images)


def descend(delta: Tensor, gradient: Tensor, images: Tensor, step_size: float, radius: float) -> Tensor:
    """Take one signed step that lowers the loss and project (paper: Eq. 4; with a masked gradient Eq. 6)."""
    return project(delta - step_size * gradient.sign(), images, radius)


def release_images(images: Tensor, delta: Tensor, radius: float, norm: str = "linf") -> Tensor:
    """Return the bytes of the release, uint8 ``[B, C, H, W]``: images under noise, rounded.

    Args:
        images: Clean images in [0, 1], multiples of 1/255, ``[B, C, H, W]``.
        delta: Noise in [0, 1] units.
        radius: Bound in units of 1/255.
        norm: ``linf``: no byte differs by more than the whole part of ``radius``. ``l2``: the root mean square of an image's
            differences is at most ``radius``, if that of its noise is.
    """
    clean = (images * 255).round()
    target = (images + delta).clamp(0, 1) * 255
    change = target.round() - clean
    largest = math.floor(radius)
    change = change.clamp(-largest, largest) if norm == "linf" else _within_l2(change, (target - clean).trunc(), radius)
    return (clean + change).to(torch.uint8)


def _within_l2(rounded: Tensor, truncated: Tensor, radius: float) -> Tensor:
    """Truncate changes of an image, in the order of its values, instead of rounding them, until their l2 norm is within the bound.

    Truncated changes are never larger than the noise, so that enough of them always suffice; rounding adds about 1/12 per value to the
    square sum, so that few are needed. All sums are exact.
    """
    squares = rounded.square().flatten(1)
    excess = squares.sum(dim=1, keepdim=True, dtype=torch.float64) - radius**2 * squares.shape[1]
    saved = (squares - truncated.square().flatten(1)).to(torch.int32)
    needed = saved.cumsum(dim=1, dtype=torch.int32) - saved < excess
    return torch.where(needed.view_as(rounded), truncated, rounded)
