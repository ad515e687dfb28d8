"""Callbacks in small real fits, with a clock under the test's control."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from salm_lightning.callbacks import NoisePictures, PlainProgress, RunProgressBar, Throughput, progress_bar
from salm_lightning.callbacks.pictures import image_grid
from salm_lightning.data.base import Batch
from salm_lightning.errors import ConfigurationError

BATCH, STEPS_PER_EPOCH = 5, 4
RADIUS = 8 / 255


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Module(LightningModule):
    """Manual optimisation as in the noise generator; each step takes 2 s of the clock and a validation batch 50 s."""

    def __init__(self, clock: Clock, channels: int = 3) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.clock = clock
        self.channels = channels
        self.pictures_wanted = False
        self.last_pictures: dict[str, Any] = {}
        self.steps_with_pictures: list[int] = []

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.clock.now += 2.0
        optimizer = self.optimizers()
        optimizer.step()
        self.log("train/loss", self.weight * 0 + 0.25)
        if self.pictures_wanted:
            self.steps_with_pictures.append(self.global_step)
            delta = torch.zeros(BATCH, self.channels, 28, 28)
            delta[0, 0, 0, 0], delta[0, 0, 0, 1] = RADIUS, -RADIUS
            mask = torch.zeros(BATCH, 1, 28, 28)
            mask[0, 0, 0, 0], mask[0, 0, 0, 1] = 4.0, 1.0
            images = torch.full((BATCH, self.channels, 28, 28), 0.2)
            self.last_pictures = {"images": images, "delta": delta, "mask": mask, "radius": RADIUS}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.clock.now += 50.0
        self.log("val/acc", 0.5, batch_size=BATCH)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.clock.now += 2.0

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        self.clock.now += 2.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Victim(Module):
    """A module that keeps no pictures."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        del self.pictures_wanted, self.last_pictures

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.optimizers().step()


def loader(batches: int = STEPS_PER_EPOCH) -> DataLoader[Batch]:
    batch = Batch(torch.zeros(BATCH, 3, 28, 28), torch.zeros(BATCH, dtype=torch.int64), torch.arange(BATCH))
    return DataLoader([batch] * batches, batch_size=None)


def trainer(tmp_path: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "logger": TensorBoardLogger(tmp_path, name="", version="run"),
        "accelerator": "cpu",
        "max_steps": 10,
        "max_epochs": -1,
        "log_every_n_steps": 3,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "check_val_every_n_epoch": None,
        "val_check_interval": 5,
        "num_sanity_val_steps": 0,
        "callbacks": list(callbacks),
    }
    return Trainer(**(defaults | settings))


def events(tmp_path: Path) -> EventAccumulator:
    return EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0, "scalars": 0}).Reload()


def test_throughput_counts_images_of_the_window_without_validation_and_first_batch(tmp_path: Path) -> None:
    clock = Clock()
    trainer(tmp_path, Throughput(clock)).fit(Module(clock), loader(), loader(1))
    rates = events(tmp_path).Scalars("train/images_per_second")
    # Logged at steps 3, 6 and 9, which Lightning numbers from 0; the window across the validation after step 5 as well.
    assert [(event.step, event.value) for event in rates] == [(2, BATCH / 2), (5, BATCH / 2), (8, BATCH / 2)]


def test_throughput_is_silent_when_nothing_is_logged(tmp_path: Path) -> None:
    clock = Clock()
    run = trainer(tmp_path, Throughput(clock), log_every_n_steps=0)
    run.fit(Module(clock), loader(), loader(1))
    assert Throughput.name not in run.callback_metrics


def test_plain_progress_prints_at_intervals_and_after_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    trainer(tmp_path, PlainProgress(6.0, clock)).fit(Module(clock), loader(), loader(1))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert lines == [
        "step 3/10, train/loss 0.2500, 0:00:14 left",
        "step 5/10, train/loss 0.2500, val/acc 0.5000, 0:01:00 left",
        "step 8/10, train/loss 0.2500, val/acc 0.5000, 0:00:16 left",
        "step 10/10, train/loss 0.2500, val/acc 0.5000, 0:00:00 left",
    ]


@pytest.mark.parametrize(("method", "word"), [("test", "test batch"), ("predict", "last pass, chunk")])
def test_plain_progress_of_test_and_predict(method: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    getattr(trainer(tmp_path, PlainProgress(6.0, clock)), method)(Module(clock), loader(7))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(word)]
    assert lines == [f"{word} 3/7, 0:00:08 left", f"{word} 6/7, 0:00:02 left"]


def test_plain_progress_is_silent_when_disabled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = PlainProgress(0.0, clock)
    progress.disable()
    trainer(tmp_path, progress).fit(Module(clock), loader(), loader(1))
    assert "step" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("terminal", "variables", "expected"),
    [
        (True, {}, RunProgressBar),
        (False, {}, PlainProgress),
        (True, {"CI": "true"}, PlainProgress),
        (True, {"TERM": "dumb"}, PlainProgress),
    ],
)
def test_live_bar_only_on_a_terminal(
    terminal: bool, variables: dict[str, str], expected: type[ProgressBar], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    assert type(progress_bar()) is expected


class BarWatch(Callback):
    """Notes the bar's position after each step."""

    def __init__(self, bar: RunProgressBar) -> None:
        self.bar = bar
        self.seen: list[tuple[float, float | None, str]] = []
        self.starts: set[float | None] = set()

    def on_train_batch_end(self, *_: Any) -> None:
        task = self.bar.train_progress_bar
        self.seen.append((task.completed, task.total, task.description))
        self.starts.add(task.start_time)


@pytest.fixture
def quiet_console() -> Iterator[io.StringIO]:
    """Give rich a terminal that is a string, and put its global console back afterwards."""
    before = dict(rich.get_console().__dict__)
    output = io.StringIO()
    yield output
    rich.get_console().__dict__ = before


@pytest.mark.parametrize("ends", [{"max_steps": 10, "max_epochs": -1}, {"max_steps": -1, "max_epochs": 2}])
def test_run_bar_spans_the_whole_fit(ends: dict[str, int], tmp_path: Path, quiet_console: io.StringIO) -> None:
    bar = RunProgressBar()
    bar._console_kwargs = {"file": quiet_console, "force_terminal": True, "width": 160}
    watch = BarWatch(bar)
    clock = Clock()
    trainer(tmp_path, bar, watch, **ends).fit(Module(clock), loader(), loader(1))
    steps = 10 if ends["max_steps"] == 10 else 2 * STEPS_PER_EPOCH
    assert watch.seen == [(step, steps, "Training") for step in range(1, steps + 1)]
    assert len(watch.starts) == 1
    assert "train/loss" in quiet_console.getvalue()


def test_run_bar_reads_metrics_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_console: io.StringIO) -> None:
    reads = []
    monkeypatch.setattr("salm_lightning.callbacks.progress.shown_metrics", lambda _: reads.append(1) or {})
    bar = RunProgressBar(metrics_interval=3600.0)
    bar._console_kwargs = {"file": quiet_console, "force_terminal": True}
    trainer(tmp_path, bar).fit(Module(Clock()), loader(), loader(1))
    assert len(reads) == 1


def read_picture(tmp_path: Path, name: str) -> list[tuple[int, np.ndarray]]:
    found = events(tmp_path).Images(f"pictures/{name}")
    return [(event.step, np.array(Image.open(io.BytesIO(event.encoded_image_string)))) for event in found]


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_show_what_the_module_kept(channels: int, tmp_path: Path) -> None:
    module = Module(Clock(), channels)
    trainer(tmp_path, NoisePictures(every_n_steps=4, max_images=3)).fit(module, loader(), loader(1))
    assert module.steps_with_pictures == [4, 8, 10]
    assert not module.last_pictures  # a batch is not kept beyond its pictures
    assert not module.pictures_wanted
    pictures = {name: read_picture(tmp_path, name) for name in ("clean", "noise", "mask", "protected")}
    # One row of three images of 4 x 28 px, with 2 px around each.
    assert {(step, picture.shape) for shots in pictures.values() for step, picture in shots} == {
        (step, (116, 3 * 114 + 2, 3)) for step in (4, 8, 10)
    }
    first = {name: shots[0][1][..., 0] for name, shots in pictures.items()}
    corner = {name: (int(red[5, 5]), int(red[2, 6]), int(red[6, 2])) for name, red in first.items()}
    # Pixel (0, 0) carries +radius, (0, 1) -radius, (1, 0) nothing; the mask's peak is 4.
    assert corner == {"clean": (51, 51, 51), "noise": (255, 0, 128), "mask": (255, 64, 0), "protected": (59, 43, 51)}


def test_pictures_leave_other_modules_and_loggers_alone(tmp_path: Path) -> None:
    trainer(tmp_path, NoisePictures(1)).fit(Victim(Clock()), loader(), loader(1))
    assert not events(tmp_path).Tags()["images"]
    module = Module(Clock())
    trainer(tmp_path, NoisePictures(1), logger=CSVLogger(tmp_path)).fit(module, loader(), loader(1))
    assert not module.steps_with_pictures


def test_image_grid_keeps_large_images_and_enlarges_small_ones_without_smoothing() -> None:
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    grid = image_grid(board.float().expand(5, 1, 64, 64))
    assert grid.shape == (3, 2 * 130 + 2, 4 * 130 + 2)
    assert grid.dtype == torch.uint8
    tile = grid[0, 2:130, 2:130]
    assert torch.equal(tile, (board * 255).to(torch.uint8).repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert image_grid(torch.zeros(1, 3, 224, 224)).shape == (3, 224, 224)


@pytest.mark.parametrize("name", ["every_n_steps", "max_images"])
def test_pictures_refuse_a_setting_that_cannot_work(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}=0"):
        NoisePictures(**{name: 0})
