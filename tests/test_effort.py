"""What a result costs, said before it is begun: efforts, works, and the question that is asked before a day's work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import write_fake_npz

from salm_lightning.data import MEDMNIST, ImageDataModule, NpzDataModule
from salm_lightning.errors import ConfigurationError
from salm_lightning.noise.methods import EM, SALM, SP, TAP, Method
from salm_lightning.runs import plan
from salm_lightning.runs.effort import EFFORTS, Training
from salm_lightning.runs.plan import announce, generator_work, victim_work

CPU = Training(effort="quick", accelerator="cpu")


@pytest.fixture
def images(tmp_path: Path) -> ImageDataModule:
    write_fake_npz(tmp_path / "bloodmnist.npz", MEDMNIST["bloodmnist"], (20, 9, 17))
    data = NpzDataModule(tmp_path / "bloodmnist.npz", batch_size=8)
    data.setup("fit")
    return data


def test_what_is_given_beside_an_effort_wins() -> None:
    assert Training(effort="normal").lengths == EFFORTS["normal"]
    assert Training(effort="paper", width=0.25, victim_steps=7).lengths == ("resnet18", 0.25, 5000, "auto", None, 7)
    assert Training(effort="paper").settings()["steps"] == Training(width=1.0, steps=5000, victim_steps=20000).settings()["steps"]


def test_updates_and_learning_rate_of_an_effort_are_those_of_its_source() -> None:
    own, other = Training(effort="quick", source_model="cnn").lengths, Training(effort="quick", source_model="vit").lengths
    assert (own.updates_per_visit, own.source_learning_rate) == (15, 0.02)
    assert (other.updates_per_visit, other.source_learning_rate) == ("auto", None)
    assert other.steps == own.steps
    assert Training(source_model="vit", source_learning_rate=0.5, accelerator="cpu").lengths.source_learning_rate == 0.5


@pytest.mark.parametrize(
    ("gpu", "accelerator", "effort"), [(True, "auto", "normal"), (False, "auto", "quick"), (True, "cpu", "quick")]
)
def test_the_default_effort_fits_the_machine(gpu: bool, accelerator: str, effort: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    training = Training(accelerator=accelerator)
    assert training.lengths == EFFORTS[effort]
    assert training.describe(proof=True).endswith(f"(effort {effort}, the default here)")
    assert training.settings() == Training(effort=effort, accelerator=accelerator).settings()


@pytest.mark.parametrize(
    "option", ["width", "steps", "victim_steps", "updates_per_visit", "learning_rate", "source_learning_rate"]
)
def test_numbers_have_to_be_positive(option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{option}=0 is out of range"):
        Training(**{option: 0})


@pytest.mark.parametrize(
    ("method", "options", "training", "gradient"),
    [
        (SALM(), {"updates_per_visit": 3}, 10, 10 * 3 + 10 * 3),  # three batches
        (SALM(), {}, 10, 10 * 15 + 10 * 3),
        (SALM(), {"updates_per_visit": "auto"}, 10, 10 * 8 + 10 * 3),  # ceil(30 * 20 / (10 * 8))
        (SALM(eot_samples=2), {"loop": "fresh"}, 10, 2 * (10 * 10 + 10 * 3)),
        (EM(noise_per="class"), {"updates_per_visit": 1}, 10, 10),
        (TAP(), {}, 10, 250 * 3),
        (SP(), {}, 0, 0),
    ],
)
def test_work_of_a_generator(
    method: Method, options: dict[str, Any], training: int, gradient: int, images: ImageDataModule
) -> None:
    work = generator_work(Training(steps=10, accelerator="cpu", **options), method, images)
    assert (work.training, work.gradient) == (training, gradient)
    assert work.reading == (5 * 2 if training else 0)  # looks, each at two batches of the val split
    keeps_noise = method.name == "salm" and options.get("loop") != "fresh"
    assert work.bytes == (46 + 20 * keeps_noise) * 3 * 28 * 28


def test_work_of_a_victim(images: ImageDataModule) -> None:
    work = victim_work(Training(victim_steps=10, accelerator="cpu"), images)
    assert (work.training, work.gradient, work.reading) == (10, 0, 5 * (2 + 3) + 3)


class _Slow:
    """An estimator for a machine on which everything takes two days."""

    def __init__(self, *_: object) -> None: ...

    def seconds(self, _: object) -> float:
        return 2 * 86400.0

    def bytes(self, _: object) -> int:
        return 3_000_000


@pytest.mark.parametrize(
    ("answer", "watched", "yes", "asked", "refused"),
    [
        ("n", True, False, True, True),
        ("", True, False, True, True),
        ("y", True, False, True, False),
        ("n", True, True, False, False),
        ("n", False, False, False, False),
    ],
)
def test_a_person_is_asked_before_more_than_a_day(
    answer: str, watched: bool, yes: bool, asked: bool, refused: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    questions: list[str] = []
    monkeypatch.setattr(plan, "Estimator", _Slow)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: watched, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or answer)
    if refused:
        with pytest.raises(ConfigurationError, match="nothing was begun"):
            announce(CPU, True, [], yes)
    else:
        announce(CPU, True, [], yes)
    assert bool(questions) is asked
    assert "takes about 2 days, 0:00:00 here, estimated from a few steps, and 3 MB of disk" in capsys.readouterr().out
