"""SALM, EM and Random: K at its ends, guarantees, starts, settings and errors."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from torch import Tensor

from salm_lightning.errors import ConfigurationError
from salm_lightning.noise.masks import Score
from salm_lightning.noise.methods import EM, SALM, SP, TAP, Method, Random
from salm_lightning.noise.pgd import release_images
from salm_lightning.noise.transforms import CropFlip

SHAPE = (7, 3, 16, 16)
INDICES = torch.arange(20, 27)


def clean(seed: int = 0) -> Tensor:
    """Return images in whole grey levels, black and white included."""
    grey = torch.randint(0, 256, SHAPE, generator=torch.Generator().manual_seed(seed))
    grey[:, :, :3], grey[:, :, 3:5] = 0, 255
    return grey / 255


def wandering_gradient(delta: Tensor, step: int) -> Tensor:
    """Return another gradient at each step, with exact zeros in it."""
    noise = torch.randn(delta.shape, generator=torch.Generator().manual_seed(100 + step))
    return torch.where(noise.abs() < 0.1, 0.0, noise + 3 * delta)


class Given:
    """An objective of a given gradient, for images whose pixels may all change."""

    samples = SimpleNamespace(free=None)

    def __init__(self, gradient: Callable[[Tensor, int], Tensor]) -> None:
        self.gradient = gradient

    def __call__(self, delta: Tensor, step: int) -> Tensor:
        return self.gradient(delta, step)


WANDERING = Given(wandering_gradient)


def changed_pixels(delta: Tensor) -> Tensor:
    return (delta != 0).any(dim=1).flatten(1).sum(1)


def test_all_pixels_give_the_bytes_of_an_em_without_mask_code() -> None:
    images, radius, step_size = clean(), 8 / 255, 1.6 / 255
    delta = oracles.start_noise(images, INDICES, 8, 5)
    method = SALM(percent=100, radius=8, step_size=1.6)
    start = method.start(images, INDICES, 5)
    torch.testing.assert_close(start, delta, rtol=0, atol=1e-7)
    delta = start
    for step in range(10):
        delta = (delta - step_size * wandering_gradient(delta, step).sign()).clamp(-radius, radius)
        delta = torch.minimum(torch.maximum(delta, -images), 1 - images)
    expected = ((images + delta).clamp(0, 1) * 255).round().to(torch.uint8)
    for some in (method, EM(), *(SALM(percent=100, score=score) for score in Score)):
        made = some.improve(images, some.start(images, INDICES, 5), WANDERING, 10)
        assert torch.equal(made.delta, delta)
        assert torch.equal(release_images(images, made.delta, 8), expected)
        assert made.mask.min() == 1
    assert (expected != (images * 255).round()).float().mean() > 0.5


@pytest.mark.parametrize("setting", [{}, {"mask": "fixed"}, {"project": True}, {"score": Score.ELEMENT}, {"start": "zero"}])
def test_no_pixels_give_the_clean_bytes(setting: dict[str, Any]) -> None:
    images, method = clean(), SALM(percent=0, **setting)
    start = method.start(images, INDICES, 5)
    assert not start.any()

    def refused(delta: Tensor, step: int) -> Tensor:
        raise AssertionError("K = 0 needs no gradient")

    # Noise from elsewhere is dropped, too.
    made = method.improve(images, torch.full(SHAPE, 0.01), Given(refused), 10)
    assert not made.mask.any()
    assert torch.equal(release_images(images, made.delta, 8), (images * 255).round().to(torch.uint8))


@pytest.mark.parametrize("percent", [1, 10, 37.5])
@pytest.mark.parametrize("start", ["zero", "uniform"])
@pytest.mark.parametrize("setting", [{"mask": "fixed"}, {"project": True}, {"mask": "fixed", "project": True}])
@pytest.mark.parametrize("score", [Score.PIXEL, Score.SIGNED])
def test_fixed_and_project_guarantee_the_number_of_changed_pixels(
    percent: float, start: Any, setting: dict[str, Any], score: Score
) -> None:
    images, method = clean(), SALM(percent=percent, start=start, score=score, **setting)
    first = method.start(images, INDICES, 0)
    made = method.improve(images, first, WANDERING, 10)
    limit = max(1, round(percent / 100 * 256))
    assert method.max_changed_pixels(256, 10) == limit
    assert changed_pixels(made.delta).max() <= limit
    assert changed_pixels(made.delta).min() >= 1
    again = method.improve(
        images, made.delta, Given(lambda delta, step: wandering_gradient(delta, step + 50)), 10
    )  # the next visit
    assert changed_pixels(again.delta).max() <= limit


@pytest.mark.parametrize("percent", [1, 10, 37.5, 100])
def test_strict_masks_equal_hard_thresholding_in_numpy_and_hold_between_visits(percent: float) -> None:
    images, method = torch.full(SHAPE, 0.5), SALM(percent=percent, step_size=3, mask="strict")
    limit = max(1, round(percent / 100 * 256))
    assert method.max_changed_pixels(256, 10) == limit
    delta, oracle = torch.zeros(SHAPE), np.zeros(SHAPE)
    assert torch.equal(method.start(images, INDICES, 0), delta)
    for visit in range(3):

        def gradient(noise: Tensor, step: int, visit: int = visit) -> Tensor:
            return wandering_gradient(torch.zeros_like(noise), 10 * visit + step)

        delta = method.improve(images, delta, Given(gradient), 4).delta
        for step in range(4):
            slope = gradient(delta, step).double().numpy()
            oracle = np.clip(oracle - 3 / 255 * np.sign(slope), -8 / 255, 8 / 255)
            for image, grad in zip(oracle, np.abs(slope).sum(1), strict=True):
                levels = np.rint(np.abs(image).sum(0) * 255).ravel()  # whole numbers, so that ties are ties
                dropped = np.lexsort((grad.ravel(), levels))[: 256 - limit]
                image.reshape(3, -1)[:, dropped] = 0
        np.testing.assert_allclose(delta.numpy(), oracle, rtol=0, atol=1e-6)
        assert changed_pixels(delta).max() <= limit
    assert changed_pixels(delta).min() > 0.9 * limit


def test_fixed_by_element_guarantees_the_number_of_changed_values() -> None:
    images, method = clean(), SALM(percent=10, score=Score.ELEMENT, mask="fixed")
    made = method.improve(images, method.start(images, INDICES, 0), WANDERING, 10)
    assert 1 <= (made.delta != 0).flatten(1).sum(1).max() <= round(0.1 * 768)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"score": Score.SIGNED}, "score='signed'"),
        ({"score": Score.ELEMENT}, "score='element'"),
        ({"project": True}, "project=True"),
    ],
)
def test_strict_masks_refuse_what_they_would_ignore(setting: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{named} has no effect with mask='strict'"):
        SALM(mask="strict", **setting)


def test_only_what_is_guaranteed_is_promised() -> None:
    for method in (SALM(), EM(), Random(), SALM(score=Score.ELEMENT, mask="fixed"), SALM(start="zero")):
        assert method.max_changed_pixels(256, 10) is None
    for setting in ({"mask": "strict"}, {"project": True}):
        assert SALM(**setting).max_changed_pixels(256, 0) == 26, "what is stored keeps it as well"  # type: ignore[arg-type]
    assert SALM(mask="fixed").max_changed_pixels(256, 0) is None, "what was never visited is dense"
    assert SALM(percent=0).max_changed_pixels(256, 10) == 0
    assert SALM(score=Score.ELEMENT, project=True).max_changed_pixels(256, 10) == 26


def test_project_keeps_the_largest_noise() -> None:
    images = torch.full(SHAPE, 0.5)
    free = SALM(percent=30, start="zero").improve(images, torch.zeros(SHAPE), WANDERING, 6).delta
    kept = SALM(percent=10, start="zero", project=True)
    kept.percent = 30  # the same steps ...
    made = kept.improve(images, torch.zeros(SHAPE), WANDERING, 6).delta
    size = free.abs().amax(1)
    for image in range(len(images)):
        chosen = made[image].abs().amax(0) > 0
        assert torch.equal(made[image, :, chosen], free[image, :, chosen])
        assert size[image][chosen].min() >= size[image][~chosen].max()


def test_ranking_anew_at_each_step_reaches_more_than_k_percent() -> None:
    images, method = torch.full(SHAPE, 0.5), SALM(percent=10, start="zero")
    once = method.improve(images, torch.zeros(SHAPE), WANDERING, 1)
    assert changed_pixels(once.delta).tolist() == [26] * 7
    assert torch.equal(once.mask[:, 0] > 0, (once.delta != 0).any(1))
    assert changed_pixels(method.improve(images, torch.zeros(SHAPE), WANDERING, 10).delta).min() > 60


def test_signed_scores_only_ever_darken_where_every_channel_agrees() -> None:
    images = torch.full((4, 1, 16, 16), 0.5)
    made = SALM(percent=10, score=Score.SIGNED, start="zero").improve(images, torch.zeros(4, 1, 16, 16), WANDERING, 5)
    assert made.delta.max() == 0
    assert made.delta.min() < 0


@pytest.mark.parametrize("method", [SALM(), EM(), Random(), SALM(radius=3.5, step_size=1)])
def test_uniform_starts_equal_the_oracle_and_fill_the_radius(method: Method) -> None:
    images = clean()
    start = method.start(images, INDICES, 7, 3)
    torch.testing.assert_close(start, oracles.start_noise(images, INDICES, method.radius, 7, 3), rtol=0, atol=1e-7)
    assert start.abs().max() <= method.radius / 255
    assert (images + start).min() >= 0
    assert (images + start).max() <= 1
    grey = method.start(torch.full(SHAPE, 0.5), INDICES, 7)
    assert grey.max() > 0.99 * method.radius / 255
    assert grey.min() < -0.99 * method.radius / 255
    assert abs(grey.mean().item()) < 0.05 * method.radius / 255


@pytest.mark.parametrize("method", [SALM(start="zero"), EM(start="zero")])
def test_zero_starts_are_zero(method: Method) -> None:
    assert not method.start(clean(), INDICES, 0).any()


def test_starts_differ_between_samples_seeds_and_counters() -> None:
    images, method = torch.full(SHAPE, 0.5), SALM()
    starts = [method.start(images, INDICES, *key) for key in ((0,), (1,), (0, 0), (0, 1))]
    assert len(torch.stack(starts).flatten(2).flatten(0, 1).unique(dim=0)) == 4 * 7


def test_random_noise_is_its_start_within_the_bound() -> None:
    images, method = clean(), Random(radius=8)
    assert method.trains_source_on is None
    start = method.start(images, INDICES, 0)

    def refused(delta: Tensor, step: int) -> Tensor:
        raise AssertionError("random noise needs no gradient")

    assert torch.equal(method.improve(images, start, Given(refused), 10).delta, start)
    change = release_images(images, start, 8).int() - (images * 255).round().int()
    assert change.abs().max() == 8
    assert change.min() < 0


@pytest.mark.parametrize("radius", [1, 2.5, 8, 16])
def test_noise_stays_within_the_bound(radius: float) -> None:
    images, method = clean(), SALM(percent=50, radius=radius, step_size=radius / 2)
    made = method.improve(images, method.start(images, INDICES, 0), WANDERING, 10).delta
    assert made.abs().max() <= torch.tensor(radius / 255)
    assert (images + made).min() >= 0
    assert (images + made).max() <= 1


METHODS: list[Callable[..., Method]] = [SALM, EM, TAP, SP, Random]


@pytest.mark.parametrize("build", METHODS)
def test_settings_are_json_and_name_every_argument(build: Callable[..., Method]) -> None:
    settings = build().settings()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["name"] == build.__name__.lower()
    for argument in inspect.signature(build).parameters:
        assert argument in settings
    assert type(settings.get("score", "")) is str  # an enum member would need its class to be unpickled
    if build is SALM:
        assert settings | {"percent": 10.0, "radius": 8.0, "step_size": 1.6, "score": "pixel", "eot_samples": 1} == settings
        assert settings["transform"] == {"padding": None, "flip": True}
        assert SALM(start="zero").settings() == settings | {"start": "zero"}
        assert SALM(mask="fixed").settings() != settings
        assert SALM(transform=CropFlip(2)).settings() != settings


@pytest.mark.parametrize(
    ("build", "setting", "message"),
    [
        (SALM, {"percent": -1}, r"percent=-1 is out of range.*0 to 100"),
        (SALM, {"percent": 100.5}, r"percent=100.5 is out of range"),
        (SALM, {"percent": float("nan")}, r"percent=nan is out of range"),
        (SALM, {"radius": 0.03}, r"radius=0.03 is out of range.*units of 1/255"),
        (SALM, {"radius": 256}, r"radius=256 is out of range"),
        (EM, {"radius": 0}, r"radius=0 is out of range"),
        (Random, {"radius": float("nan")}, r"radius=nan is out of range"),
        (SALM, {"step_size": 0}, r"step_size=0 is out of range.*at most the radius \(8\)"),
        (SALM, {"step_size": 9}, r"step_size=9 is out of range"),
        (EM, {"step_size": -1.6}, r"step_size=-1.6 is out of range"),
        (SALM, {"eot_samples": 0}, r"eot_samples=0 is out of range"),
        (SALM, {"score": "pixels"}, r"score='pixels' is not known; did you mean 'pixel'\?"),
        (SALM, {"mask": "strict", "start": "uniform"}, r"start='uniform' puts noise on every pixel.*zero"),
        (SALM, {"mask": "fix"}, r"mask='fix' is not known; did you mean 'fixed'\?"),
        (SALM, {"start": "random"}, r"start='random' is not known.* Choices: uniform, zero"),
        (EM, {"start": "uniforms"}, r"start='uniforms' is not known; did you mean 'uniform'\?"),
    ],
)
def test_bad_arguments_are_refused(build: Callable[..., Method], setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build(**setting)
