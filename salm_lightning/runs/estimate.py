"""How long planned work takes on this machine, and what it leaves on the disk: from a few timed steps of its network."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import NamedTuple

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer

from salm_lightning.models import Architecture
from salm_lightning.noise.transforms import CropFlip

_CLASSES, _FIRST_BATCH = 10, 2  # of drawn labels and images
_PATIENCE = 0.3  # seconds that one timed step may take; a larger batch is extrapolated
_CEILING = 10.0  # seconds that it may take where most of them are no images'
_STATE_BYTES = 8  # of a checkpoint for each weight: float32, and its momentum


class Network(NamedTuple):
    """What the time of a step depends on: architecture, its width factor, channels, side of the images, images per step."""

    arch: str | Architecture
    width: float
    channels: int
    size: int
    batch_size: int


class Work(NamedTuple):
    """Steps of a network: of its optimiser, of PGD, and forward passes; bytes of what is written, beside a checkpoint if it is kept."""

    network: Network
    training: int = 0
    gradient: int = 0
    reading: int = 0
    bytes: int = 0
    keeps_weights: bool = False


class Files(NamedTuple):
    """What writing files takes: seconds, and bytes on the disk."""

    seconds: float
    bytes: int


class Unit(NamedTuple):
    """Seconds of one step on a whole batch, by kind, and the number of the network's weights."""

    training: float
    gradient: float
    reading: float
    weights: int


class Estimator:
    """Estimates time and disk of works on one device, which a Trainer takes; each network is timed once."""

    def __init__(self, accelerator: str, precision: str) -> None:
        self._fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)  # type: ignore[arg-type]
        self._units: dict[Network, Unit] = {}

    def seconds(self, works: Iterable[Work]) -> float:
        """Return the seconds of works one after another, without the start of processes and the writing of files."""
        timed = [(work, self.unit(work.network)) for work in works if work.training or work.gradient or work.reading]
        return sum(work.training * t.training + work.gradient * t.gradient + work.reading * t.reading for work, t in timed)

    def bytes(self, works: Iterable[Work]) -> int:
        """Return the bytes that works leave on the disk."""
        return sum(work.bytes + (_STATE_BYTES * self.unit(work.network).weights if work.keeps_weights else 0) for work in works)

    def unit(self, network: Network) -> Unit:
        """Return the times of a network's steps on drawn images."""
        if network not in self._units:
            arch, width, channels, size, _ = network
            model = self._fabric.to_device(Architecture.parse(arch).build(_CLASSES, channels, size, width))
            training, gradient, reading = (self._time(model, kind, network) for kind in ("training", "gradient", "reading"))
            self._units[network] = Unit(training, gradient, reading, sum(weight.numel() for weight in model.parameters()))
        return self._units[network]

    def _time(self, model: nn.Module, kind: str, network: Network) -> float:
        """Return the seconds of a step on a whole batch, from the largest part of it that does not take long.

        On cores that other programs use, too, threads wait for each other at every layer, and a step on a few images takes as long as
        one on many. What it takes beside that for each image shows on larger parts alone, and those take hardly longer.
        """
        optimizer, count, before = SGD(model.parameters(), lr=0.0, momentum=0.9), 0, math.inf
        while True:
            count = min(4 * count or _FIRST_BATCH, network.batch_size)
            images = torch.full((count, network.channels, network.size, network.size), 0.5, device=self._fabric.device)
            took = self._once(model, optimizer, kind, images)
            waits = took < min(2 * before, _CEILING)
            if count == network.batch_size or (2 * took > _PATIENCE and not waits):
                break
            before = took
        # That one chose kernels, and any may have waited for another process's turn on the same cores.
        return min(self._once(model, optimizer, kind, images) for _ in range(3)) * network.batch_size / count

    def _once(self, model: nn.Module, optimizer: Optimizer, kind: str, images: Tensor) -> float:
        begin, numbers = time.perf_counter(), torch.arange(len(images), device=images.device)
        with self._fabric.autocast(), torch.set_grad_enabled(kind != "reading"):
            views = CropFlip()(images.requires_grad_(kind == "gradient"), numbers, 0, "estimate", 0)
            loss = cross_entropy(model(views), numbers % _CLASSES)
        if kind == "training":
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        elif kind == "gradient":
            torch.autograd.grad(loss, images)
        loss.item()  # waits for the device
        return time.perf_counter() - begin
