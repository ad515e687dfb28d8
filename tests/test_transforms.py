"""Crop and flip against a per-sample loop of plain padding, slicing and flipping."""

from __future__ import annotations

import oracles
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from salm_lightning.errors import ConfigurationError
from salm_lightning.noise.transforms import CropFlip, default_padding


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(dtype)


@pytest.mark.parametrize(("channels", "size", "padding"), [(3, 28, 4), (1, 28, 4), (3, 12, 2), (2, 9, 7), (3, 8, 0)])
@pytest.mark.parametrize("flip", [True, False])
def test_forward_equals_the_per_sample_loop(channels: int, size: int, padding: int, flip: bool) -> None:
    images, indices = draw(40, channels, size, size) + 0.1, torch.arange(100, 140)
    made = CropFlip(padding, flip)(images, indices, 5, "eot", 3, 1)
    assert made.shape == images.shape
    if flip:
        assert torch.equal(made, oracles.crop_flip(images, indices, padding, 5, "eot", 3, 1))
    else:
        mirrored = oracles.crop_flip(images, indices, padding, 5, "eot", 3, 1)
        flipped = torch.tensor([draws[2] >= 0.5 for draws in oracles.uniform(oracles.fold(5, "eot", 3, 1), indices.tolist(), 3)])
        assert torch.equal(made, torch.where(flipped.view(-1, 1, 1, 1), mirrored.flip(3), mirrored))


def test_images_that_are_not_square_are_cut_right() -> None:
    images, indices = draw(20, 3, 10, 16), torch.arange(20)
    assert torch.equal(CropFlip(3)(images, indices, 0, "eot"), oracles.crop_flip(images, indices, 3, 0, "eot"))


@pytest.mark.parametrize("padding", [0, 2, 4, 9])
def test_gradient_equals_autograd_through_slicing(padding: int) -> None:
    images, indices, weights = draw(30, 3, 12, 12), torch.arange(30), draw(30, 3, 12, 12, seed=1)
    gradients = []
    for transform in (CropFlip(padding), None):
        leaf = images.clone().requires_grad_(True)
        view = transform(leaf, indices, 1, "eot", 2) if transform else oracles.crop_flip(leaf, indices, padding, 1, "eot", 2)
        gradients.append(torch.autograd.grad((view**2 * weights).sum(), leaf)[0])
    assert torch.equal(*gradients)
    assert (gradients[0] != 0).any()


def test_backward_is_the_exact_adjoint() -> None:
    # Integers in float64 make both sides of <T x, y> = <x, T* y> exact.
    x, y = (torch.randint(-99, 99, (64, 3, 14, 14), generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))
    leaf = x.clone().requires_grad_(True)
    view = CropFlip(5)(leaf, torch.arange(64), 0, "eot")
    (adjoint,) = torch.autograd.grad(view, leaf, grad_outputs=y)
    assert (view.detach() * y).sum().item() == (x * adjoint).sum().item()


def test_gradients_of_channels_last_and_expanded_tensors_are_right() -> None:
    images, indices = draw(8, 3, 12, 12), torch.arange(8)
    leaf = images.contiguous(memory_format=torch.channels_last).requires_grad_(True)
    view = CropFlip(2)(leaf, indices, 0, "eot")
    assert torch.equal(view, oracles.crop_flip(images, indices, 2, 0, "eot"))
    (gradient,) = torch.autograd.grad(view.sum(), leaf)  # an expanded gradient of ones
    plain = images.clone().requires_grad_(True)
    assert torch.equal(gradient, torch.autograd.grad(oracles.crop_flip(plain, indices, 2, 0, "eot").sum(), plain)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_kept(dtype: torch.dtype) -> None:
    images = draw(4, 3, 8, 8, dtype=dtype)
    made = CropFlip(1)(images, torch.arange(4), 0, "eot")
    assert made.dtype == dtype
    assert torch.equal(made.float(), oracles.crop_flip(images.float(), torch.arange(4), 1, 0, "eot"))


def test_a_samples_draw_does_not_depend_on_its_batch() -> None:
    images, indices = draw(16, 3, 12, 12), torch.arange(50, 66)
    whole = CropFlip(2)(images, indices, 0, "eot", 7)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(CropFlip(2)(images[order], indices[order], 0, "eot", 7), whole[order])
    assert not torch.equal(CropFlip(2)(images, indices, 0, "eot", 8), whole)
    assert not torch.equal(CropFlip(2)(images, indices, 0, "source", 7), whole)


def test_offsets_cover_the_border_and_half_are_mirrored() -> None:
    # A single bright pixel in the middle tells where the window was cut.
    images = torch.zeros(4000, 1, 9, 9)
    images[:, :, 4, 4] = 1
    made = CropFlip(3, flip=False)(images, torch.arange(4000), 0, "eot")
    row, column = (made[:, 0].flatten(1).argmax(1) // 9), (made[:, 0].flatten(1).argmax(1) % 9)
    for offset in (row, column):
        counts = torch.bincount(offset, minlength=9)
        assert counts[[0, 8]].tolist() == [0, 0]
        assert counts[1:8].min() > 450  # 4000 / 7 = 571
    left = torch.zeros(4000, 1, 8, 8)
    left[:, :, :, 0] = 1
    mirrored = CropFlip(0)(left, torch.arange(4000), 0, "eot")[:, 0, 0, 7].mean().item()
    assert mirrored == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(("size", "padding"), [(28, 4), (32, 4), (64, 8), (128, 16), (224, 28)])
def test_padding_defaults(size: int, padding: int) -> None:
    assert default_padding(size) == padding
    images, indices = draw(2, 1, size, size), torch.tensor([3, 4])
    assert torch.equal(CropFlip()(images, indices, 0, "eot"), oracles.crop_flip(images, indices, padding, 0, "eot"))


def test_borders_are_black() -> None:
    made = CropFlip(4)(torch.ones(200, 1, 8, 8), torch.arange(200), 0, "eot")
    assert set(made.unique().tolist()) == {0.0, 1.0}
    assert F.max_pool2d(made, 8).min() == 1


def test_negative_padding_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="padding=-1 is negative"):
        CropFlip(-1)
