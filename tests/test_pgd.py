"""Projection, input gradient and full masked PGD against NumPy and a plain PyTorch loop."""

from __future__ import annotations

import copy

import numpy as np
import oracles
import pytest
import torch
from torch import Tensor, nn

from salm_lightning.data.base import Task
from salm_lightning.models import Architecture
from salm_lightning.noise.masks import top_percent_mask
from salm_lightning.noise.methods import EM, SALM
from salm_lightning.noise.pgd import FP16_SCALE, Objective, Samples, descend, frozen, project
from salm_lightning.noise.transforms import CropFlip


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class Tiny(nn.Module):
    """A convolutional network with batch norm whose running statistics are not the initial ones."""

    def __init__(self, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(),
            nn.Flatten(), nn.LazyLinear(classes),
        )  # fmt: skip
        self.body(draw(16, channels, 12, 12))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


@pytest.mark.parametrize("radius", [1 / 255, 8 / 255, 1.0])
def test_projection_equals_numpy_clipping(radius: float) -> None:
    images = draw(5, 3, 7, 7).round(decimals=1)  # 0.0 and 1.0 occur
    delta = (draw(5, 3, 7, 7, seed=1) - 0.5) * 4 * radius
    low = np.maximum(-np.float32(radius), -images.numpy())
    high = np.minimum(np.float32(radius), 1 - images.numpy())
    np.testing.assert_array_equal(project(delta, images, radius).numpy(), np.clip(delta.numpy(), low, high))


def test_a_step_goes_downhill_by_the_step_size_where_the_gradient_is_not_zero() -> None:
    images, gradient = torch.full((1, 1, 1, 4), 0.5), torch.tensor([3.0, -1e-30, 0.0, -7.0]).view(1, 1, 1, 4)
    moved = descend(torch.tensor([0.0, 0.0, 0.02, 0.03]).view(1, 1, 1, 4), gradient, images, 0.01, 0.035)
    torch.testing.assert_close(moved.flatten(), torch.tensor([-0.01, 0.01, 0.02, 0.035]))


@pytest.mark.parametrize("percent", [10.0, 40.0, 100.0])
@pytest.mark.parametrize("eot", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("task", [Task.MULTI_CLASS, Task.MULTI_LABEL])
def test_full_masked_pgd_equals_the_plain_loop(percent: float, eot: int, channels: int, task: Task) -> None:
    network = Tiny(channels).eval()
    images, indices = draw(10, channels, 12, 12), torch.arange(30, 40)
    labels = (draw(10, 4, seed=2) > 0.5).float() if task is Task.MULTI_LABEL else torch.arange(10) % 4
    method = SALM(percent=percent, radius=8, step_size=1.6, transform=CropFlip(2), eot_samples=eot)
    first = method.start(images, indices, seed=9)
    torch.testing.assert_close(first, oracles.start_noise(images, indices, 8, 9), rtol=0, atol=1e-7)
    gradient = Objective(network, Samples(images, labels, indices, task, 4, 9), method.transform, "eot", (4,), eot_samples=eot)
    with frozen(network):
        made = method.improve(images, first, gradient, 10).delta
    expected = oracles.masked_pgd(
        network, (images, labels, indices), first, 10, radius=8, step_size=1.6, percent=None if percent == 100 else percent,
        seed=9, purpose="eot", counters=(4,), eot=eot, padding=2,
    )  # fmt: skip
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)
    assert (made - first).abs().max() > 4 / 255  # it went somewhere


def test_masked_pgd_lowers_the_loss() -> None:
    network, images, labels, indices = Tiny().eval(), draw(16, 3, 12, 12), torch.arange(16) % 4, torch.arange(16)
    method = SALM(percent=10, start="zero", transform=CropFlip(0, flip=False))
    gradient = Objective(network, Samples(images, labels, indices, Task.MULTI_CLASS, 4, 0), method.transform, "eot")
    losses = [
        nn.functional.cross_entropy(
            network(images + method.improve(images, torch.zeros_like(images), gradient, steps).delta), labels
        )
        for steps in (0, 3, 10)
    ]
    assert losses[0] > losses[1] > losses[2]


def test_the_gradient_over_two_draws_is_the_mean_of_two_gradients() -> None:
    network, images, indices = Tiny().eval(), draw(6, 3, 12, 12), torch.arange(6)
    labels, delta, transform = torch.arange(6) % 4, torch.zeros(6, 3, 12, 12), CropFlip(2)
    both = Objective(network, Samples(images, labels, indices, Task.MULTI_CLASS, 4, 0), transform, "eot", (5,), eot_samples=2)(
        delta, 3
    )
    single = []
    for number in range(2):
        leaf = delta.clone().requires_grad_(True)
        view = oracles.crop_flip(images + leaf, indices, 2, 0, "eot", 5, 3, number)
        loss = nn.functional.cross_entropy(network(view), labels, reduction="sum")
        single.append(torch.autograd.grad(loss, leaf)[0])
    mean = (single[0] + single[1]) / 2
    assert not torch.allclose(single[0], single[1], atol=1e-4)
    # Up to one positive factor for all samples, on which neither sign nor rank depends.
    torch.testing.assert_close(both / both.norm(), mean / mean.norm(), rtol=0, atol=1e-6)


def test_the_gradient_does_not_depend_on_the_batch() -> None:
    network, images, labels, indices = Tiny().eval(), draw(6, 3, 12, 12), torch.arange(6) % 4, torch.arange(6)
    whole = Objective(network, Samples(images, labels, indices, Task.MULTI_CLASS, 4, 0), CropFlip(2), "eot", eot_samples=2)(
        torch.zeros_like(images), 0
    )
    part = slice(2, 5)
    alone = Objective(
        network, Samples(images[part], labels[part], indices[part], Task.MULTI_CLASS, 4, 0), CropFlip(2), "eot", eot_samples=2
    )
    torch.testing.assert_close(alone(torch.zeros_like(images[part]), 0), whole[part], rtol=0, atol=1e-6)


def test_every_pgd_step_draws_a_new_transform() -> None:
    network, images, labels, indices = Tiny().eval(), draw(6, 3, 12, 12), torch.arange(6) % 4, torch.arange(6)
    gradient = Objective(network, Samples(images, labels, indices, Task.MULTI_CLASS, 4, 0), CropFlip(2), "eot")
    zero = torch.zeros_like(images)
    assert torch.equal(gradient(zero, 0), gradient(zero, 0))
    assert not torch.equal(gradient(zero, 0), gradient(zero, 1))


@pytest.mark.parametrize("batch_statistics", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_frozen_leaves_no_trace(training: bool, batch_statistics: bool) -> None:
    network, images = Tiny().train(training), draw(6, 3, 12, 12)
    network.body[0].bias.requires_grad_(False)
    before, flags = copy.deepcopy(network.state_dict()), [parameter.requires_grad for parameter in network.parameters()]
    gradient = Objective(
        network, Samples(images, torch.arange(6) % 4, torch.arange(6), Task.MULTI_CLASS, 4, 0), CropFlip(2), "eot"
    )
    with frozen(network, batch_statistics):
        assert [name for name, module in network.named_modules() if module.training] == (["body.1"] if batch_statistics else [])
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert gradient(torch.zeros_like(images), 0).abs().max() > 0
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert all(module.training is training for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_frozen_restores_after_an_error() -> None:
    network = Tiny().train()
    with pytest.raises(RuntimeError, match="stop"), frozen(network):
        raise RuntimeError("stop")
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


# Precision ----------------------------------------


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a small source model trained until nearly sure on blobs whose place and colour tell the class, and the images."""
    classes, labels = 4, torch.arange(96) % 4
    grid = torch.arange(28.0)
    centre = torch.tensor([[9.0, 9.0], [9.0, 19.0], [19.0, 9.0], [19.0, 19.0]])[labels] + 6 * draw(96, 2, seed=3) - 3
    rows, columns = (((grid - centre[:, axis, None]) / 4) ** 2 for axis in (0, 1))
    blob = torch.exp(-(rows[:, :, None] + columns[:, None, :]))[:, None] * (0.4 + 0.6 * draw(96, 3, 1, 1, seed=4))
    images = (0.15 + 0.6 * blob + 0.2 * draw(96, 3, 28, 28, seed=5)).clamp(0, 1)
    network = Architecture.parse("resnet18").build(classes, width=0.125)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for step in range(45):
        part = slice(32 * (step % 3), 32 * (step % 3) + 32)
        view = CropFlip(2, flip=False)(images[part], torch.arange(96)[part], 0, "source", step)
        loss = nn.functional.cross_entropy(network(view), labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    with torch.no_grad():  # as sure as after thousands of steps: a gradient that small is what fp16 loses without scaling
        network.network.fc.weight *= 2.1
        network.network.fc.bias *= 2.1
    network.eval()
    assert 1e-7 < nn.functional.cross_entropy(network(images), labels) < 1e-4
    return network, images, labels


def mask_overlap(trained: tuple[nn.Module, Tensor, Tensor], device: str, dtype: torch.dtype) -> float:
    """Return the share of fp32's top-10 % pixels that the mask of a lower precision keeps."""
    network, images, labels = (part.to(device) for part in trained)
    images, labels, indices = images[:48], labels[:48], torch.arange(48, device=device)
    delta, masks = torch.zeros_like(images), []
    for half in (False, True):
        gradient = Objective(
            network,
            Samples(images, labels, indices, Task.MULTI_CLASS, 4, 0),
            CropFlip(),
            "eot",
            half=half and dtype == torch.float16,
        )
        with frozen(network), torch.autocast(device, dtype=dtype, enabled=half):
            masks.append(top_percent_mask(gradient(delta, 0), 10))
    return ((masks[0] * masks[1]).sum() / masks[0].sum()).item()


def test_bf16_masks_overlap_those_of_fp32(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    assert mask_overlap(trained, "cpu", torch.bfloat16) >= 0.70


def test_fp16_masks_overlap_those_of_fp32(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    assert mask_overlap(trained, "cpu", torch.float16) >= 0.85


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "least"), [(torch.bfloat16, 0.70), (torch.float16, 0.85)])
def test_masks_on_a_gpu_overlap_those_of_fp32(
    trained: tuple[nn.Module, Tensor, Tensor], dtype: torch.dtype, least: float
) -> None:
    network, images, labels = trained
    try:
        assert mask_overlap((copy.deepcopy(network), images, labels), "cuda", dtype) >= least
    finally:
        network.cpu()


class Confident(nn.Module):
    """Two fp16 layers with large weights: sure of its answers, and its gradient overflows when the loss is scaled too much."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn(8 * 8, 64, generator=generator) * gain
        self.second = torch.randn(64, 4, generator=generator) * gain
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        return (images.flatten(1).half() @ self.first.half() @ self.second.half()).float()

    def exact(self, images: Tensor) -> Tensor:
        return images.flatten(1).double() @ self.first.double() @ self.second.double()


def test_a_confident_source_with_wrong_targets_gives_no_silent_zero_update() -> None:
    network, images, indices = Confident(6.0), draw(8, 1, 8, 8) - 0.5, torch.arange(8)
    labels = network.exact(images).argmin(1)
    assert nn.functional.cross_entropy(network(images), labels) > 50  # as wrong as can be
    delta, transform = torch.zeros_like(images), CropFlip(0, flip=False)
    gradient = Objective(network, Samples(images, labels, indices, Task.MULTI_CLASS, 4, 0), transform, "eot", half=True)
    network.passes = 0
    made = gradient(delta, 0)
    first_call, network.passes = network.passes, 0
    assert first_call > 1  # the first scale overflowed
    leaf = delta.double().requires_grad_(True)
    loss = nn.functional.cross_entropy(network.exact(images.double() + leaf), labels, reduction="sum")
    (exact,) = torch.autograd.grad(loss, leaf)
    large = exact.abs() > 0.05 * exact.abs().amax((1, 2, 3), keepdim=True)
    assert torch.isfinite(made).all()
    assert torch.equal(made.sign()[large], exact.sign().float()[large])
    assert (made != 0).float().mean() > 0.95
    again = gradient(delta, 1)
    assert network.passes == 1  # the scale is kept, and not searched for again
    assert torch.equal(again, made)


def test_scaling_keeps_small_gradients_that_plain_fp16_loses() -> None:
    network, images, indices = Confident(0.02), draw(8, 1, 8, 8), torch.arange(8)
    labels, delta, transform = network.exact(images).argmax(1), torch.zeros(8, 1, 8, 8), CropFlip(0, flip=False)
    network.second *= 2e-5
    shares = [
        (Objective(network, Samples(images, labels, indices, Task.MULTI_CLASS, 4, 0), transform, "eot", half=half)(delta, 0) != 0)
        .float().mean().item()
        for half in (False, True)
    ]  # fmt: skip
    assert shares[0] < 0.75
    assert shares[1] > 0.99


def test_a_finite_gradient_is_computed_once() -> None:
    network, images = Confident(0.1), draw(4, 1, 8, 8)
    labels, indices = torch.zeros(4, dtype=torch.int64), torch.arange(4)
    scaled, plain = (
        Objective(network, Samples(images, labels, indices, Task.MULTI_CLASS, 4, 0), CropFlip(0, False), "eot", half=half)
        (torch.zeros_like(images), 0)
        for half in (True, False)
    )  # fmt: skip
    assert network.passes == 2
    torch.testing.assert_close(scaled / FP16_SCALE, plain, rtol=0.02, atol=1e-4)


def test_a_gradient_that_is_never_finite_ends() -> None:
    network = Confident(0.1)
    network.first[0, 0] = torch.nan
    samples = Samples(draw(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64), torch.arange(2), Task.MULTI_CLASS, 4, 0)
    gradient = Objective(network, samples, CropFlip(0), "eot", half=True)
    assert torch.isfinite(gradient(torch.zeros(2, 1, 8, 8), 0)).all()
    assert network.passes <= 20


def test_salm_with_all_pixels_takes_the_steps_of_em() -> None:
    network, images, labels, indices = Tiny().eval(), draw(8, 3, 12, 12), torch.arange(8) % 4, torch.arange(8)
    results = []
    for method in (SALM(percent=100, transform=CropFlip(2)), EM(transform=CropFlip(2))):
        gradient = Objective(network, Samples(images, labels, indices, Task.MULTI_CLASS, 4, 0), method.transform, "eot")
        results.append(method.improve(images, method.start(images, indices, 0), gradient, 5).delta)
    assert torch.equal(*results)
