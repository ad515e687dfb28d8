"""Classifiers: shapes for every size, torchvision's own networks at full width, padding, normalisation and seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models as tv

from salm_lightning.errors import ConfigurationError
from salm_lightning.models import ARCHITECTURES, Architecture, Classifier
from salm_lightning.models.backbones import patch_of

STOCK: dict[str, Callable[..., nn.Module]] = {
    "vgg11": tv.vgg11_bn,
    "resnet18": tv.resnet18,
    "resnet50": tv.resnet50,
    "densenet121": tv.densenet121,
}
OTHER = ("vit", "cnn", "linear")
"""What torchvision does not have under that name."""


@pytest.mark.parametrize("size", [28, 64, 128, 224])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_takes_every_size(arch: str, size: int) -> None:
    for channels in (1, 3):
        network = Architecture.parse(arch).build(5, channels, size, width=0.125).eval()
        with torch.inference_mode():
            logits = network(torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0)))
        assert logits.shape == (2, 5)
        assert torch.isfinite(logits).all()
        assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("size", [28, 224])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gradients_reach_every_parameter(arch: str, size: int) -> None:
    network = Architecture.parse(arch).build(3, 3, size, width=0.125)
    network(torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_all_architectures_are_tested() -> None:
    assert {*STOCK, *OTHER} == set(ARCHITECTURES)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_cnn_is_what_its_docstring_says(channels: int) -> None:
    """Against functional calls: 5x5 and 3x3 convolutions of 16, 32, 64 channels with stride 2, a 2x2 pool, a linear layer."""
    network = Architecture.parse("cnn").build(8, channels, 28, width=0.5, seed=3).network.train()
    weights = dict(network.named_parameters())
    assert (
        sum(weight.numel() for weight in weights.values()) == 25 * channels * 16 + 9 * (16 * 32 + 32 * 64) + 2 * 112 + 256 * 8 + 8
    )
    images = torch.rand(4, channels, 28, 28, generator=torch.Generator().manual_seed(0))
    kernels = [weight for weight in weights.values() if weight.ndim == 4]
    assert [tuple(kernel.shape) for kernel in kernels] == [(16, channels, 5, 5), (32, 16, 3, 3), (64, 32, 3, 3)]
    hidden = images
    for kernel in kernels:
        hidden = functional.conv2d(hidden, kernel, stride=2, padding=kernel.shape[-1] // 2)
        hidden = functional.relu(functional.batch_norm(hidden, None, None, training=True))
    assert hidden.shape == (4, 64, 4, 4)
    pooled = hidden.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5)).flatten(1)
    (head,) = (module for module in network.modules() if isinstance(module, nn.Linear))
    torch.testing.assert_close(network(images), pooled @ head.weight.T + head.bias)


def test_another_size_of_the_cnn() -> None:
    given = {"class_path": "salm_lightning.models.cnn.CNN", "init_args": {"features": 8, "depth": 2, "stride": 1}}
    shapes = [tuple(weight.shape) for weight in Architecture.parse(given).build(5, 3, 28).parameters() if weight.ndim == 4]
    assert shapes == [(8, 3, 5, 5), (16, 8, 3, 3)]


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


@pytest.mark.parametrize("arch", STOCK)
def test_full_width_at_224_is_torchvisions_network(arch: str) -> None:
    with torch.device("meta"):  # nothing is drawn
        stock = STOCK[arch](num_classes=9)
        made = Architecture.parse(arch).build(9, 3, 224).network
    assert shapes(made) == shapes(stock)
    for (name, layer), (_, other) in zip(made.named_modules(), stock.named_modules(), strict=True):
        assert [repr(child) for child in layer.children()] == [repr(child) for child in other.children()], name
        assert isinstance(layer, type(other)), name


@pytest.mark.parametrize("arch", STOCK)
def test_full_width_at_28_differs_from_torchvision_in_stem_and_head_alone(arch: str) -> None:
    with torch.device("meta"):
        stock, made = shapes(STOCK[arch](num_classes=9)), shapes(Architecture.parse(arch).build(9, 3, 28).network)
    differing = {name for name in stock.keys() | made.keys() if stock.get(name) != made.get(name)}
    stem = {"resnet18": {"conv1.weight"}, "resnet50": {"conv1.weight"}, "densenet121": {"features.conv0.weight"}, "vgg11": set()}[
        arch
    ]
    assert {name for name in differing if not name.startswith("classifier.")} == stem
    if arch != "vgg11":
        assert differing == stem
    else:
        assert made["classifier.0.weight"] == (9, 512)
    # The well-known sizes for CIFAR-like stems: 11.17 M for ResNet-18.
    if arch == "resnet18":
        assert (
            sum(torch.Size(made[name]).numel() for name in made if not name.endswith(("mean", "var", "tracked")))
            == 11_173_962 - 513
        )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("arch", STOCK)
def test_small_stems_keep_the_resolution(arch: str, channels: int) -> None:
    network = Architecture.parse(arch).build(4, channels, 28, width=0.125)
    inside = network.network
    first = {"vgg11": lambda: inside.features[2], "densenet121": lambda: inside.features.denseblock1}.get(
        arch, lambda: inside.layer1
    )()
    seen: list[tuple[int, ...]] = []
    first.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[2:])))
    network(torch.rand(2, channels, 28, 28))
    assert seen == [(32, 32) if arch == "vgg11" else (28, 28)]


@pytest.mark.parametrize(("size", "resolution"), [(64, 64), (128, 32), (224, 56)])
def test_large_images_get_torchvisions_stem(size: int, resolution: int) -> None:
    network = Architecture.parse("resnet18").build(4, 3, size, width=0.125).eval()
    seen: list[int] = []
    network.network.layer1.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
    network(torch.rand(1, 3, size, size))
    assert seen == [resolution]


class Peek(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.zeros(0)

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return images.mean((1, 2, 3))[:, None]


@pytest.mark.parametrize(("size", "before", "after"), [(28, 2, 2), (27, 2, 3), (32, 0, 0), (64, 0, 0)])
def test_small_images_are_padded_with_black_and_normalised(size: int, before: int, after: int) -> None:
    images, peek = torch.rand(2, 3, size, size), Peek()
    Classifier(peek, min_size=32)(images)
    expected = torch.full((2, 3, size + before + after, size + before + after), -2.0)  # black: (0 - 0.5) / 0.25
    expected[:, :, before : before + size, before : before + size] = (images - 0.5) / 0.25
    torch.testing.assert_close(peek.seen, expected, rtol=0, atol=1e-6)


def test_only_vgg_pads() -> None:
    assert {arch: Architecture.parse(arch).build(2, 1, 28, 0.125).min_size for arch in STOCK} == {
        "vgg11": 32, "resnet18": 0, "resnet50": 0, "densenet121": 0,
    }  # fmt: skip


def test_grey_images_as_rgb_are_seen_three_times_and_coloured_ones_once() -> None:
    grey, coloured = torch.rand(2, 1, 28, 28), torch.rand(2, 3, 28, 28)
    network = Architecture.parse("resnet18").build(4, 1, 28, 0.125, as_rgb=True).eval()
    of_colours = Architecture.parse("resnet18").build(4, 3, 28, 0.125, as_rgb=True).eval()
    assert torch.equal(network(grey), of_colours(torch.cat([grey] * 3, dim=1)))
    assert torch.equal(of_colours(coloured), Architecture.parse("resnet18").build(4, 3, 28, 0.125).eval()(coloured))


def test_memory_format_does_not_matter() -> None:
    network, images = Architecture.parse("resnet18").build(4, 3, 28, 0.125).eval(), torch.rand(3, 3, 28, 28)
    assert torch.equal(network(images), network(images.contiguous(memory_format=torch.channels_last)))


def test_seeds_settle_the_weights_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = Architecture.parse("resnet18").build(4, 3, 28, 0.125, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = (Architecture.parse("resnet18").build(4, 3, 28, 0.125, seed=seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["network.conv1.weight"], other["network.conv1.weight"])


@pytest.mark.parametrize("arch", STOCK)
def test_width_scales_every_layer(arch: str) -> None:
    with torch.device("meta"):
        whole, half = (
            sum(parameter.numel() for parameter in Architecture.parse(arch).build(2, 3, 28, width).parameters())
            for width in (1.0, 0.5)
        )
    assert 3.5 < whole / half < 4.3  # both sides of nearly every weight shrink


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "resnet-18"}, r"arch='resnet-18' is not known; did you mean 'resnet18'\?.*densenet121"),
        ({"arch": "mlp"}, r"arch='mlp' is not known\. Choices: vgg11"),
        ({"width": 0}, "width=0 is out of range"),
        ({"width": -0.5}, "width=-0.5 is out of range"),
        ({"num_classes": 0}, "num_classes=0 is out of range"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    options: dict[str, Any] = {"arch": "resnet18", "num_classes": 4} | arguments
    with pytest.raises(ConfigurationError, match=message):
        Architecture.parse(options.pop("arch")).build(**options)


@pytest.mark.parametrize(("size", "patch"), [(28, 4), (32, 4), (50, 5), (64, 8), (128, 16), (224, 32), (29, 1), (5, 1)])
def test_patches_of_a_transformer_divide_the_image(size: int, patch: int) -> None:
    assert patch_of(size) == patch


@pytest.mark.parametrize("channels", [1, 3])
def test_vit_is_torchvisions_transformer(channels: int) -> None:
    """With three channels its weights fit a network that torchvision builds, which then gives the same logits."""
    made = Architecture.parse("vit").build(5, channels, 28, width=0.25).eval()
    images = torch.rand(3, channels, 28, 28, generator=torch.Generator().manual_seed(0))
    stock = tv.VisionTransformer(28, 4, num_layers=6, num_heads=4, hidden_dim=48, mlp_dim=192, num_classes=5).eval()
    if channels == 1:  # one channel shown three times, each with a third of the weight
        state = made.network.state_dict()
        state["conv_proj.weight"] = state["conv_proj.weight"].repeat(1, 3, 1, 1) / 3
        stock.load_state_dict(state)
    else:
        stock.load_state_dict(made.network.state_dict())
    torch.testing.assert_close(made(images), stock((images.expand(-1, 3, -1, -1) - 0.5) / 0.25), rtol=0, atol=1e-5)
    assert not any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in made.modules())


def test_vit_scales_its_width_to_a_multiple_of_its_heads() -> None:
    widths = {width: Architecture.parse("vit").build(2, 3, 28, width).network.hidden_dim for width in (0.125, 0.3, 0.5, 1.0)}
    assert widths == {0.125: 24, 0.3: 56, 0.5: 96, 1.0: 192}


def test_linear_is_linear_in_the_pixels() -> None:
    network = Architecture.parse("linear").build(3, 1, 6)
    weight, bias = network.network[1].weight, network.network[1].bias
    images = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        network(images), torch.einsum("bchw,kchw->bk", (images - 0.5) / 0.25, weight.view(3, 1, 6, 6)) + bias
    )
    assert sum(parameter.numel() for parameter in network.parameters()) == 3 * 36 + 3


def test_resnet50_learns_at_the_usual_rate_from_the_first_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(32) % 4
    images = (0.4 * torch.rand(32, 3, 28, 28, generator=generator) + 0.15 * labels[:, None, None, None]).clamp(0, 1)
    network = Architecture.parse("resnet50").build(4, 3, 28, width=0.125, seed=0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses) < 2.5
    assert losses[-1] < 0.7 * losses[0]


def test_the_shortcuts_of_narrow_resnets_are_strided_convolutions() -> None:
    network = Architecture.parse("resnet18").build(4, 3, 28, width=0.125).network
    plain = {name: layer for name, layer in tv.resnet18().named_modules() if name.endswith("downsample.0")}
    assert len(plain) == 3
    for name, expected in plain.items():
        made = network.get_submodule(name)
        images = torch.rand(2, made.in_channels, 9, 9).requires_grad_()  # contiguous: there, the strided one is sound everywhere
        value = made(images)
        gradients = torch.autograd.grad(value.square().sum(), [images, made.weight])
        other = nn.functional.conv2d(images, made.weight, stride=expected.stride)
        torch.testing.assert_close(value, other)
        for own, oracle in zip(gradients, torch.autograd.grad(other.square().sum(), [images, made.weight]), strict=True):
            torch.testing.assert_close(own, oracle)
