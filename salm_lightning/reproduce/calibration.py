"""How long a run takes here: a few timed steps of its network on drawn images, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import SGD

from salm_lightning.data.base import Task
from salm_lightning.errors import ConfigurationError
from salm_lightning.metrics import classification_loss
from salm_lightning.models import Architecture
from salm_lightning.noise.methods import SALM
from salm_lightning.noise.pgd import InputGradient, frozen
from salm_lightning.reproduce.work import Network, Work

_CLASSES = 10
_FIRST_BATCH = 4
_PATIENCE = 0.5
"""Seconds that one timed step may take; a larger batch is extrapolated."""
_REPEATS = 3
_STATE_BYTES = 8
"""Bytes of a checkpoint for each weight: float32, and its momentum."""


@dataclass(frozen=True)
class Unit:
    """Seconds of one step on a whole batch, by kind, and the network's weights."""

    training: float
    gradient: float
    reading: float
    weights: int


class Calibration:
    """Estimates time and disk of runs; each network is timed once.

    Args:
        accelerator: Lightning's accelerator.
        precision: Numerical precision.

    Raises:
        ConfigurationError: There is no such accelerator here, or it has no such precision.
    """

    def __init__(self, accelerator: str, precision: str) -> None:
        try:
            self._fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)  # type: ignore[arg-type]
        except (MisconfigurationException, ValueError, RuntimeError) as error:
            raise ConfigurationError(f"accelerator={accelerator}, precision={precision}: {error}") from error
        self._units: dict[Network, Unit] = {}

    @property
    def device(self) -> str:
        """What the times were taken on."""
        device = self._fabric.device
        if device.type == "cuda":
            return str(torch.cuda.get_device_name(device))
        return f"{device.type}, {torch.get_num_threads()} threads"

    def seconds(self, work: Work) -> float:
        """Return the seconds of a run, without the start of its process and the writing of its files."""
        if not (work.training or work.gradient or work.reading):
            return 0.0
        unit = self.unit(work.network)
        return work.training * unit.training + work.gradient * unit.gradient + work.reading * unit.reading

    def bytes(self, work: Work) -> int:
        """Return the bytes that a run leaves: its checkpoint and its release."""
        return work.release + (_STATE_BYTES * self.unit(work.network).weights if work.training else 0)

    def unit(self, network: Network) -> Unit:
        """Return the times of a network's steps."""
        if network not in self._units:
            self._units[network] = self._measure(network)
        return self._units[network]

    def _measure(self, network: Network) -> Unit:
        device, method = self._fabric.device, SALM()
        model = Architecture.parse(network.arch).build(_CLASSES, network.channels, network.size, network.width).to(device)
        optimizer = SGD(model.parameters(), lr=0.0, momentum=0.9)

        def batch(count: int) -> tuple[Tensor, Tensor, Tensor]:
            images = torch.full((count, network.channels, network.size, network.size), 0.5, device=device)
            numbers = torch.arange(count, device=device)
            return images, numbers % _CLASSES, numbers

        def training(images: Tensor, labels: Tensor, indices: Tensor) -> None:
            with self._fabric.autocast():
                views = method.transform(images, indices, 0, "calibration", 0)
                loss = classification_loss(model(views), labels, Task.MULTI_CLASS)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        def gradient(images: Tensor, labels: Tensor, indices: Tensor) -> None:
            objective = InputGradient(
                model, images, labels, indices, Task.MULTI_CLASS, method.transform, 1, 0, "calibration", _CLASSES
            )
            with frozen(model), self._fabric.autocast():
                method.improve(images, torch.zeros_like(images), objective, 1)

        def reading(images: Tensor, *_: Tensor) -> None:
            with torch.no_grad(), self._fabric.autocast():
                model.eval()(images)
            model.train()

        def seconds(step: Callable[..., None]) -> float:
            return self._time(step, batch, network.batch_size)

        weights = sum(parameter.numel() for parameter in model.parameters())
        return Unit(seconds(training), seconds(gradient), seconds(reading), weights)

    def _time(self, step: Callable[..., None], batch: Callable[[int], tuple[Tensor, ...]], batch_size: int) -> float:
        """Return the seconds of a step on a whole batch, from the largest part of it that does not take long."""
        count = min(_FIRST_BATCH, batch_size)
        took = self._once(step, batch(count))  # also chooses kernels
        took = self._once(step, batch(count))
        while count < batch_size and took * 2 < _PATIENCE:
            count = min(2 * count, batch_size)
            took = self._once(step, batch(count))
        repeats = _REPEATS if took < _PATIENCE else 1
        took = min(self._once(step, batch(count)) for _ in range(repeats))
        return took * batch_size / count

    def _once(self, step: Callable[..., None], batch: tuple[Tensor, ...]) -> float:
        self._wait()
        begin = time.perf_counter()
        step(*batch)
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self._fabric.device.type == "cuda":
            torch.cuda.synchronize(self._fabric.device)
