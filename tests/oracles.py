"""The method in plain NumPy and PyTorch, written from the paper, and a quiet Trainer; nothing here calls ``salm_lightning``."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor
from torch.nn import functional as F

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(words: np.ndarray) -> np.ndarray:
    """Mix uint64 words: the output function of SplitMix64 (Steele, Lea and Flood, 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def fold(seed: int, purpose: str, *counters: int) -> np.uint64:
    """Return the key of a stream: the seed, the CRC of its purpose and its counters, one SplitMix64 round each."""
    key = splitmix64(np.array([seed & (2**64 - 1)], dtype=np.uint64) + GOLDEN)
    for part in (zlib.crc32(purpose.encode()), *counters):
        key = splitmix64(key + GOLDEN * np.array([part + 1], dtype=np.uint64))
    return np.uint64(key[0])


def uniform(key: np.uint64, indices: Iterable[int], numel: int) -> np.ndarray:
    """Return float32 ``[B, numel]`` in [0, 1): number e of sample i is the e-th output of a generator keyed by (key, i)."""
    samples = splitmix64(np.asarray(list(indices), dtype=np.int64).view(np.uint64) * GOLDEN + key)
    elements = np.arange(1, numel + 1, dtype=np.uint64) * GOLDEN
    words = splitmix64(samples[:, None] + elements[None, :])
    return ((words >> np.uint64(40)).astype(np.float64) / 2.0**24).astype(np.float32)


def start_noise(images: Tensor, indices: Tensor, radius: float, seed: int, *counters: int) -> Tensor:
    """Return uniform noise in [-radius, radius] (in 1/255 units) that keeps the images in [0, 1]."""
    draws = torch.from_numpy(uniform(fold(seed, "start", *counters), indices.tolist(), images[0].numel()))
    noise = (2 * draws.view(images.shape) - 1) * (radius / 255)
    return torch.minimum(torch.maximum(noise, -images), 1 - images)


def crop_flip(images: Tensor, indices: Tensor, padding: int, seed: int, purpose: str, *counters: int) -> Tensor:
    """Crop the zero-padded images at random and mirror half of them, one image at a time, by plain slicing."""
    draws, (height, width) = uniform(fold(seed, purpose, *counters), indices.tolist(), 3), images.shape[2:]
    views = []
    for image, draw in zip(images, draws, strict=True):
        top, left = (int(np.float32(value) * np.float32(2 * padding + 1)) for value in draw[:2])
        view = F.pad(image, (padding,) * 4)[:, top : top + height, left : left + width]
        views.append(view.flip(2) if draw[2] >= 0.5 else view)
    return torch.stack(views)


def top_mask(gradient: Tensor, percent: float) -> Tensor:
    """Return the mask ``[B, 1, H, W]`` of the K percent pixels with the largest channel sum of ``abs(g)``, by sorting."""
    scores = gradient.abs().sum(1).flatten(1)
    count = max(1, round(percent / 100 * scores.shape[1]))
    order = scores.sort(dim=1, descending=True).indices[:, :count]
    mask = torch.zeros_like(scores)
    for row, chosen in zip(mask, order, strict=True):
        row[chosen] = 1
    return mask.view(len(gradient), 1, *gradient.shape[2:])


def masked_pgd(
    forward: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor, Tensor], delta: Tensor, steps: int, **setting: Any
) -> Tensor:
    """Run the inner loop of Algorithm 1.

    Args:
        forward: The source model with its input conventions.
        batch: Clean images in [0, 1], class indices (or float labels), sample indices.
        delta: First noise.
        steps: PGD steps.
        **setting: ``radius``, ``step_size``, ``percent`` (``None``: no mask at all), ``seed``, ``purpose``, ``counters``,
            ``eot``, ``padding``.
    """
    images, labels, indices = batch
    radius, step_size = setting["radius"] / 255, setting["step_size"] / 255
    for step in range(steps):
        gradient = torch.zeros_like(delta)
        for draw in range(setting.get("eot", 1)):
            noise = delta.clone().requires_grad_(True)
            counters = (*setting.get("counters", ()), step, draw)
            view = crop_flip(images + noise, indices, setting.get("padding", 4), setting["seed"], setting["purpose"], *counters)
            loss = _loss(forward(view.contiguous(memory_format=torch.channels_last)), labels, "sum")
            gradient += torch.autograd.grad(loss, noise)[0]
        if setting["percent"] is not None:
            gradient = gradient * top_mask(gradient, setting["percent"])
        delta = (delta - step_size * torch.sign(gradient)).clamp(-radius, radius)
        delta = torch.minimum(torch.maximum(delta, 0 - images), 1 - images)
    return delta


def train_generator(
    network: torch.nn.Module, batches: Iterable[tuple[Tensor, Tensor, Tensor]], samples: int, persistent: bool, **setting: Any
) -> tuple[list[float], Tensor]:
    """Run Algorithm 1 in plain PyTorch: masked PGD on each batch, then an SGD step of the source model on the noisy batch.

    Args:
        network: Takes images normalised as (x - 0.5) / 0.25; trained in place.
        batches: Images in [0, 1], labels and indices, one per training step.
        samples: Number of training images.
        persistent: Keep the noise between visits, as int8 in units of radius / 127.
        **setting: What :func:`masked_pgd` takes, and ``updates`` (PGD steps per training step), ``lr``, ``milestones``,
            ``batch_norm`` (``running`` statistics in PGD, or those of the ``batch``), ``as_rgb`` (grey images as three channels).

    Returns:
        The source loss of each step, and the stored noise int8 ``[N, C, H, W]``.
    """

    def forward(images: Tensor, net: torch.nn.Module = network) -> Tensor:
        seen = torch.cat([images] * 3, dim=1) if setting["as_rgb"] else images
        return net((seen - 0.5) / 0.25)

    seed, radius = setting["seed"], setting["radius"]
    unit, stored, visited, losses = radius / 255 / 127, torch.zeros(0), torch.zeros(samples, dtype=torch.bool), []
    optimizer = torch.optim.SGD(network.parameters(), lr=setting["lr"], momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, setting["milestones"], gamma=0.1)
    for step, (images, labels, indices) in enumerate(batches):
        if len(stored) == 0:
            stored = torch.zeros((samples, *images.shape[1:]), dtype=torch.int8)
        if persistent:
            first = start_noise(images, indices, radius, seed)
            delta = torch.where(visited[indices].view(-1, 1, 1, 1), stored[indices].float() * unit, first)
        else:
            delta = start_noise(images, indices, radius, seed, step)
        network.eval()
        # A copy in train mode uses the batch's statistics, and its own running ones are thrown away.
        attacked = copy.deepcopy(network).train() if setting["batch_norm"] == "batch" else network
        delta = masked_pgd(
            partial(forward, net=attacked),
            (images, labels, indices),
            delta,
            setting["updates"],
            purpose="eot",
            counters=(step,),
            **setting,
        )
        network.train()
        view = crop_flip(images + delta, indices, 4, seed, "source", step).contiguous(memory_format=torch.channels_last)
        loss = _loss(forward(view), labels, "mean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        stored[indices] = (delta / unit).round().clamp(-127, 127).to(torch.int8)
        visited[indices] = True
    return losses, stored


def train_victim(
    network: torch.nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    seed: int,
    lr: float,
    milestones: list[int],
    purpose: str = "victim",
) -> list[float]:
    """Train a classifier in place on cropped and flipped batches with SGD; return the loss of each step."""
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    losses = []
    for step, (images, labels, indices) in enumerate(batches):
        view = crop_flip(images, indices, 4, seed, purpose, step).contiguous(memory_format=torch.channels_last)
        loss = _loss(network((view - 0.5) / 0.25), labels, "mean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


def _loss(logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    if labels.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits, labels, reduction=reduction)
    return F.cross_entropy(logits, labels, reduction=reduction)


class Recorder(Logger):
    """Keep what is logged: ``rows`` of (step, metrics)."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "recorder"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((-1 if step is None else step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def values(self, key: str) -> list[float]:
        """Return every value of one metric, in order."""
        return [metrics[key] for _, metrics in self.rows if key in metrics]


def make_trainer(folder: Path, steps: int, **arguments: Any) -> Trainer:
    """Return a quiet Trainer on one CPU that logs each step to a :class:`Recorder` and validates only if asked to."""
    settings: dict[str, Any] = {
        "max_steps": steps, "max_epochs": -1, "accelerator": "cpu", "devices": 1, "logger": Recorder(), "log_every_n_steps": 1,
        "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "num_sanity_val_steps": 0,
        "limit_val_batches": 0, "use_distributed_sampler": False, "default_root_dir": folder,
    }  # fmt: skip
    return Trainer(**(settings | arguments))
