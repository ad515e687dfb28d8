"""Time the noise generator against a plain PyTorch loop, in one process, alternating, and print the ratios.

The plain loop is written the way the published research codes are: fp32, contiguous memory, one transform per image in a Python
loop, one EOT draw, images on the host. Both do the same work: as many PGD passes, the same network, the same batch. Example::

    python benchmarks/generator.py --width 0.25 --precision 32-true

On a GPU it also prints the share of the measured matmul peak that the whole step reaches, and the time of a PathMNIST-sized run.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from salm_lightning.data import SyntheticDataModule
from salm_lightning.data.arrays import labels_to_tensor, to_tensor
from salm_lightning.data.base import Batch
from salm_lightning.models import Architecture
from salm_lightning.modules import NoiseGeneratorModule
from salm_lightning.noise.methods import SALM
from salm_lightning.noise.pgd import Objective, Samples, frozen

PATHMNIST_IMAGES = 89_996
RADIUS, STEP = 8 / 255, 1.6 / 255


class PlainLoop:
    """The generator as research codes write it."""

    def __init__(self, classes: int, width: float, device: torch.device, rate: float = 0.01) -> None:
        # The bare backbone: the package's wrapper around it would turn the images to channels-last memory.
        self.network = (
            Architecture.parse("resnet18").build(classes, 3, 28, width).network.to(device, memory_format=torch.contiguous_format)
        )
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
        self.device = device

    def transform(self, images: Tensor) -> Tensor:
        """Crop and flip, image by image."""
        views = []
        for image in images:
            top, left = (int(value) for value in torch.randint(0, 9, (2,)))
            view = pad(image, (4, 4, 4, 4))[:, top : top + 28, left : left + 28]
            views.append(view.flip(-1) if torch.rand(1) < 0.5 else view)
        return torch.stack(views)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss on transformed images."""
        return cross_entropy(self.network((self.transform(images) - 0.5) / 0.25), labels)

    def pgd(self, images: Tensor, labels: Tensor, delta: Tensor, steps: int) -> Tensor:
        """Take masked PGD steps."""
        self.network.eval()
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        for _ in range(steps):
            delta = delta.detach().requires_grad_(True)
            loss = self.loss(images + delta, labels)
            (grad,) = torch.autograd.grad(loss, delta)
            score = grad.abs().sum(dim=1).flatten(1)
            threshold = score.kthvalue(int(0.9 * score.shape[1]), dim=1).values
            mask = (score >= threshold[:, None]).view(len(images), 1, 28, 28).float()
            delta = (delta.detach() - STEP * (mask * grad).sign()).clamp(-RADIUS, RADIUS)
            delta = (images + delta).clamp(0, 1) - images
        for parameter in self.network.parameters():
            parameter.requires_grad_(True)
        self.network.train()
        return delta

    def source(self, images: Tensor, labels: Tensor, delta: Tensor) -> None:
        """Take one optimiser step."""
        loss = self.loss(images + delta, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class OurKernels:
    """The package's own functions in a bare loop, without Lightning."""

    def __init__(self, module: NoiseGeneratorModule, device: torch.device, precision: str) -> None:
        self.module = module
        self.optimizer = torch.optim.SGD(module.source.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
        self.autocast: Callable[[], Any] = (
            (lambda: torch.autocast(device.type, dtype)) if dtype is not None else contextlib.nullcontext
        )
        self.half = precision == "16-mixed"
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half)
        self.step = 0

    def pgd(self, batch: Batch, delta: Tensor, steps: int) -> Tensor:
        """Take masked PGD steps."""
        method = self.module.method
        gradient = Objective(
            self.module.source,
            Samples(*batch, self.module.task, self.module.num_classes, 0),
            method.transform,
            "eot",
            (self.step,),
            eot_samples=method.eot_samples,
            half=self.half,
        )
        with self.autocast(), frozen(self.module.source):
            return method.improve(batch.images, delta, gradient, steps).delta

    def source(self, batch: Batch, delta: Tensor) -> None:
        """Take one optimiser step."""
        self.step += 1
        with self.autocast():
            view = self.module.method.transform(batch.images + delta, batch.indices, 0, "source", self.step)
            loss = cross_entropy(self.module.source(view).float(), batch.labels)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


class StepClock(Callback):
    """Times the steps of a fit after a warm-up."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.begin = self.seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start after the warm-up."""
        if trainer.global_step == self.warm_up:
            synchronise(pl_module.device)
            self.begin = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        synchronise(pl_module.device)
        self.seconds = time.perf_counter() - self.begin


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the seconds of one call, over ``repeats`` calls."""
    synchronise(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        function()
    synchronise(device)
    return (time.perf_counter() - begin) / repeats


def lightning_step(module: NoiseGeneratorModule, data: SyntheticDataModule, options: argparse.Namespace) -> float:
    """Return the seconds of one training step under the Trainer."""
    clock, warm_up = StepClock(2), 2
    trainer = Trainer(
        max_steps=warm_up + options.repeats, max_epochs=-1, accelerator=options.accelerator, devices=1, precision=options.precision,
        limit_val_batches=0, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, callbacks=[clock],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return clock.seconds / options.repeats


def matmul_peak(device: torch.device, precision: str, size: int = 8192) -> float:
    """Return the measured floating-point operations per second of a large matrix product."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    left @ right
    return 2 * size**3 / timed(lambda: left @ right, device, 10)


def step_flops(network: nn.Module, images: Tensor, passes: int) -> int:
    """Return the floating-point operations of a whole step: PGD passes (forward and input gradient) and a training step."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    return int(counter.get_total_flops() * (2 * passes + 3))


def main() -> None:
    """Time everything in alternation and print medians and spread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed", "16-mixed"])
    parser.add_argument("--accelerator", default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--updates", type=int, default=1, help="PGD steps per training step; auto makes 5 for PathMNIST at M = 5000."
    )
    parser.add_argument("--last-pass-steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=4, help="Calls per timing.")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    device = torch.device("cuda" if options.accelerator == "gpu" else "cpu")
    data = SyntheticDataModule(batch_size=options.batch_size)
    data.setup()
    module = NoiseGeneratorModule(
        SALM(),
        data.num_classes,
        data.channels,
        data.image_size,
        data.task,
        width=options.width,
        updates_per_visit=options.updates,
    )
    split = data.split("train")
    images = to_tensor(split.images[: options.batch_size]).float().div(255)
    labels = labels_to_tensor(split.labels[: options.batch_size], data.task)
    indices = torch.arange(options.batch_size)
    batch = Batch(*(tensor.to(device) for tensor in (images, labels, indices)))
    plain, ours = PlainLoop(data.num_classes, options.width, device), OurKernels(module.to(device), device, options.precision)
    zero = torch.zeros_like(batch.images)

    def plain_whole() -> None:
        moved, targets = images.to(device), labels.to(device)
        plain.source(moved, targets, plain.pgd(moved, targets, zero, options.updates))

    def our_whole() -> None:
        ours.source(batch, ours.pgd(batch, zero, options.updates))

    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "PGD pass": (lambda: ours.pgd(batch, zero, 1), lambda: plain.pgd(batch.images, batch.labels, zero, 1)),
        "source step": (lambda: ours.source(batch, zero), lambda: plain.source(batch.images, batch.labels, zero)),
        "whole step": (our_whole, plain_whole),
        "last pass": (
            lambda: ours.pgd(batch, zero, options.last_pass_steps),
            lambda: plain.pgd(batch.images, batch.labels, zero, options.last_pass_steps),
        ),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in (*pairs, "Lightning")}
    for round_number in range(options.rounds + 1):
        for name, (mine, theirs) in pairs.items():
            pair = timed(mine, device, options.repeats), timed(theirs, device, options.repeats)
            seconds[name] += [pair] if round_number else []  # the first round warms up
        module.to(device)
        pair = lightning_step(module, data, options), 0.0
        module.to(device)
        pair = pair[0], timed(our_whole, device, options.repeats)
        seconds["Lightning"] += [pair] if round_number else []

    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    print(
        f"{device.type}{threads}, torch {torch.__version__}, ResNet-18 width {options.width:g}, batch {options.batch_size}, "
        f"{options.precision}, {options.updates} PGD steps per training step; median of {options.rounds} rounds (smallest to largest)"
    )
    print("| | images/s | plain loop images/s | ratio |\n|---|---|---|---|")
    for name in pairs:
        mine_rate, plain_rate = (options.batch_size / statistics.median(column) for column in zip(*seconds[name], strict=True))
        print(f"| {name} | {mine_rate:.0f} | {plain_rate:.0f} | {_spread([theirs / mine for mine, theirs in seconds[name]])} |")
    overhead = [100 * (with_trainer / bare - 1) for with_trainer, bare in seconds["Lightning"]]
    print(f"Lightning over the same kernels in a bare loop: {_spread(overhead, '+.1f')} %")
    if device.type == "cuda":
        flops = step_flops(module.source, batch.images, options.updates)
        step = statistics.median(with_trainer for with_trainer, _ in seconds["Lightning"])
        peak = matmul_peak(device, options.precision)
        print(f"Share of the measured matmul peak ({peak / 1e12:.0f} TFLOP/s): {flops / step / peak:.1%}")
        last = statistics.median(mine for mine, _ in seconds["last pass"]) * PATHMNIST_IMAGES / options.batch_size
        minutes = (5000 * step + last) / 60
        print(
            f"PathMNIST-sized generation, M = 5000, {options.updates} PGD steps per training step: {minutes:.1f} min at these rates"
        )


def _spread(values: list[float], form: str = ".2f") -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
