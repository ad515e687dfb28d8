"""Estimates of time and disk: sums of timed steps."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from salm_lightning.models import Architecture
from salm_lightning.runs import estimate
from salm_lightning.runs.estimate import Estimator, Network, Work

NETWORK = Network("resnet18", 0.125, 3, 28, 128)


def test_estimates_follow_timed_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that knows how long a step on so many images takes."""
    per_batch, timed = {"training": 2.0, "gradient": 1.0, "reading": 0.5}, []

    def once(self: Estimator, model: object, optimizer: object, kind: str, images: object) -> float:
        timed.append(kind)
        return per_batch[kind] * len(images) / 128  # type: ignore[arg-type]

    monkeypatch.setattr(Estimator, "_once", once)
    clock = Estimator("cpu", "32-true")
    work = Work(NETWORK, training=100, gradient=1000, reading=10, bytes=1000, keeps_weights=True)
    assert clock.seconds([work]) == pytest.approx(100 * 2.0 + 1000 * 1.0 + 10 * 0.5)
    assert clock.seconds([work, Work(NETWORK, training=1)]) == pytest.approx(1205 + 2.0)
    steps = len(timed)
    assert clock.bytes([work]) == 1000 + 8 * clock.unit(NETWORK).weights
    assert len(timed) == steps, "a network is timed once"
    untimed = Work(NETWORK._replace(width=0.25), bytes=5)
    assert (clock.seconds([untimed]), clock.bytes([untimed, untimed])) == (0.0, 10)
    assert len(timed) == steps, "what takes no steps is not timed"


def test_steps_that_wait_more_than_they_work_are_timed_on_more_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second of waiting a step, of a network of which 128 images take 2 s: a few images, extrapolated, would take 32."""
    monkeypatch.setattr(estimate, "_PATIENCE", 0.3)
    monkeypatch.setattr(estimate, "_CEILING", 10.0)
    tried: list[int] = []

    def once(self: Estimator, model: object, optimizer: object, kind: str, images: object) -> float:
        tried.append(len(images))  # type: ignore[arg-type]
        return waiting + 2 * tried[-1] / 128

    monkeypatch.setattr(Estimator, "_once", once)
    waiting = 0.5
    assert Estimator("cpu", "32-true").seconds([Work(NETWORK, training=1)]) == pytest.approx(2.5)
    tried.clear()
    waiting = 0.0
    assert Estimator("cpu", "32-true").seconds([Work(NETWORK, training=1)]) == pytest.approx(2.0)
    assert max(tried) == 32, "what does not wait is extrapolated"


def test_real_steps_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In processor time, the least of some tries: what else the machine does has no say."""
    monkeypatch.setattr(estimate, "_PATIENCE", 0.0)
    monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=time.process_time))
    units = [Estimator("cpu", "32-true").unit(NETWORK._replace(channels=1)) for _ in range(6)]
    training, gradient, reading, _ = (min(values) for values in zip(*units, strict=True))
    assert min(training, gradient) > 1.4 * reading > 0
    weights = Architecture.parse("resnet18").build(10, 1, 28, 0.125).parameters()
    assert units[0].weights == sum(weight.numel() for weight in weights)
