"""Countermeasures against OpenCV, Pillow and plain loops; images that are prepared once, in memory or in a scratch file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import oracles
import pytest
import torch
from fakes import as_tensor, write_fake_npz
from oracles import make_trainer
from PIL import Image
from processes import run
from skimage.restoration import denoise_tv_chambolle
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from salm_lightning.countermeasures import (
    COUNTERMEASURES,
    JPEG,
    AdversarialTraining,
    BitDepth,
    CenterCrop,
    Countermeasure,
    CutMix,
    Cutout,
    FineTune,
    Gaussian,
    Grey,
    ImageCountermeasure,
    Mean,
    Median,
    Mixup,
    OrthogonalProjection,
    Resample,
    StrongAugment,
    TotalVariation,
    TrainingStep,
    UEraserMax,
    projection,
    training,
)
from salm_lightning.data import DatasetInfo, NpzDataModule, Split, SyntheticDataModule, Task
from salm_lightning.data import datamodule as datamodules
from salm_lightning.data import prepared as prepared_images
from salm_lightning.data.arrays import to_tensor
from salm_lightning.errors import ConfigurationError, DivergedError
from salm_lightning.main import main
from salm_lightning.modules import VictimModule
from salm_lightning.noise.transforms import CropFlip

SEED = 3


def pictures(size: int, channels: int, count: int = 6, seed: int = 0) -> np.ndarray:
    """Return smooth pictures with noise and every byte, uint8 ``[N, H, W, C]`` or ``[N, H, W]``."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(-40, 295, (count, 5, 5, channels))
    smooth = np.stack([cv2.resize(image, (size, size)).reshape(size, size, channels) for image in coarse])
    images = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
    images[0] = rng.integers(0, 256, images[0].shape)
    return images[..., 0] if channels == 1 else images


def info_of(images: np.ndarray, task: Task = Task.MULTI_CLASS, classes: int = 3) -> DatasetInfo:
    return DatasetInfo("made", task, tuple(map(str, range(classes))), 3 if images.ndim == 4 else 1, images.shape[1])


def prepared(countermeasure: Countermeasure, images: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """Return what a countermeasure makes of images in the layout of a file."""
    labels = np.arange(len(images), dtype=np.uint8)[:, None] % 3 if labels is None else labels
    preparation = countermeasure.preparation(Split(images, labels), info_of(images), SEED)
    assert preparation is not None
    before = to_tensor(images)
    kept = before.clone()
    after = preparation(before, torch.arange(len(images)))
    assert torch.equal(before, kept), "the images themselves are changed"
    assert after.dtype == torch.uint8
    return after[:, 0].numpy() if images.ndim == 3 else after.permute(0, 2, 3, 1).numpy()


def each(function: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    return np.stack([function(image).reshape(image.shape) for image in images])


def opencv_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Encode and decode; OpenCV takes the first channel for blue."""
    file = cv2.imencode(".jpg", image[..., ::-1] if image.ndim == 3 else image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = cv2.imdecode(file, cv2.IMREAD_UNCHANGED)
    return decoded[..., ::-1] if image.ndim == 3 else decoded


def rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def enlarged(image: np.ndarray, size: int) -> np.ndarray:
    return rounded(cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR))


def cropped(image: np.ndarray, side: int) -> np.ndarray:
    first = (len(image) - side) // 2
    return enlarged(image[first : first + side, first : first + side].astype(np.float32), len(image))


def resampled(image: np.ndarray, side: int) -> np.ndarray:
    return enlarged(cv2.resize(image.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA), len(image))


def fewer_bits(image: np.ndarray, bits: int) -> np.ndarray:
    """Return the nearest level of each value by search."""
    levels = np.linspace(0, 255, 2**bits)
    nearest = np.abs(image.astype(float).reshape(-1, 1) - levels).argmin(axis=1)
    return rounded(levels[nearest]).reshape(image.shape)


ORACLES: dict[str, tuple[Countermeasure, Callable[[np.ndarray], np.ndarray]]] = {
    "mean": (Mean(), lambda image: cv2.blur(image, (3, 3))),
    "median": (Median(), lambda image: cv2.medianBlur(image, 3)),
    "gaussian": (Gaussian(), lambda image: cv2.GaussianBlur(image, (3, 3), 0.8)),
    "wide gaussian": (Gaussian(sigma=2.0), lambda image: cv2.GaussianBlur(image, (3, 3), 2.0)),
    "jpeg 10": (JPEG(quality=10), lambda image: opencv_jpeg(image, 10)),
    "jpeg 50": (JPEG(quality=50), lambda image: opencv_jpeg(image, 50)),
    "jpeg 90": (JPEG(quality=90), lambda image: opencv_jpeg(image, 90)),
    **{f"{bits} bits": (BitDepth(bits=bits), lambda image, bits=bits: fewer_bits(image, bits)) for bits in range(1, 8)},
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 33])
@pytest.mark.parametrize("name", ORACLES)
def test_bytes_equal_those_of_an_independent_library(name: str, size: int, channels: int) -> None:
    countermeasure, oracle = ORACLES[name]
    images = pictures(size, channels)
    after = prepared(countermeasure, images)
    np.testing.assert_array_equal(after, each(oracle, images))
    assert (after != images).any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("countermeasure", "oracle"),
    [
        (CenterCrop(share=0.75), lambda image: cropped(image, 24)),
        (CenterCrop(share=0.5), lambda image: cropped(image, 16)),
        (Resample(factor=2), lambda image: resampled(image, 16)),
        (Resample(factor=4), lambda image: resampled(image, 8)),
    ],
    ids=["crop 24", "crop 16", "half", "quarter"],
)
def test_scaling_equals_opencv(countermeasure: Countermeasure, oracle: Callable[[np.ndarray], np.ndarray], channels: int) -> None:
    """Values that are half-way between two bytes may fall either way in float32."""
    images = pictures(32, channels)
    after, expected = prepared(countermeasure, images).astype(int), each(oracle, images).astype(int)
    assert np.abs(after - expected).max() <= 1
    assert (after != expected).mean() < 0.01
    assert np.abs(after - images).mean() > 1


@pytest.mark.parametrize("size", [28, 31])
def test_scaling_keeps_blank_images_of_any_size(size: int) -> None:
    blank = np.full((2, size, size), 77, np.uint8)
    for countermeasure in (CenterCrop(share=0.6), Resample(factor=1.7), Resample(factor=1000)):
        np.testing.assert_array_equal(prepared(countermeasure, blank), blank)


def test_grey_is_pillows_in_every_channel_and_for_the_test_split_too() -> None:
    images = pictures(28, 3)
    after = prepared(Grey(), images)
    np.testing.assert_array_equal(
        after, np.stack([[np.asarray(Image.fromarray(image).convert("L"))] * 3 for image in images]).transpose(0, 2, 3, 1)
    )
    assert Grey().on_test
    grey = pictures(28, 1)
    assert Grey().preparation(Split(grey, np.zeros((6, 1), np.uint8)), info_of(grey), 0) is None
    assert not any(kind.on_test for name, kind in COUNTERMEASURES.items() if name != "grey")
    assert CenterCrop(on_test=True).on_test


# What changes a training step ------------------------------------------------------------------------------------------------


class Peek(nn.Module):
    """A linear classifier that keeps what it was shown."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(pixels, classes, generator=generator) / pixels**0.5)
        self.shown: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shown.append(images.detach().clone())
        return images.flatten(1) @ self.weight


def make_step(task: Task = Task.MULTI_CLASS, size: int = 16, count: int = 12, number: int = 4, **changed: Any) -> TrainingStep:
    images = as_tensor(pictures(size, 3, count))
    indices = torch.arange(100, 100 + count)
    labels = torch.arange(count) % 4
    if task is Task.MULTI_LABEL:
        labels = torch.stack([labels > 0, labels > 1, labels == 3, labels == 2], dim=1).float()
    step = TrainingStep(images, labels, indices, task, 4, SEED, Peek(images[0].numel(), 4), CropFlip(padding=2), number)
    return replace(step, **changed)


def plain_loss(logits: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Return the loss of each sample as the mean over the batch of an ordinary step weighs it."""
    if task is Task.MULTI_LABEL:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)
    return -logits.log_softmax(dim=1)[range(len(labels)), labels]


def augmented(step: TrainingStep) -> Tensor:
    return oracles.crop_flip(step.images, step.indices, 2, step.seed, "victim", step.number)


def shown(step: TrainingStep) -> Tensor:
    network = step.network
    assert isinstance(network, Peek)
    return network.shown[-1]


def drawn(step: TrainingStep, purpose: str) -> np.ndarray:
    """Return the first draw of each sample in a stream."""
    return oracles.uniform(oracles.fold(step.seed, purpose, step.number), step.indices.tolist(), 1)[:, 0]


@pytest.mark.parametrize("task", [Task.MULTI_CLASS, Task.MULTI_LABEL])
def test_mixup_blends_two_augmented_images_and_their_losses(task: Task) -> None:
    step = make_step(task)
    loss = Mixup().loss(step)
    images, order = augmented(step), np.argsort(drawn(step, "mixup partner"))
    share = torch.from_numpy(drawn(step, "mixup share"))
    partner = [order[(list(order).index(number) + 1) % len(order)] for number in range(len(order))]
    assert all(number != other for number, other in enumerate(partner))
    expected = torch.stack([share[n] * images[n] + (1 - share[n]) * images[partner[n]] for n in range(len(images))])
    torch.testing.assert_close(shown(step), expected)
    logits = step.network(expected)
    losses = share * plain_loss(logits, step.labels, task) + (1 - share) * plain_loss(logits, step.labels[partner], task)
    torch.testing.assert_close(loss, losses.mean())
    assert loss.requires_grad


@pytest.mark.parametrize("task", [Task.MULTI_CLASS, Task.MULTI_LABEL])
def test_cutmix_pastes_rectangles_and_weighs_labels_by_what_is_seen(task: Task) -> None:
    generator = torch.Generator().manual_seed(2)  # no two values are equal, so that what is seen of each image can be told
    step = make_step(task, images=torch.rand(12, 3, 16, 16, generator=generator), transform=CropFlip(padding=0))
    loss = CutMix().loss(step)
    images, order = (
        oracles.crop_flip(step.images, step.indices, 0, SEED, "victim", step.number),
        list(np.argsort(drawn(step, "cutmix partner"))),
    )
    share, losses = drawn(step, "cutmix share"), []
    for number, mixed in enumerate(shown(step)):
        other = order[(order.index(number) + 1) % len(order)]
        own, pasted = (mixed == images[number]).all(0), (mixed == images[other]).all(0)
        assert (own | pasted).all()
        rows, columns = (np.flatnonzero((~own).any(axis).numpy()) for axis in (1, 0))
        if len(rows):
            assert pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all(), "not a rectangle"
            assert max(np.ptp(rows), np.ptp(columns)) + 1 <= int(np.sqrt(1 - share[number]) * 16)
        seen = own.float().mean()
        logits = step.network(mixed[None])
        one, two = (plain_loss(logits, step.labels[[index]], task) for index in (number, other))
        losses.append(seen * one + (1 - seen) * two)
    torch.testing.assert_close(loss, torch.cat(losses).mean())


def test_cutmix_replaces_half_of_the_pixels_before_the_border_cuts() -> None:
    """The share of a rectangle's area is uniform; the border takes a bit off it."""
    step = make_step(size=16, count=2000, images=torch.zeros(2000, 3, 16, 16), labels=torch.zeros(2000, dtype=torch.int64))
    step = replace(step, images=torch.linspace(0.1, 1, 2000)[:, None, None, None].expand(-1, 3, 16, 16), transform=CropFlip(0))
    CutMix().loss(step)
    replaced = (shown(step) != step.images).any(1).float().mean(dim=(1, 2))
    assert 0.28 < replaced.mean() < 0.38  # 0.5 without a border
    assert replaced.max() > 0.8
    assert replaced.min() < 0.01


def test_cutout_hides_a_square_at_any_place() -> None:
    step = make_step(count=300, size=16)
    loss = Cutout(share=0.5).loss(step)
    images = augmented(step)
    hidden = (shown(step) != images).any(1)
    assert (shown(step).masked_select(hidden[:, None].expand(-1, 3, -1, -1)) == 0.5).all()
    sizes = {(int(mask.any(1).sum()), int(mask.any(0).sum())) for mask in hidden}
    assert max(sizes) == (8, 8)
    assert min(min(pair) for pair in sizes) == 4, "the border cuts off up to half"
    assert hidden.any(0).all(), "every place is hidden at times"
    torch.testing.assert_close(loss, plain_loss(step.network(shown(step)), step.labels, Task.MULTI_CLASS).mean())


RANDOM = (Mixup(), CutMix(), Cutout(), StrongAugment(), UEraserMax(draws=2), AdversarialTraining(pgd_steps=1))


@pytest.mark.parametrize("countermeasure", RANDOM, ids=lambda countermeasure: countermeasure.name)
def test_draws_belong_to_samples_and_steps(countermeasure: Countermeasure) -> None:
    step = make_step()
    first, again = (countermeasure.loss(step) for _ in range(2))
    assert torch.equal(first, again)
    order = torch.randperm(len(step.labels), generator=torch.Generator().manual_seed(1))
    shuffled = replace(step, images=step.images[order], labels=step.labels[order], indices=step.indices[order])
    before = shown(step)
    torch.testing.assert_close(countermeasure.loss(shuffled), first)
    assert torch.equal(shown(shuffled), before[order])
    for changed in (replace(step, number=5), replace(step, seed=SEED + 1)):
        assert not torch.equal(countermeasure.loss(changed), first)


def test_a_batch_of_one_is_left_whole() -> None:
    step = make_step(count=1)
    for countermeasure in (Mixup(), CutMix()):
        torch.testing.assert_close(countermeasure.loss(step), Countermeasure().loss(step))


# Strong augmentation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_each_change_equals_torchvisions_on_single_images(channels: int) -> None:
    images = as_tensor(pictures(25, channels, 5))
    angle, scale = torch.tensor([-30.0, -7, 0, 12, 30]), torch.tensor([0.75, 0.9, 1, 1.1, 1.25])
    shear, factor = torch.tensor([15.0, -15, 0, 4, 9]), torch.tensor([0.1, 0.6, 1, 1.3, 1.9])

    def singly(function: Callable[..., Tensor], *values: Tensor) -> Tensor:
        return torch.stack([function(image, *(value[n].item() for value in values)) for n, image in enumerate(images)])

    def affine(image: Tensor, angle: float, scale: float, shear: float) -> Tensor:
        bilinear = v2.InterpolationMode.BILINEAR
        return v2.functional.affine(image, angle, [0, 0], scale, [shear, 0.0], interpolation=bilinear)

    expected = singly(affine, angle, scale, shear)
    torch.testing.assert_close(training.affine(images, angle, scale, shear), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(training.adjust_contrast(images, factor), singly(v2.functional.adjust_contrast, factor))
    torch.testing.assert_close(training.solarise(images, factor / 2), singly(v2.functional.solarize, factor / 2))
    if channels == 3:
        torch.testing.assert_close(training.adjust_saturation(images, factor), singly(v2.functional.adjust_saturation, factor))
        grey = singly(lambda image: v2.functional.rgb_to_grayscale(image, num_output_channels=3))
        torch.testing.assert_close(training.adjust_saturation(images, torch.zeros(5)), grey)


def test_light_is_an_interpolated_grid() -> None:
    grid = np.random.default_rng(0).uniform(-0.2, 0.2, (3, 4, 4)).astype(np.float32)
    images = torch.full((3, 3, 24, 24), 0.5)
    expected = 0.5 + np.stack([cv2.resize(field, (24, 24), interpolation=cv2.INTER_LINEAR) for field in grid])
    lit = training.lighten(images, torch.from_numpy(grid)[:, None])
    torch.testing.assert_close(lit, torch.from_numpy(expected)[:, None].expand_as(lit))
    assert training.lighten(images, torch.full((3, 1, 4, 4), 0.9)).max() == 1


def test_channels_are_shuffled_where_chosen() -> None:
    images = as_tensor(pictures(8, 3, 2))
    shuffled = training.shuffle_channels(images, torch.tensor([[0.7, 0.1, 0.4]] * 2), torch.tensor([True, False]))
    assert torch.equal(shuffled[0], images[0][[1, 2, 0]])
    assert torch.equal(shuffled[1], images[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_strong_augmentation_changes_every_image_by_its_strength(channels: int) -> None:
    images, indices = as_tensor(pictures(20, channels, 200)), torch.arange(200)
    assert torch.allclose(training.strongly_augmented(images, indices, 9, 0.0), images, atol=1e-5)
    weak, full = (training.strongly_augmented(images, indices, 9, strength) for strength in (0.1, 1.0))
    for views in (weak, full):
        assert views.shape == images.shape
        assert views.min() >= 0
        assert views.max() <= 1
    distance = [(views - images).abs().mean(dim=(1, 2, 3)) for views in (weak, full)]
    assert distance[1].min() > 0.01
    assert distance[0].mean() < 0.3 * distance[1].mean()
    if channels == 3:
        greys = (full[:, 0] - full[:, 1]).abs().amax(dim=(1, 2)) < 1e-6
        assert 0.1 < greys.float().mean() < 0.3
    one = training.strongly_augmented(images[7:8], indices[7:8], 9, 1.0)
    torch.testing.assert_close(one, full[7:8])  # an image's draws do not depend on its batch


def test_ueraser_max_trains_on_the_worst_view_of_each_image() -> None:
    step = make_step(network=Normalised())
    countermeasure = UEraserMax(draws=4)
    views = torch.stack([countermeasure.view(step, draw) for draw in range(4)])
    with torch.no_grad():
        losses = torch.stack([plain_loss(step.network.eval()(view), step.labels, step.task) for view in views])
    step.network.train()
    before = {name: value.clone() for name, value in step.network.state_dict().items()}
    loss = countermeasure.loss(step)
    worst = losses.argmax(dim=0)
    assert len(set(worst.tolist())) > 2
    expected = views[worst, torch.arange(len(worst))]
    torch.testing.assert_close(step.network.shown[-1], expected)
    assert loss > 1.01 * losses.mean()
    assert step.network.training
    counted = int(step.network.state_dict()["norm.num_batches_tracked"] - before["norm.num_batches_tracked"])
    assert counted == 1, "choosing moves the statistics"
    loss.backward()
    assert step.network.weight.grad.abs().sum() > 0


class Normalised(Peek):
    """A classifier with batch norm."""

    def __init__(self) -> None:
        super().__init__(16 * 16 * 3, 4)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        self.shown.append(images.detach().clone())
        return self.norm(images).flatten(1) @ self.weight


# Adversarial training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [Task.MULTI_CLASS, Task.MULTI_LABEL])
def test_adversarial_training_equals_a_plain_pgd(task: Task) -> None:
    step = make_step(task, network=Normalised())
    network, radius = copy.deepcopy(step.network).eval(), 4 / 255
    draws = oracles.uniform(oracles.fold(SEED, "adversarial start", step.number), step.indices.tolist(), step.images[0].numel())
    images = step.images
    attacked = (images + torch.from_numpy((2 * draws.reshape(images.shape) - 1) * np.float32(radius))).clamp(0, 1)
    for _ in range(3):
        attacked.requires_grad_(True)
        view = oracles.crop_flip(attacked, step.indices, 2, SEED, "victim", step.number, 0, 0)
        plain_loss(network(view), step.labels, task).sum().backward()
        moved = attacked.detach() + radius / 4 * attacked.grad.sign()
        attacked = torch.minimum(torch.maximum(moved, images - radius), images + radius).clamp(0, 1)
    loss = AdversarialTraining(radius=4, pgd_steps=3).loss(step)
    expected = oracles.crop_flip(attacked, step.indices, 2, SEED, "victim", step.number, 0, 0)
    torch.testing.assert_close(step.network.shown[-1], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(loss, plain_loss(network.train()(expected), step.labels, task).mean())
    assert loss.requires_grad


def test_adversarial_images_stay_in_the_radius_and_are_harder() -> None:
    step = make_step()
    for radius in (4, 8):
        delta = AdversarialTraining(radius=radius).perturbation(step)
        assert 0.9 * radius / 255 < delta.abs().max() <= radius / 255 + 1e-7
        assert (step.images + delta).min() >= 0
        assert (step.images + delta).max() <= 1
        assert AdversarialTraining(radius=radius).loss(step) > Countermeasure().loss(step)


@pytest.mark.parametrize(
    "countermeasure", [AdversarialTraining(pgd_steps=2), UEraserMax(draws=2)], ids=lambda countermeasure: countermeasure.name
)
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_weights_get_gradients_in_low_precision(countermeasure: Countermeasure, precision: torch.dtype) -> None:
    """Autocast keeps what it has cast; weights that were cast without gradient would stay without one."""
    step = make_step()
    with torch.autocast("cpu", precision):
        countermeasure.loss(step).backward()
    assert step.network.weight.grad.abs().sum() > 0


# What is learnt or solved before training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("weight", [0.1, 0.3])
def test_total_variation_equals_scikit_image(weight: float, channels: int) -> None:
    images = pictures(20, channels, 3, seed=1)
    after = prepared(TotalVariation(weight=weight), images)
    axis = -1 if channels == 3 else None

    def oracle(image: np.ndarray, **options: Any) -> np.ndarray:
        values = image.astype(np.float32) / 255
        return rounded(255 * denoise_tv_chambolle(values, weight=weight, channel_axis=axis, **options))

    same = each(lambda image: oracle(image, eps=0, max_num_iter=51), images).astype(int)  # its first iteration changes nothing
    assert np.abs(after - same).max() <= 1
    assert (after != same).mean() < 0.01
    if weight == 0.1:
        converged = each(lambda image: oracle(image, eps=0, max_num_iter=500), images).astype(int)
        assert np.abs(after - converged).mean() < 1
    assert np.abs(np.diff(after.astype(int), axis=1)).sum() < 0.9 * np.abs(np.diff(images.astype(int), axis=1)).sum()


def coded(count: int = 240, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return images with a faint pattern for each of three classes, and the labels ``[N, 1]``."""
    rng = np.random.default_rng(5)
    labels = np.arange(count) % 3
    images = pictures(16, channels, count, seed=2).astype(float)
    codes = rng.choice([-8, 8], (3, *images.shape[1:]))
    return rounded(images + codes[labels]), labels.astype(np.uint8)[:, None]


def test_orthogonal_projection_trains_a_linear_model_and_takes_its_directions_out() -> None:
    images, labels = coded()
    info = info_of(images)
    flat = torch.from_numpy(images).permute(0, 3, 1, 2).flatten(1).float() / 255
    weight = torch.zeros(3, flat.shape[1], requires_grad=True)
    for step in range(60):
        rate = 0.1 * 0.1 ** ((step >= 30) + (step >= 45))
        F.cross_entropy(flat @ weight.T, torch.from_numpy(labels[:, 0]).long()).backward()  # a batch is the whole split
        weight.data -= rate * weight.grad
        weight.grad = None
    learnt = projection.linear_weights(Split(images, labels), info, SEED, 60)
    torch.testing.assert_close(learnt, weight.detach(), rtol=1e-4, atol=1e-5)
    after = prepared(OrthogonalProjection(steps=60), images, labels)
    directions = learnt.double().numpy()[:2].T  # the third is minus their sum
    values = 255 * flat.double().numpy()
    expected = rounded(values - (directions @ np.linalg.lstsq(directions, values.T, rcond=None)[0]).T)
    expected = expected.reshape(len(images), 3, 16, 16).transpose(0, 2, 3, 1)
    assert (after != expected).mean() < 1e-3
    assert (after != images).mean() > 0.2


def test_a_linear_model_no_longer_tells_projected_images_apart() -> None:
    images, labels = coded(800, channels=1)

    def accuracy(images: np.ndarray) -> float:
        flat, half = images.reshape(len(images), -1) / 255, len(images) // 2
        return LogisticRegression(max_iter=500).fit(flat[:half], labels[:half, 0]).score(flat[half:], labels[half:, 0])

    after = prepared(OrthogonalProjection(steps=300), images, labels)
    assert accuracy(images) > 0.95
    assert accuracy(after) < 0.6


def test_projection_of_a_part_is_that_of_the_whole() -> None:
    """Ranks prepare their own images: neither the batches nor the labels' kind may matter."""
    images, labels = coded(60, channels=1)
    several = np.concatenate([labels == 0, labels == 1], axis=1).astype(np.uint8)
    info = info_of(images, Task.MULTI_LABEL, 2)
    project = OrthogonalProjection(steps=20).preparation(Split(images, several), info, SEED)
    assert project is not None
    tensor, indices = to_tensor(images), torch.arange(60)
    whole = project(tensor, indices)
    assert torch.equal(torch.cat([project(part, indices) for part in tensor.split(7)]), whole)
    assert not torch.equal(whole, tensor)


# Fine-tuning ------------------------------------------------------------------------------------------------------------------


def save_victim(folder: Path, **options: Any) -> tuple[VictimModule, str]:
    module = VictimModule(**{"num_classes": 3, "channels": 3, "image_size": 16, "width": 0.125, "seed": 8} | options)
    path = folder / "victim.ckpt"
    torch.save({"state_dict": module.state_dict()}, path)
    return module, str(path)


@pytest.mark.parametrize("arch", ["vgg11", "resnet18", "densenet121", "vit"])
def test_fine_tuning_starts_from_the_checkpoint_except_for_a_head_of_other_classes(tmp_path: Path, arch: str) -> None:
    known, path = save_victim(tmp_path, arch=arch, num_classes=5)
    fresh = VictimModule(3, image_size=16, width=0.125, arch=arch)
    before, saved = ({name: value.clone() for name, value in module.network.state_dict().items()} for module in (fresh, known))
    FineTune(path).initialise(fresh.network)
    copied = {name for name, value in fresh.network.state_dict().items() if torch.equal(value, saved[name])}
    kept = fresh.network.state_dict().keys() - copied
    assert len(kept) == 2
    for name in kept:
        assert torch.equal(fresh.network.state_dict()[name], before[name])
        assert len(before[name]) == 3
    same = VictimModule(5, image_size=16, width=0.125, arch=arch)
    FineTune(path).initialise(same.network)
    assert all(torch.equal(value, saved[name]) for name, value in same.network.state_dict().items())


def test_a_fit_starts_from_the_checkpoint_and_a_resumed_one_from_its_own(tmp_path: Path) -> None:
    known, path = save_victim(tmp_path)
    data, first = make_data(tmp_path), {}

    class Start(VictimModule):
        def on_train_start(self) -> None:
            super().on_train_start()
            first.update({name: value.clone() for name, value in self.network.state_dict().items()})

    def run(steps: int, **options: Any) -> VictimModule:
        module = Start(3, image_size=16, width=0.125, countermeasure=FineTune(path), seed=SEED)
        trainer = make_trainer(tmp_path, steps)
        trainer.fit(module, datamodule=data, **options)
        trainer.save_checkpoint(tmp_path / "later.ckpt")
        return module

    trained = run(2)
    assert all(torch.equal(value, known.network.state_dict()[name]) for name, value in first.items())
    run(3, ckpt_path=tmp_path / "later.ckpt", weights_only=True)
    assert all(torch.equal(value, trained.network.state_dict()[name]) for name, value in first.items())


def test_unfit_checkpoints_are_refused(tmp_path: Path) -> None:
    _, path = save_victim(tmp_path)
    for options in ({"width": 0.25}, {"channels": 1}, {"arch": "vgg11"}):
        other = VictimModule(**{"num_classes": 3, "image_size": 16, "width": 0.125} | options)
        with pytest.raises(ConfigurationError, match=r"holds another network: .* Give the architecture, width"):
            FineTune(path).initialise(other.network)
    with pytest.raises(ConfigurationError, match=r"checkpoint=nowhere.ckpt is no file; name a victim's checkpoint"):
        FineTune("nowhere.ckpt")
    network = VictimModule(3, image_size=16, width=0.125).network
    for content, message in (
        ({"state_dict": {"source.weight": torch.ones(1)}}, "is no victim's"),
        ({"weights": 1}, "is damaged, or no"),
    ):
        torch.save(content, path)
        with pytest.raises(ConfigurationError, match=message):
            FineTune(path).initialise(network)
    Path(path).write_bytes(b"no checkpoint")
    with pytest.raises(ConfigurationError, match="is damaged, or no checkpoint"):
        FineTune(path).initialise(network)


# The way into training --------------------------------------------------------------------------------------------------------


class Negative(ImageCountermeasure):
    """Inverts the images; nothing else can be mistaken for it."""

    def __init__(self, on_test: bool = False) -> None:
        self.on_test = on_test

    def prepare(self, images: Tensor) -> Tensor:
        return 255 - images


class Watch(VictimModule):
    """Keeps the first batches that it is given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: dict[str, Tensor] = {}

    def _see(self, name: str, batch: Any) -> None:
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
            self.seen[f"{name} {index}"] = (image * 255).round().to(torch.uint8)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._see("train", batch)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._see(("val", "test")[dataloader_idx], batch)
        super().validation_step(batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._see("test", batch)
        super().test_step(batch, batch_idx)


SIZES = {"train": 24, "val": 8, "test": 10}


def make_data(folder: Path, **options: Any) -> NpzDataModule:
    info = DatasetInfo("fake", Task.MULTI_CLASS, ("a", "b", "c"), 3, 16)
    write_fake_npz(folder / "fake.npz", info, tuple(SIZES.values()))
    return NpzDataModule(folder / "fake.npz", batch_size=8, seed=SEED, num_workers=0, **options)


def watch(data: NpzDataModule, countermeasure: Countermeasure | None) -> Watch:
    return Watch(
        data.num_classes, data.channels, data.image_size, data.task, width=0.125, countermeasure=countermeasure, seed=SEED
    )


def check_seen(module: Watch, data: NpzDataModule, inverted: dict[str, bool]) -> None:
    with np.load(data.source_path) as file:
        for name, inverse in inverted.items():
            images = to_tensor(file[f"{name}_images"])
            for index, image in enumerate(255 - images if inverse else images):
                assert torch.equal(module.seen[f"{name} {index}"], image), (name, index)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SALM_CACHE_DIR", str(folder))
    return folder


def scratch(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob(".scratch-*/*"))


@pytest.mark.parametrize("resident", ["device", "mapped"])
@pytest.mark.parametrize("on_test", [False, True])
def test_images_are_prepared_once_for_fit_and_test(tmp_path: Path, cache: Path, resident: Any, on_test: bool) -> None:
    data, trainer = make_data(tmp_path, resident=resident), make_trainer(tmp_path, 3, limit_val_batches=1.0)
    module = watch(data, Negative(on_test))
    trainer.fit(module, datamodule=data)
    inverted = {"train": True, "val": on_test, "test": on_test}
    check_seen(module, data, inverted)
    module.seen.clear()
    trainer.test(module, datamodule=data, verbose=False)
    check_seen(module, data, {"test": on_test})
    assert not list(cache.glob(".scratch-*")), "scratch files are left behind"
    # The same data serve another victim as they are stored.
    clean = watch(data, None)
    make_trainer(tmp_path, 3, limit_val_batches=1.0).fit(clean, datamodule=data)
    check_seen(clean, data, dict.fromkeys(SIZES, False))


def test_large_splits_go_to_a_scratch_file(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here only the training split is above the limit; chunks are small enough for several."""
    images = {name: count * 16 * 16 * 3 for name, count in SIZES.items()}
    monkeypatch.setattr(datamodules, "RESIDENT_LIMIT", images["test"])
    monkeypatch.setattr(prepared_images, "_CHUNK", 7 * 16 * 16 * 3)
    data, module = make_data(tmp_path), watch(make_data(tmp_path), Negative(on_test=True))
    files: list[str] = []
    monkeypatch.setattr(module, "on_train_end", lambda: files.extend(scratch(cache)))
    make_trainer(tmp_path, 3, limit_val_batches=1.0).fit(module, datamodule=data)
    assert files == ["1.npy"]
    assert not list(cache.glob(".scratch-*"))
    check_seen(module, data, dict.fromkeys(SIZES, True))


def test_workers_read_prepared_images(tmp_path: Path, cache: Path) -> None:
    data = make_data(tmp_path, resident="mapped")
    data.num_workers = 1
    data.prepare_images(lambda: Negative().preparation(data.split("train"), data.info, 0), ("train",))
    for images, _, indices in data.train_dataloader():
        assert torch.equal(images, 255 - to_tensor(data.split("train").images[indices.numpy()]))
    assert scratch(cache) == ["1.npy"]
    data.teardown("fit")
    assert not list(cache.glob(".scratch-*"))


def test_ranks_prepare_their_own_images_and_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[int]] = {"train": [], "test": []}
    for rank in range(2):
        data = make_data(tmp_path)
        monkeypatch.setattr(data, "_place", lambda rank=rank: (rank, 2, torch.device("cpu")))
        done: list[int] = []

        def note(images: Tensor, indices: Tensor, done: list[int] = done) -> Tensor:
            done.extend(indices.tolist())
            return 255 - images

        data.prepare_images(lambda note=note: note, ("train", "test"))
        for name, make in (("train", data.train_dataloader), ("test", data.test_dataloader)):
            for images, _, indices in make():
                assert torch.equal(images, 255 - to_tensor(data.split(name).images[indices.numpy()]))
            seen[name] += done
            done.clear()
        data.train_dataloader()
        assert not done, "prepared twice"
    assert sorted(seen["train"]) == list(range(SIZES["train"]))
    assert sorted(seen["test"]) == list(range(SIZES["test"]))


def test_the_last_pass_and_the_splits_stay_as_they_are(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    data.prepare_images(lambda: lambda images, indices: 255 - images, ("train", "val", "test"))
    data.train_dataloader()
    with np.load(data.source_path) as file:
        np.testing.assert_array_equal(data.split("train").images, file["train_images"])
        (batch,) = data.predict_dataloader()
        assert torch.equal(batch.images[: SIZES["train"]], to_tensor(file["train_images"]))


def test_a_failed_fit_leaves_the_data_clean(tmp_path: Path, cache: Path) -> None:
    data = make_data(tmp_path, resident="mapped")
    module = watch(data, Negative())
    with torch.no_grad():
        next(module.network.parameters()).fill_(torch.nan)
    with pytest.raises(DivergedError):
        make_trainer(tmp_path, 3).fit(module, datamodule=data)
    assert not list(cache.glob(".scratch-*"))
    (images, *_), *_ = data.train_dataloader()
    assert any(torch.equal(images[0], image) for image in to_tensor(data.split("train").images))


def test_what_cannot_be_prepared_is_refused(tmp_path: Path) -> None:
    data = make_data(tmp_path)

    class Floats(ImageCountermeasure):
        def prepare(self, images: Tensor) -> Tensor:
            return images / 255

    with pytest.raises(ConfigurationError, match=r"A countermeasure made torch.float32 .* has to keep shape and type"):
        make_trainer(tmp_path, 3).fit(watch(data, Floats()), datamodule=data)
    with pytest.raises(ConfigurationError, match="countermeasure=mean prepares images, which takes a DataModule of this package"):
        make_trainer(tmp_path, 3).fit(watch(data, Mean()), train_dataloaders=data.train_dataloader())


# Names and settings -----------------------------------------------------------------------------------------------------------


def test_every_countermeasure_is_known_by_its_name_and_settings() -> None:
    for name, kind in COUNTERMEASURES.items():
        countermeasure = kind(__file__) if kind is FineTune else kind()
        assert (countermeasure.name, countermeasure.settings()["name"]) == (name, name)
        assert json.loads(json.dumps(countermeasure.settings())) == countermeasure.settings()
    assert JPEG(quality=50).settings() == {"name": "jpeg", "quality": 50}
    assert CenterCrop().settings() == {"name": "centercrop", "share": 0.75, "on_test": False}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(sigma=0), "sigma=0 is out of range"),
        (lambda: CenterCrop(share=1), "share=1 is out of range"),
        (lambda: CenterCrop(share=0), "share=0 is out of range"),
        (lambda: JPEG(quality=0), "quality=0 is out of range"),
        (lambda: JPEG(quality=101), "quality=101 is out of range"),
        (lambda: BitDepth(bits=0), "bits=0 is out of range"),
        (lambda: BitDepth(bits=8), "bits=8 is out of range"),
        (lambda: Resample(factor=1), "factor=1 is out of range"),
        (lambda: Cutout(share=0), "share=0 is out of range"),
        (lambda: StrongAugment(strength=0), "strength=0 is out of range"),
        (lambda: StrongAugment(strength=1.1), "strength=1.1 is out of range"),
        (lambda: UEraserMax(draws=1), "draws=1 leaves nothing to choose"),
        (lambda: AdversarialTraining(radius=0), "radius=0 is out of range"),
        (lambda: AdversarialTraining(pgd_steps=0), "pgd_steps=0 is out of range"),
        (lambda: OrthogonalProjection(steps=0), "steps=0 is out of range"),
        (lambda: TotalVariation(weight=0), "weight=0 is out of range"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], Countermeasure], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


# On the command line ----------------------------------------------------------------------------------------------------------

SMALL = [
    *("--data", "SyntheticDataModule", "--data.size", "16", "--data.train_size", "16", "--data.val_size", "8", "--data.test_size", "8"),
    *("--data.batch_size", "8", "--model.width", "0.125", "--trainer.max_steps", "2", "--trainer.accelerator", "cpu"),
]  # fmt: skip


@pytest.mark.usefixtures("workplace")
def test_fit_and_predict_from_the_command_line() -> None:
    """A user of grey images gives the finished model grey ones, in test as in predict."""
    arguments = ["--config", "victim.yaml", "--config", "countermeasure/grey.yaml", *SMALL]
    assert main(["fit", *arguments, "--run", "grey"]) == 0
    assert main(["predict", *arguments, "--ckpt_path", "lightning_logs/grey"]) == 0
    probabilities = np.load("lightning_logs/grey/predictions.npz")["probabilities"]
    data = SyntheticDataModule(size=16, train_size=16, val_size=8, test_size=8)
    module = VictimModule(4, image_size=16, width=0.125)
    module.load_state_dict(torch.load("lightning_logs/grey/checkpoints/step=2.ckpt", weights_only=True)["state_dict"])
    images = Grey().prepare(to_tensor(data.split("test").images)).float() / 255
    with torch.inference_mode():
        expected = module.eval()(images).softmax(dim=1)
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-5)
    assert json.loads(Path("lightning_logs/grey/results.json").read_text())["victim"]["countermeasure"] == {"name": "grey"}


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.countermeasure", "JPG"], "did you mean 'JPEG'?"),
        (["--model.countermeasure", "JPEG", "--model.countermeasure.qality", "3"], "did you mean 'quality'?"),
        (
            ["--model.countermeasure", "JPEG", "--model.countermeasure.quality", "0"],
            "quality=0 is out of range; give 1 (worst) to 100",
        ),
    ],
)
def test_mistakes_on_the_command_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "victim.yaml", *SMALL, *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("countermeasure", ["uerasermax", "orthogonalprojection"])
def test_two_ranks_train_and_predict_alike(countermeasure: str, tmp_path: Path) -> None:
    """What a countermeasure does to the network between the steps of ddp, and to each rank's images, leaves the ranks with one model."""
    arguments = ["--config", "victim.yaml", "--config", f"countermeasure/{countermeasure}.yaml", *SMALL]
    assert run(["fit", *arguments, "--run", "two"], tmp_path / "fit", ranks=2) == [0, 0]
    results = []
    for ranks in (1, 2):
        assert run(["predict", *arguments, "--ckpt_path", "lightning_logs/two"], tmp_path / "predict", ranks=ranks) == [0] * ranks
        results.append(np.load("lightning_logs/two/predictions.npz")["probabilities"])
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=1e-5)
