"""A run's folder: all of a run is there, whatever its loggers are, and nothing else is ever deleted."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import write_fake_npz
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from processes import files

from salm_lightning.callbacks.checkpoint import RunCheckpoint
from salm_lightning.data import DatasetInfo, NpzDataModule, Task
from salm_lightning.errors import OutputExistsError
from salm_lightning.files import LOCK, beside
from salm_lightning.main import main
from salm_lightning.modules import VictimModule
from salm_lightning.modules.base import LEFT_TO_SWEEP
from salm_lightning.release.parts import Parts, parts_folder
from salm_lightning.runs.folder import clear_run
from salm_lightning.version import __version__

INFO = DatasetInfo("tiny", Task.BINARY, ("a", "b"), channels=1, size=28)
LOGGERS = {
    "none": ["--trainer.logger", "false"],
    "csv": ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "logs"],
    "wandb": ["--trainer.logger", "test_run_folder.Elsewhere"],
    "tensorboard": [],
}


class Elsewhere(Logger):
    """Sends everything away, and has no folder, as Weights & Biases does where it has none of its own."""

    name, version = "elsewhere", "1"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


@pytest.fixture
def fit(workplace: None) -> list[str]:
    """Return the command line of a short victim."""
    write_fake_npz(Path("tiny.npz"), INFO, (16, 8, 8))
    return [
        "fit", "--data", "tiny.npz", "--data.batch_size", "8", "--model", "VictimModule", "--model.arch", "linear", "--model.width",
        "0.125", "--trainer.accelerator", "cpu", "--trainer.max_steps", "2",
    ]  # fmt: skip


def test_a_run_that_made_half_a_release_leaves_nothing(tmp_path: Path) -> None:
    parts = Parts(parts_folder(tmp_path / "run" / "protected"), "f", 8, 4, (28, 28))
    parts.save(0, np.zeros((4, 28, 28), np.uint8))
    parts.announce("manifest")
    _left_by_a_killed_run(tmp_path / "run" / "protected").mkdir()
    clear_run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _left_by_a_killed_run(path: Path) -> Path:
    process = subprocess.Popen(["true"])
    process.wait()
    return path.with_name(beside(path).name.replace(str(os.getpid()), str(process.pid)))


def write_foreign(folder: Path) -> set[str]:
    """Put files that another program may have made where a run's are, and return their paths."""
    names = {"checkpoints/best.ckpt", "checkpoints/noise/step=7/mine.npy", "protected/notes.txt", "notes.txt", "results.json.bak"}
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    return names


@pytest.mark.parametrize("logger", LOGGERS)
def test_runs_do_not_share_a_folder_whatever_the_logger(fit: list[str], logger: str) -> None:
    for name in ("checkpoints/step=123.ckpt", "checkpoints/noise/step=123/rank=0.noise.npy", "config.yaml", "results.json"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("another program's")
    before = {name: Path(name).read_bytes() for name in files(Path())}
    for run in (["--run", "named"], [], []):
        assert main([*fit, *LOGGERS[logger], *run]) == 0
    kept = {"config.yaml", "results.json", "checkpoints/step=2.ckpt"}
    for name in ("named", "version_0", "version_1"):
        assert {
            path for path in files(Path("lightning_logs", name)) if "tfevents" not in path and path != "hparams.yaml"
        } == kept | {LOCK}
    assert {name: Path(name).read_bytes() for name in before} == before
    assert main([*fit, *LOGGERS[logger], "--run", "named"]) == 2


def test_overwrite_deletes_what_a_run_made_and_nothing_else(fit: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("lightning_logs/mine")
    assert main([*fit, "--run", "mine"]) == 0
    of_run, foreign = files(folder), write_foreign(folder)
    assert main([*fit, "--run", "mine", "--overwrite", "true", "--trainer.max_steps", "3"]) == 0
    assert {name for name in foreign if (folder / name).read_text() == "mine"} == foreign
    assert "checkpoints/step=2.ckpt" in of_run
    assert "checkpoints/step=3.ckpt" in files(folder)
    assert not {name for name in of_run if "tfevents" in name or "step=2" in name} & files(folder)


def test_a_run_that_was_killed_before_its_config_stood_is_begun_anew(fit: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("lightning_logs/r")
    folder.mkdir(parents=True)
    for name in (LOCK, "events.out.tfevents.1.host", "hparams.yaml"):
        (folder / name).touch()
    assert main([*fit, "--run", "r"]) == 2
    assert main([*fit, "--run", "r", "--overwrite", "true"]) == 0
    (folder / "config.yaml").unlink()
    (folder / "mine.txt").touch()
    assert main([*fit, "--run", "r", "--overwrite", "true"]) == 2
    assert "does not look like a run" in capsys.readouterr().err


def test_a_run_that_was_killed_at_its_end_keeps_one_checkpoint(fit: list[str]) -> None:
    every = ["--trainer.callbacks", "RunCheckpoint", "--trainer.callbacks.every_n_steps", "1", "--run", "r"]
    with pytest.MonkeyPatch.context() as killed:
        killed.setattr("salm_lightning.callbacks.checkpoint.clear_checkpoints", lambda *_: None)
        assert main([*fit, *every]) == 0
    saved = Path("lightning_logs/r/checkpoints")
    assert {path.name for path in saved.iterdir()} == {"step=1.ckpt", "step=2.ckpt"}
    assert main([*fit, *every, "--ckpt_path", "lightning_logs/r"]) == 0
    assert [path.name for path in saved.iterdir()] == ["step=2.ckpt"]


def test_a_fit_of_a_sweep_by_another_version_is_refused(
    fit: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LEFT_TO_SWEEP, "0.0.1")
    assert main([*fit, "--run", "r"]) == 2
    assert f"a sweep by salm-lightning 0.0.1, and {__version__} runs here" in capsys.readouterr().err
    assert not Path("lightning_logs").exists()


def test_a_trainer_does_not_clear_the_checkpoints_of_another(tmp_path: Path) -> None:
    write_fake_npz(tmp_path / "tiny.npz", INFO, (16, 8, 8))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step=123.ckpt").write_text("another's")
    data = NpzDataModule(tmp_path / "tiny.npz", batch_size=8)
    trainer = Trainer(
        accelerator="cpu", max_steps=2, logger=False, default_root_dir=tmp_path, callbacks=[RunCheckpoint(1)],
        use_distributed_sampler=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    with pytest.raises(OutputExistsError, match=r"step=123\.ckpt is another run's"):
        trainer.fit(VictimModule(2, 1, arch="linear"), datamodule=data)
    assert files(tmp_path / "checkpoints") == {"step=123.ckpt"}


def test_a_part_is_reported_as_a_part(fit: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    part = ["--data.batch_size", "2", "--trainer.limit_test_batches", "2"]
    assert main([*fit, *part, "--run", "part"]) == 0
    assert "on 4 of 8 images of the clean test split" in " ".join(capsys.readouterr().out.split())
    assert json.loads(Path("lightning_logs/part/results.json").read_text())["tested"] == 4
    predict = ["predict", *fit[1:], "--data.batch_size", "2", "--ckpt_path", "lightning_logs/part"]
    assert main([*predict, "--trainer.limit_predict_batches", "2"]) == 0
    assert "Predictions on 4 of 8 images of the test split" in capsys.readouterr().out
    assert main(predict) == 0
    assert "Predictions on the test split" in capsys.readouterr().out
    assert main([*predict, "--trainer.limit_predict_batches", "0"]) == 2
    assert "limit_predict_batches=0: out of range" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.limit_test_batches", "0.1"], "limit_test_batches=0.1 is less than one of 1 batches"),
        (["--trainer.max_steps", "-1", "--trainer.max_epochs", "0"], "max_epochs=0: out of range"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    fit: list[str], capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main([*fit, *options, "--run", "none"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("lightning_logs/none").exists()


def test_no_release_comes_from_an_untrained_source(fit: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    model = fit.index("--model")
    generator = [*fit[: model + 1], "NoiseGeneratorModule", "--model.method", "SALM", "--model.source", "linear"]
    generator += ["--trainer.accelerator", "cpu", "--trainer.max_steps", "-1", "--trainer.max_time", "00:00:00:00"]
    generator += ["--model.lr_scheduler.total_steps", "2", "--model.updates_per_visit", "1"]
    assert main([*generator, "--run", "none"]) == 2
    assert "training steps of the source model=0 is out of range; train it first" in capsys.readouterr().err
    assert not Path("lightning_logs/none/protected").exists()
