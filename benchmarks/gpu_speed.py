"""What low precision and faster ways to run a network make of the generator's noise and speed; ``gpu.py`` asks for it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from generator import OurKernels, matmul_peak, step_flops, timed
from torch import Tensor, nn

from salm_lightning.data import Batch, ImageDataModule
from salm_lightning.data.arrays import labels_to_tensor, to_tensor
from salm_lightning.modules import NoiseGeneratorModule
from salm_lightning.noise.masks import top_percent_mask
from salm_lightning.noise.methods import SALM
from salm_lightning.noise.pgd import release_images
from salm_lightning.runs.trainers import facts_of

VARIANTS = {
    "fp32": ("32-true", ""), "bf16": ("bf16-mixed", ""), "bf16 contiguous": ("bf16-mixed", "contiguous"),
    "bf16 compiled": ("bf16-mixed", "compiled"), "bf16 graphs": ("bf16-mixed", "graphs"),
}  # fmt: skip
"""Precision, and what is done to the network."""
Line = dict[str, Any]


def first_batches(data: ImageDataModule, number: int, size: int, device: torch.device) -> list[Batch]:
    """Return the first training batches, float32 in [0, 1]."""
    split, batches = data.split("train"), []
    for start in range(0, number * size, size):
        rows = torch.arange(start, start + size) % len(split)
        images = to_tensor(split.images[rows.numpy()]).float().div(255)
        batches.append(
            Batch(*(one.to(device) for one in (images, labels_to_tensor(split.labels[rows.numpy()], data.task), rows)))
        )
    return batches


def kernels(data: ImageDataModule, options: argparse.Namespace, precision: str) -> OurKernels:
    """Return the generator's kernels with fresh weights, always the same."""
    module = NoiseGeneratorModule(SALM(), **facts_of(data), width=options.width)
    device = torch.device(options.device)
    return OurKernels(module.to(device), device, precision)


def noise_after(ours: OurKernels, batches: Sequence[Batch], steps: int) -> Tensor:
    """Return the noise of the first batch, after a source step on each of the batches, by PGD from zero."""
    for batch in batches:
        ours.source(batch, ours.pgd(batch, torch.zeros_like(batch.images), 1))
    return ours.pgd(batches[0], torch.zeros_like(batches[0].images), steps)


def agreement(one: Tensor, other: Tensor) -> Line:
    """Compare two noises: share of equal signs, of the same tenth of the pixels, and of equal bytes of a release of grey images."""
    masks = [top_percent_mask(noise, 10) for noise in (one, other)]
    grey = torch.full_like(one, 0.5).mul(255).round().div(255)
    stored = [release_images(grey, noise, 8) for noise in (one, other)]
    return {
        "same_signs": (one.sign() == other.sign()).float().mean().item(),
        "same_mask": ((masks[0] * masks[1]).sum() / masks[0].sum()).item(),
        "same_bytes": (stored[0] == stored[1]).float().mean().item(),
    }


def parity(data: ImageDataModule, options: argparse.Namespace) -> Iterator[Line]:
    """Yield how the noise of low precision compares with that of fp32: at the start, and after steps in which both go their ways."""
    batches = first_batches(data, options.parity_steps, options.batch_size, torch.device(options.device))
    lengths = (1, len(batches))
    noise = {
        precision: [noise_after(kernels(data, options, precision), batches[:steps], 1) for steps in lengths]
        for precision in ("32-true", *options.low)
    }
    for precision in options.low:
        for steps, one, other in zip(lengths, noise["32-true"], noise[precision], strict=True):
            yield {"part": f"parity-{precision}", "steps": steps, **agreement(one, other)}


def speed(data: ImageDataModule, options: argparse.Namespace, variant: str) -> Line:
    """Return images per second of each kind of work, and whether the noise is that of the plain network at the same precision."""
    precision, how = VARIANTS[variant]
    device = torch.device(options.device)
    (batch,) = first_batches(data, 1, options.batch_size, device)
    zero = torch.zeros_like(batch.images)
    ours, plain = kernels(data, options, precision), kernels(data, options, precision)
    network = ours.module.source
    if how == "contiguous":
        network.forward = nn.Sequential(_Contiguous(), network.network.to(memory_format=torch.contiguous_format)).forward
    elif how == "compiled":
        network.compile(mode="reduce-overhead")
    elif how == "graphs":
        graph(ours, batch.images.contiguous(memory_format=torch.channels_last))
    work: dict[str, Callable[[], Any]] = {
        "PGD pass": lambda: ours.pgd(batch, zero, 1),
        "source step": lambda: ours.source(batch, zero),
        "whole step": lambda: ours.source(batch, ours.pgd(batch, zero, 1)),
        "last pass": lambda: ours.pgd(batch, zero, 10),
    }
    same = agreement(plain.pgd(batch, zero, 10), ours.pgd(batch, zero, 10))
    rates = {}
    for name, function in work.items():
        for _ in range(3):
            function()
        rates[name] = round(options.batch_size / timed(function, device, options.repeats))
    flops = step_flops(plain.module.source, batch.images, 1) / options.batch_size * rates["whole step"]
    peak = matmul_peak(device, precision, options.matmul)
    return {
        "part": f"speed-{variant}", "batch_size": options.batch_size, "width": options.width, "images_per_second": rates,
        "share_of_matmul_peak": round(flops / peak, 4), "matmul_tflops": round(peak / 1e12, 1), **same,
    }  # fmt: skip


class _Contiguous(nn.Module):
    """The input conventions of a classifier, without its channels-last memory."""

    def forward(self, images: Tensor) -> Tensor:
        return (images.contiguous() - 0.5) * 4.0


class _Passes(nn.Module):
    """A network's own forward pass, apart from what is put in its place."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.own = network, network.forward

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.own(images)
        return made


def graph(ours: OurKernels, view: Tensor) -> None:
    """Let a source model's passes over such views be replayed as CUDA graphs: in PGD, when it is frozen, and in the source step."""
    network = ours.module.source
    before, made = deepcopy(network.state_dict()), {}
    for training in (False, True):
        passes = _Passes(network).train(training).requires_grad_(training)
        example = view.clone().requires_grad_(not training)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):  # weights have to be rounded anew at each replay
            made[training] = torch.cuda.make_graphed_callables(passes, (example,))
    network.train().requires_grad_(True)
    network.load_state_dict(before)  # its statistics have seen the examples
    network.forward = lambda images: made[network.training](images)
