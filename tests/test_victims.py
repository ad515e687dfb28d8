"""Victims of commands: assembled, trained and measured in one place."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import write_fake_npz
from lightning.pytorch import Callback, LightningModule, Trainer
from processes import same

from salm_lightning.callbacks.saved import latest_checkpoint
from salm_lightning.countermeasures import Grey
from salm_lightning.data import MEDMNIST, NpzDataModule
from salm_lightning.errors import ConfigurationError
from salm_lightning.interruption import Interrupted
from salm_lightning.modules import VictimModule
from salm_lightning.runs import victims
from salm_lightning.runs.trainers import RunTrainer
from salm_lightning.runs.victims import VictimSettings, train_victim


def test_a_victim_is_trained_and_measured(tmp_path: Path) -> None:
    write_fake_npz(tmp_path / "bloodmnist.npz", MEDMNIST["bloodmnist"], (16, 8, 10))
    data = NpzDataModule(tmp_path / "bloodmnist.npz", batch_size=8, seed=3)
    data.setup("fit")
    settings = VictimSettings("linear", steps=10, countermeasure=Grey(), learning_rate=0.02, seed=3)
    victim = train_victim(settings, data, tmp_path / "logs", "victim-clean", tmp_path / "run", accelerator="cpu")
    made = victim.module.settings()
    assert (made["arch"], made["countermeasure"], made["seed"]) == ("linear", Grey().settings(), 3)
    assert (made["optimizer"]["class"], made["optimizer"]["lr"]) == ("SGD", 0.02)
    assert victim.curve["steps"] == [2, 4, 6, 8, 10]
    assert victim.curve["test_acc"][-1] == victim.results["test"]["acc"] == victim.results["history"]["last"]["acc"]
    assert victim.results["steps"] == 10
    assert list((tmp_path / "logs/victim-clean").glob("events.*"))


class Strike(Callback):
    """Strikes after a step, and notes the first one of a training."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self.step, self.action, self.first = step, action, -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.first = trainer.global_step if self.first < 0 else self.first

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            self.action()


def fail() -> None:
    raise RuntimeError("struck")


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("action", "error", "saved"), [(fail, RuntimeError, 50), (terminate, Interrupted, 75)])
def test_an_interrupted_victim_goes_on_to_the_same_end(
    tmp_path: Path, action: Callable[[], None], error: type[BaseException], saved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(victims, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    write_fake_npz(tmp_path / "bloodmnist.npz", MEDMNIST["bloodmnist"], (40, 8, 10))
    data, settings = (
        NpzDataModule(tmp_path / "bloodmnist.npz", batch_size=8, seed=3).load(),
        VictimSettings("linear", steps=120, seed=3),
    )
    whole = train_victim(settings, data, tmp_path / "whole", "v", tmp_path / "whole/run", accelerator="cpu")
    hour = Strike(10, lambda: clock.insert(0, 3600.0))
    with pytest.raises(error):
        train_victim(settings, data, tmp_path, "v", tmp_path / "run", [hour, Strike(75, action)], "cpu")
    assert latest_checkpoint(tmp_path / "run/checkpoints") == tmp_path / f"run/checkpoints/step={saved}.ckpt"
    watched = Strike(-1, fail)
    again = train_victim(settings, data, tmp_path, "v", tmp_path / "run", [watched], "cpu")
    assert watched.first == saved
    assert again.seconds == 3600, "over both starts"
    assert (again.results, again.curve) == (whole.results, whole.curve)
    assert same(again.module.state_dict(), whole.module.state_dict())
    assert not (tmp_path / "run").exists()


def test_without_a_learning_rate_the_optimiser_is_the_module_s_own(tmp_path: Path) -> None:
    write_fake_npz(tmp_path / "bloodmnist.npz", MEDMNIST["bloodmnist"], (16, 8, 10))
    optimizer = VictimSettings().module(NpzDataModule(tmp_path / "bloodmnist.npz")).settings()["optimizer"]
    assert (optimizer["class"], optimizer["lr"], optimizer["momentum"], optimizer["weight_decay"]) == ("SGD", 0.1, 0.9, 5e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "resnet19"}, "victim='resnet19'"),
        ({"width": 0.0}, "width=0.0"),
        ({"width": float("nan")}, "width=nan"),
        ({"steps": 0}, "victim_steps=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        VictimSettings(**options)


def test_finished_victims_are_let_go_of(tmp_path: Path) -> None:
    """Their Trainers hold each other in cycles, which nothing collected for as long as an audit ran."""
    write_fake_npz(tmp_path / "bloodmnist.npz", MEDMNIST["bloodmnist"], (16, 8, 10))
    data = NpzDataModule(tmp_path / "bloodmnist.npz", batch_size=8)
    data.setup("fit")
    gc.disable()
    try:
        for number in range(5):
            train_victim(
                VictimSettings("linear", steps=1),
                data.variant(seed=number),
                tmp_path / "logs",
                f"{number}",
                tmp_path / f"run-{number}",
                accelerator="cpu",
            )
        alive = [type(found) for found in gc.get_objects() if type(found) in (RunTrainer, VictimModule)]
    finally:
        gc.enable()
    assert sorted(map(alive.count, (RunTrainer, VictimModule))) == [1, 1], "the last one alone"
