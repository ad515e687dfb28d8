"""``salm-cli sweep``: real fits on tiny drawn images for what only they show, and a stand-in for the fit for everything else."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fakes import FAKE_MANIFEST, pretend_fit
from pages import shell_commands
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from salm_lightning.cli.composition import merge
from salm_lightning.data import SyntheticDataModule
from salm_lightning.errors import ConfigurationError, OutputExistsError
from salm_lightning.files import locked
from salm_lightning.main import main
from salm_lightning.release.parts import Parts, parts_folder
from salm_lightning.runs.record import FAILED, Run
from salm_lightning.sweep import runners, slurm
from salm_lightning.sweep.job import FIXED, Job, work
from salm_lightning.sweep.options import compose
from salm_lightning.sweep.plan import Planner, columns_of, label, short_names

ROOT = Path(__file__).parent.parent
DATA = {"size": 16, "train_size": 20, "val_size": 8, "test_size": 10, "chunk_size": 16, "batch_size": 8}
TRAINER = {"max_steps": 2, "accelerator": "cpu", "log_every_n_steps": 1}
SWEEP: dict[str, Any] = {
    "out": "out",
    "generator": {
        "data": {"class_path": "SyntheticDataModule", "init_args": DATA},
        "model": {"class_path": "NoiseGeneratorModule", "init_args": {"method": "SALM", "width": 0.125}},
        "trainer": TRAINER,
    },
    "victim": {"model": {"class_path": "VictimModule", "init_args": {"width": 0.125}}, "trainer": TRAINER},
    "grid": {"generator.model.method.percent": [0, 10]},
}


@pytest.fixture(autouse=True)
def _own_code(workplace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the fits, which are processes of their own


def sweep(*args: str, **changes: Any) -> int:
    Path("sweep.yaml").write_text(yaml.safe_dump(SWEEP | changes))
    return main(["sweep", "--config", "sweep.yaml", *args])


def plan(**changes: Any) -> list[Job]:
    settings = SWEEP | changes
    return Planner(settings["generator"], settings["victim"], Path("out"), True).victims(
        settings["grid"], settings.get("clean", True)
    )


def results() -> list[dict[str, str]]:
    with Path("out/results.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a sweep over K = 0 and 10, two runs at a time: a clean victim, two releases, two victims."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CI", "true")
        patch.setenv("PYTHONPATH", str(ROOT))
        assert sweep("--workers", "2") == 0
    return folder / "out"


@pytest.fixture
def out(finished: Path) -> Path:
    """A copy of the finished sweep in the working directory."""
    shutil.copytree(finished, "out", symlinks=True)
    return Path("out")


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the jobs that ran, each with the artefacts of a real fit instead of the fit."""
    ran: list[str] = []

    def pretend(job: Job, *_: Any, **__: Any) -> None:
        ran.append(job.name)
        pretend_fit(job)

    monkeypatch.setattr(runners, "work", pretend)
    monkeypatch.setattr(runners.Local, "pause", 0.01)
    return ran


# Results ----------------------------------------------------------------------------------------------------------------------


def test_csv_has_a_row_per_victim_with_what_was_measured(out: Path) -> None:
    rows = results()
    assert [(row["trained_on"], row["generator.model.method.percent"], row["seed"], row["arch"]) for row in rows] == [
        ("clean", "", "0", "resnet18"), ("salm", "0", "0", "resnet18"), ("salm", "10", "0", "resnet18"),
    ]  # fmt: skip
    for row in rows:
        assert (row["dataset"], row["status"], row["error"]) == ("synthetic", "done", "")
        found = json.loads((Path(row["run"]) / "results.json").read_text())
        for column, stage in (
            ("", found["test"]),
            ("best_on_val_", found["history"]["best_on_val"]),
            ("peak_", found["history"]["peak"]),
        ):
            for name, key in (("accuracy", "acc"), ("auc", "auc"), ("balanced_accuracy", "balanced_acc")):
                assert float(row[column + name]) == stage[key]
        assert float(row["majority"]) == found["majority"]
        assert float(row["victim_seconds"]) > 0
    for row in rows[1:]:
        measured = json.loads((Path(row["release"]) / "manifest.json").read_text())["measured"]
        for name in ("linf", "changed_share", "ssim"):
            assert float(row[name]) == measured[name]
        assert float(row["psnr"]) == (measured["psnr"] or float("inf"))
        assert float(row["generator_seconds"]) > 0
    assert {rows[0][name] for name in ("release", "linf", "generator_seconds")} == {""}


def test_chunks_that_a_killed_fit_left_beside_its_release_are_removed(out: Path) -> None:
    release = Path(results()[1]["release"])
    left = Parts(parts_folder(release), "by a kill before they were removed", 8, 4, (28, 28))
    left.save(0, np.zeros((4, 28, 28), np.uint8))
    assert sweep() == 0
    assert not left.folder.exists()
    assert release.is_dir()


def test_no_noise_leaves_the_clean_images(out: Path) -> None:
    """K = 0 keeps every byte and so gives the clean victim; K = 10 does not."""
    data = SyntheticDataModule(**DATA)
    clean = data.split("train").images
    _, none, ten = results()
    released = [np.load(Path(row["release"]) / "synthetic.npz", allow_pickle=False)["train_images"] for row in (none, ten)]
    assert np.array_equal(released[0], clean)
    assert not np.array_equal(released[1], clean)
    states = [json.loads((Path(row["run"]) / "results.json").read_text())["test"] for row in results()]
    assert states[0] == states[1]


def test_hyperparameters_stand_beside_the_curves(out: Path) -> None:
    for row in results():
        events = EventAccumulator(row["run"]).Reload()
        content = events.summary_metadata
        started = plugin_data_pb2.HParamsPluginData.FromString(content["_hparams_/session_start_info"].plugin_data.content)
        shown = {name: value.string_value for name, value in started.session_start_info.hparams.items()}
        assert shown == {name: row[name] or "-" for name in (*FIXED, "generator.model.method.percent")}
        experiment = plugin_data_pb2.HParamsPluginData.FromString(content["_hparams_/experiment"].plugin_data.content)
        metrics = {info.name.tag for info in experiment.experiment.metric_infos}
        assert metrics == {"test/acc", "test/auc", "test/balanced_acc"}
        assert metrics <= set(events.Tags()["scalars"])
        assert len(list(Path(row["run"]).glob("*.sweep"))) == 1


def test_curves_have_names_that_people_can_read(out: Path, pretended: list[str]) -> None:
    found = {link.name: link.resolve() for link in (out / "curves").iterdir()}
    rows = dict(zip(["clean resnet18", "salm resnet18 percent=0", "salm resnet18 percent=10"], results(), strict=True))
    assert found == {f"synthetic {name} seed=0": Path(row["run"]).resolve() for name, row in rows.items()}
    assert sweep(grid={"seed": [1]}, clean=False) == 0
    assert [link.name for link in (out / "curves").iterdir()] == ["synthetic salm resnet18 seed=1"], "those of the last grid"
    assert len(results()) == 4, "the others stay where they are"
    assert (
        sweep(grid={"victim.model": [{"width": 0.125, "lr_scheduler": {"fractions": [number / 100 for number in range(1, 99)]}}]})
        == 0
    )
    assert max(len(link.name) for link in (out / "curves").iterdir()) == 200


def test_table_has_means_over_seeds_and_the_majority(pretended: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(grid={"seed": [0, 1, 2]}, clean=False) == 0
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if line.startswith("| synthetic | salm")]
    assert [cell.strip() for cell in line.split("|")][4:6] == ["3", "50.0 ± 0.0"]
    assert "majority class (no model)" in shown
    assert "25.0" in shown


def test_kappa_has_a_column_that_is_empty_unless_the_task_is_ordinal(
    pretended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (_, protected) = plan(grid={})
    assert sweep(grid={}) == 0
    figures = {"acc": 0.5, "auc": 0.5, "balanced_acc": 0.5, "kappa": 0.25}
    protected.product.write_text(json.dumps({"test": figures, "history": {"peak": figures | {"kappa": 0.75}}, "majority": 0.3}))
    for path in protected.folder.glob("*.sweep"):
        path.unlink()
    capsys.readouterr()
    assert sweep(grid={}) == 0
    found = [[row[f"{stage}kappa"] for stage in ("", "best_on_val_", "peak_")] for row in results()]
    assert found == [["", "", ""], ["0.25", "", "0.75"]]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if "|" in line]
    kappa = lines[0].index("kappa x 100")
    assert [line[kappa] for line in lines[2:]] == ["", "25.0", ""]
    assert {len(line) for line in lines} == {len(lines[0])}
    events = EventAccumulator(str(protected.folder)).Reload()
    content = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    metrics = plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos
    assert "test/kappa" in {info.name.tag for info in metrics}


def test_what_does_not_concern_clean_victims_is_empty(pretended: list[str]) -> None:
    grid = {
        "generator.model.selection.percent": [50],
        "generator.data.imbalance": [2.0],
        "victim.data.part": ["all", "clean"],
        "victim.data.batch_size": [4],
        "victim.model.width": [0.125],
    }
    assert sweep(grid=grid) == 0
    assert [[row[name] for name in grid] for row in results()] == [
        ["", "2.0", "", "4", "0.125"], ["50", "2.0", "all", "4", "0.125"], ["50", "2.0", "clean", "4", "0.125"],
    ]  # fmt: skip


def test_lines_of_another_grid_stay_while_their_runs_do(pretended: list[str]) -> None:
    assert sweep(grid={"seed": [0, 1]}, clean=False) == 0
    first = {row["seed"]: row for row in results()}
    assert sweep(grid={"seed": [1], "victim.model.width": [0.125]}, clean=False) == 0
    again, kept = results()
    assert (again["seed"], again["victim.model.width"]) == ("1", "0.125"), "a run that is in both has one line"
    assert kept == first["0"] | {"victim.model.width": ""}
    shutil.rmtree(kept["run"])
    assert sweep(grid={"seed": [1]}, clean=False) == 0
    assert [row["seed"] for row in results()] == ["1"]


def test_options_of_one_name_keep_their_columns_apart(pretended: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for section in ("generator", "victim"):
        assert sweep(grid={f"{section}.trainer.max_steps": [3]}, clean=False) == 0
        assert "| max_steps |" in capsys.readouterr().out, "the table shows one grid"
    columns = [f"{section}.trainer.max_steps" for section in ("generator", "victim")]
    assert [[row[name] for name in columns] for row in results()] == [["", "3"], ["3", ""]]


# What runs, and what does not again -------------------------------------------------------------------------------------------


def test_a_fit_runs_this_package_whatever_lies_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("salm_lightning/__init__.py", "salm_lightning/__main__.py", "yaml.py", "jsonargparse.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("print('not ours')\nraise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    job = Job(tmp_path / "sweep", "job", {"nonsense": 1})
    job.prepare()
    work(job)
    assert "not ours" not in job.log.read_text()
    assert job.state().status == FAILED
    assert "nonsense" in job.state().why


def test_restart_skips_what_is_done(out: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/**/*") if path.is_file()}
    table = (out / "results.csv").read_bytes()
    assert sweep() == 0
    assert pretended == []
    assert "5 runs, of which 5 are done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/**/*") if path.is_file()} == before
    assert (out / "results.csv").read_bytes() == table


def test_a_changed_setting_reruns_what_depends_on_it(out: Path, pretended: list[str]) -> None:
    done = {path.stem for path in out.glob("jobs/*.json")}

    def ran(args: list[str], **changes: Any) -> list[str]:
        pretended.clear()
        assert sweep(*args, **changes) == 0
        assert not done & set(pretended)
        return sorted(name.rpartition("-")[0] for name in pretended)

    victims = ["synthetic-clean-vgg11", "synthetic-salm-vgg11", "synthetic-salm-vgg11"]
    assert ran(["--victim.model.arch", "vgg11"]) == victims
    noise = ["synthetic-salm", "synthetic-salm", "synthetic-salm-resnet18", "synthetic-salm-resnet18"]
    assert ran(["--generator.model.last_pass_steps", "3"]) == noise
    assert ran(["--generator.data.test_size", "12"]) == sorted([*noise, "synthetic-clean-resnet18"])
    assert ran(["--workers", "3", "--grid.generator.model.method.percent", "[10, 0]"]) == []
    assert ran(["--victim.model.optimizer.lr", "0.1"]) == [], "the default is no other setting"


def test_one_release_serves_all_its_victims(pretended: list[str]) -> None:
    assert sweep(grid={"victim.model.arch": ["resnet18", "vgg11"]}) == 0
    assert sorted(name.rpartition("-")[0] for name in pretended) == [
        "synthetic-clean-resnet18", "synthetic-clean-vgg11", "synthetic-salm", "synthetic-salm-resnet18", "synthetic-salm-vgg11",
    ]  # fmt: skip
    assert len({row["release"] for row in results()} - {""}) == 1


def test_the_address_has_the_content_of_the_file(tmp_path: Path) -> None:
    def names(pixel: int) -> set[str]:
        arrays = {f"{split}_images": np.zeros((4, 28, 28), np.uint8) for split in ("train", "val", "test")}
        arrays |= {f"{split}_labels": np.arange(4, dtype=np.uint8)[:, None] % 2 for split in ("train", "val", "test")}
        arrays["train_images"][0, 0, 0] = pixel
        np.savez("mine.npz", **arrays)
        data = {"class_path": "NpzDataModule", "init_args": {"path": "mine.npz"}}
        rows = plan(generator=SWEEP["generator"] | {"data": data}, grid={})
        return {job.name for row in rows for job in (row, row.needs) if job}

    assert names(0) == names(0)
    assert not names(0) & names(1)


def test_dry_run_shows_all_and_makes_nothing(out: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("--dry_run", "true", grid={"generator.model.method.percent": [10, 20]}) == 0
    shown = capsys.readouterr().out
    assert "3 victims, 2 releases; 3 of 5 runs are done." in shown
    assert sum(" open " in line for line in shown.splitlines()) == 2
    shutil.rmtree(out)
    assert sweep("--dry_run", "true") == 0
    assert not out.exists()
    assert pretended == []


def test_a_sweep_says_what_it_takes_before_it_begins(pretended: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for args in ("--dry_run", "true"), ():
        assert sweep(*args, grid={}) == 0
        assert re.search(r"What is left takes about 0:\d\d:\d\d with 1 at a time, and \d+ MB", capsys.readouterr().out)
    assert sweep(grid={}) == 0
    assert "What is left" not in capsys.readouterr().out, "all is done"
    assert sweep("--dry_run", "true", "--generator.trainer.accelerator", "tpu", grid={"seed": [1]}) == 0
    assert "Time and disk are not known: accelerator=tpu" in capsys.readouterr().out


def test_a_sweep_for_a_gpu_can_be_planned_without_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on the node of a cluster that takes jobs."""
    for backend in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    assert (
        sweep("--dry_run", "true", "--generator.trainer.accelerator", "gpu", "--victim.config", "trainer/gpu.yaml", grid={}) == 0
    )
    shown = capsys.readouterr().out
    assert "0 of 3 runs are done" in shown
    assert "Time and disk are not known: accelerator=gpu" in shown


def test_protected_victims_load_as_the_clean_ones_do() -> None:
    victim = SWEEP["victim"] | {"data": {"num_workers": 1}}
    clean, protected = plan(victim=victim, grid={})
    for row in (clean, protected):
        options = row.settings["data"]["init_args"]
        assert (options["batch_size"], options["chunk_size"], options["num_workers"]) == (8, 16, 1)
    assert protected.needs is not None
    assert protected.settings["data"]["init_args"]["root"] == str(protected.needs.release)


@pytest.mark.parametrize("given", [{"config": "victim_pathmnist.yaml"}, {"data": {"root": "elsewhere"}}, {"data": None}])
def test_victims_never_bring_data_of_their_own(given: dict[str, Any]) -> None:
    clean, protected = plan(victim=SWEEP["victim"] | given, grid={})
    assert clean.settings["data"]["class_path"].endswith("SyntheticDataModule")
    assert protected.needs is not None
    assert protected.settings["data"]["init_args"]["root"] == str(protected.needs.release)


def test_victims_and_sources_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """By class path with arguments; a file that the class is built from counts by its content."""
    Path("own_nets.py").write_text(
        "from torch import nn\n\n\nclass Flat(nn.Sequential):\n    def __init__(self, num_classes, channels, image_size, weights=''):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(channels * image_size**2, num_classes))\n"
    )
    monkeypatch.syspath_prepend(".")
    own = {"class_path": "own_nets.Flat", "init_args": {"weights": "flat.pt"}}
    grid = {"generator.model.source": [own], "victim.model.arch": [own, "own_nets.Flat", "resnet18"]}
    names = []
    for content in ("one", "other"):
        Path("flat.pt").write_text(content)
        victims = plan(grid=grid, clean=False)
        names.append([row.name for row in victims])
    assert [row.values["arch"] for row in victims] == ["flat-weights=flat.pt", "flat", "resnet18"]
    assert [row.settings["model"]["init_args"]["arch"] for row in victims][::2] == [own, "resnet18"]
    assert {row.needs.settings["model"]["init_args"]["source"]["class_path"] for row in victims if row.needs} == {"own_nets.Flat"}
    assert not set(names[0]) & set(names[1])


def test_a_checkpoint_counts_by_its_content() -> None:
    tuning = {"class_path": "FineTune", "init_args": {"checkpoint": "victim.ckpt"}}
    victim = merge(SWEEP["victim"], {"model": {"countermeasure": tuning}})
    names = []
    for content in ("one", "other", "one"):
        Path("victim.ckpt").write_text(content)
        names.append([row.name for row in plan(victim=victim, grid={})])
    assert names[0] == names[2]
    assert not set(names[0]) & set(names[1])


# Failures and stops -----------------------------------------------------------------------------------------------------------


def test_a_failure_is_kept_and_the_others_go_on(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A victim that diverges in a real fit; the one after it has the settings of one that is done."""
    grid = {"generator.model.method.percent": [10], "victim.model.optimizer.lr": [1e30, 0.1]}
    assert sweep(grid=grid, clean=False) == 1
    shown = capsys.readouterr().out
    assert "FAILED: " in shown
    assert "1 of 2 victims are not done" in shown
    failed, done, *_ = results()
    assert (failed["status"], failed["victim.model.optimizer.lr"], failed["accuracy"]) == ("failed", "1e+30", "")
    assert failed["error"].startswith("The loss is ")
    assert failed["error"].endswith(f"(log: out/jobs/{Path(failed['run']).name}.log)")
    assert done["status"] == "done"
    (again,) = {Path(failed["run"]).name}
    tried: list[str] = []
    monkeypatch.setattr(runners, "work", lambda job, *_: tried.append(job.name))
    assert sweep(grid=grid, clean=False) == 1
    assert tried == [again], "what failed is tried again, and nothing else"


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_victims_of_a_failed_release_are_left_out(pretended: list[str], monkeypatch: pytest.MonkeyPatch, status: Any) -> None:
    pretend = runners.work

    def fail(job: Job, *rest: Any) -> None:
        if job.makes_release and job.settings["model"]["init_args"]["method"]["init_args"]["percent"] == 0:
            job.note(status, 2.0, "out of memory")
        else:
            pretend(job, *rest)

    monkeypatch.setattr(runners, "work", fail)
    assert sweep() == 1
    clean, zero, ten = results()
    assert [row["status"] for row in (clean, zero, ten)] == ["done", status, "done"]
    assert zero["error"] == f"its release {status}: out of memory"


def test_a_release_that_cannot_be_read_fails_its_victims_alone(pretended: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep() == 0
    (zero, _) = (row for row in plan() if row.needs is not None)
    zero.needs.product.write_text(FAKE_MANIFEST.to_json().replace('"format_version": ', '"format_version": 9'))
    pretended.clear()
    for more in ([], ["--victim.model.arch", "vgg11"]):  # also while runs end
        assert sweep(*more) == 1
        rows = results()[:3]
        assert [row["status"] for row in rows] == ["done", "failed", "done"]
        assert rows[1]["error"].startswith("its release cannot be read: manifest.json has format_version=9")
        assert rows[1]["error"].endswith(f"Delete {zero.needs.folder} to have it made again.")
        assert rows[1]["accuracy"] == ""
        assert "1 of 3 victims are not done" in capsys.readouterr().out
    assert len(pretended) == 3, "the runs themselves stand"
    shutil.rmtree(zero.needs.folder)
    assert sweep() == 0
    assert pretended[3:] == [zero.needs.name]


@pytest.mark.parametrize(
    ("end", "saves", "status", "resumes"),
    [
        ("kill -9 $$", True, "interrupted", True),
        ("kill -9 $$", False, "interrupted", False),
        ("exit 137", True, "interrupted", True),
        ("exit 1", True, "failed", False),
        ("exit 255", True, "failed", False),
    ],
)
def test_what_a_signal_ended_goes_on_from_its_checkpoint(
    end: str, saves: bool, status: str, resumes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when memory runs out; an error would come again."""
    (row, _) = plan(grid={})
    job, checkpoint = row, row.folder / "checkpoints/step=5.ckpt"
    program = Path("python").absolute()
    saving = f"mkdir -p {checkpoint.parent}; touch {checkpoint}" if saves else f"mkdir -p {job.folder}"
    program.write_text(f'#!/bin/sh\necho "$@" >> calls\n{saving}\n{end}\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    job.prepare()
    work(job)
    before = job.state()
    assert before.status == status
    if status == "interrupted":
        assert before.why.startswith("killed by signal 9 (Killed); if that was for memory, give a smaller batch_size")
    job.note(status, 1000.0)
    left = job.folder / "events.out.tfevents.1"  # of the run; what is not stays
    left.touch()
    work(job)
    first, second = Path("calls").read_text().splitlines()
    assert "--ckpt_path" not in first
    assert (f"--ckpt_path {job.folder}" in second, left.exists()) == (resumes, resumes)
    assert (job.state().seconds > 1000) is resumes


def test_a_record_of_other_settings_is_none(pretended: list[str]) -> None:
    """Two settings whose addresses begin alike would share a folder's name."""
    (row, _) = plan(grid={})
    row.note("failed", 3.0, "as the others did")
    assert row.state().why == "as the others did"
    assert replace(row, identity={"settings": "others"}).state() == Run({"settings": "others"})


@pytest.mark.parametrize("error", [None, OSError("node lost")])
def test_a_run_that_could_not_note_its_end_goes_on(error: OSError | None) -> None:
    (row, _) = plan(grid={})
    ended: Future[None] = Future()
    ended.set_exception(error) if error else ended.set_result(None)
    row.prepare()
    row.note("open", 3.0)
    runners._settle(row, ended)
    expected = "OSError: node lost" if error else "the job ended without a result"
    assert row.state() == Run(row.identity, "interrupted", expected, 3.0)


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_from_its_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = TRAINER | {"max_steps": 60, "callbacks": [{"class_path": "RunCheckpoint", "init_args": {"every_n_steps": 5}}]}
    changes: dict[str, Any] = {
        "grid": {},
        "generator": SWEEP["generator"] | {"model.method": "Random"},
        "victim": SWEEP["victim"] | {"trainer": trainer | {"val_check_interval": 20}},
    }
    (clean, _) = plan(**changes)
    stopper = threading.Thread(target=_stop_after_checkpoint, args=(clean,))
    stopper.start()
    assert sweep(**changes) == 130
    stopper.join()
    assert "The same command goes on from there" in capsys.readouterr().out
    assert [row["status"] for row in results()] == ["interrupted", "open"]
    before = clean.state().seconds
    assert sweep(**changes) == 0
    assert json.loads(clean.product.read_text())["steps"] == 60
    assert clean.state().seconds > before
    assert "interrupted; the state is saved" in clean.log.read_text(), "the log of a run that goes on is kept"


def _stop_after_checkpoint(job: Job) -> None:
    while not any(job.folder.glob("checkpoints/step=*.ckpt")):
        time.sleep(0.02)
    if not job.product.is_file():
        os.kill(os.getpid(), signal.SIGINT)


def test_two_sweeps_do_not_share_a_folder(
    pretended: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend, codes = runners.work, []

    def second(job: Job, *rest: Any) -> None:
        if not codes:
            codes.append(main(["sweep", "--config", "sweep.yaml"]))
        pretend(job, *rest)

    monkeypatch.setattr(runners, "work", second)
    assert sweep(grid={}, clean=False) == 0
    assert codes == [2]
    assert f"is in use by process {os.getpid()} (" in capsys.readouterr().err


def test_runs_of_a_killed_sweep_keep_its_lock(tmp_path: Path) -> None:
    with locked(tmp_path, "out=here"):
        left = subprocess.Popen(["sleep", "60"], close_fds=False)
    with pytest.raises(OutputExistsError, match=r"out=here is in use by process \d+ \(.*\) since"), locked(tmp_path, "out=here"):
        pass
    left.kill()
    left.wait()
    with locked(tmp_path, "out=here"):
        pass


# Where it runs ----------------------------------------------------------------------------------------------------------------


def test_workers_run_together_and_no_more_than_asked(pretended: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend, together = runners.work, threading.Barrier(2)
    running, most = [], []

    def meet(job: Job, environment: dict[str, str], *rest: Any) -> None:
        running.append(environment)
        together.wait(timeout=30)  # passes only while another one is here
        most.append(len(running))
        time.sleep(0.05)
        running.remove(environment)
        pretend(job)

    monkeypatch.setattr(runners, "work", meet)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert sweep("--workers", "2", grid={"victim.model.arch": ["resnet18", "vgg11"], "seed": [0, 1]}, clean=False) == 0
    assert len(pretended) == 6
    assert max(most) == 2
    shares = [runners._share(slot, 2) for slot in (0, 1)]
    assert shares == [{"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": gpu} for gpu in ("3", "5")]
    assert runners._share(0, 1) == {}


@pytest.mark.slow
def test_cluster(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The local executor of submitit runs one more victim on a release that is there."""
    pytest.importorskip("submitit")
    assert sweep(
        "--cluster", "{executor: local, timeout_min: 5}",
        grid={"generator.model.method.percent": [10], "seed": [0], "victim.trainer.max_steps": [1]}, clean=False,
    ) == 0  # fmt: skip
    row, *_ = results()
    assert (row["status"], row["victim.trainer.max_steps"]) == ("done", "1")
    assert json.loads((Path(row["run"]) / "results.json").read_text())["steps"] == 1
    assert any((out / "submitit").iterdir())


@pytest.mark.slow
def test_a_preempted_job_saves_its_state_and_is_queued_again() -> None:
    """What submitit calls on a node, called here."""
    pytest.importorskip("submitit")
    trainer = TRAINER | {"max_steps": 10000, "callbacks": [{"class_path": "RunCheckpoint", "init_args": {"every_n_steps": 5}}]}
    (row, _) = plan(grid={}, victim=SWEEP["victim"] | {"trainer": trainer})
    row.prepare()
    fit = runners._ClusterFit()
    thread = threading.Thread(target=fit, args=(row,))
    thread.start()
    while not any(row.folder.glob("checkpoints/step=*.ckpt")):
        time.sleep(0.02)
    assert fit._process is not None
    fit._process.send_signal(signal.SIGUSR2)  # as SLURM does, to all processes of a job
    time.sleep(0.2)
    assert fit._process.poll() is None
    again = fit.checkpoint(row)
    assert isinstance(again.function, runners._ClusterFit)
    assert again.args == (row,)
    thread.join()
    assert row.state().status == "interrupted"
    assert any(row.folder.glob("checkpoints/step=*.ckpt"))


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path on which nothing is, least of all a SLURM that would take jobs; its folder."""
    Path("bin").mkdir()
    monkeypatch.setenv("PATH", str(Path("bin").absolute()))
    return Path("bin")


@pytest.fixture
def fake_slurm(no_slurm: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Returns what makes SLURM's programs answer as told, which is nothing by default."""
    monkeypatch.setattr(slurm, "_SHORTEST", 0.0)
    monkeypatch.setattr(slurm, "_SETTLING", 0.0)
    monkeypatch.setattr(runners.Cluster, "pause", 0.01)

    def answer(**said: str) -> None:
        for name in slurm.COMMANDS:
            (no_slurm / name).write_text(f"#!/bin/sh\n{said.get(name, 'true')}\n")
            (no_slurm / name).chmod(0o755)

    answer()
    return answer


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ("{slurm_partition: gpu, timeout_min: 9}", "there is no SLURM here: sbatch, srun, squeue, scancel, scontrol not found"),
        ("{executor: local}", "timeout_min is missing; give the minutes"),
        ("{executor: local, timeout_min: 5, tasks_per_node: 2}", "tasks_per_node=2: a run of a sweep is one task"),
        ("{executor: local, timeout_min: 10h}", "timeout_min"),
        ("{executor: local, timeout_mni: 5}", "timeout_mni"),
    ],
)
def test_cluster_says_what_is_missing(cluster: str, expected: str, no_slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("submitit")
    assert sweep("--cluster", cluster) == 2
    said = capsys.readouterr().err
    assert f"cluster={yaml.safe_load(cluster)}: " in said
    assert expected in said


def test_cluster_needs_submitit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert sweep("--cluster", "{executor: local}") == 2
    assert "pip install 'salm-lightning[cluster]'" in capsys.readouterr().err


def test_a_sweep_on_slurm_ends_whatever_slurm_says(fake_slurm: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """Here it keeps no accounts, as the real one of tests/slurm, and is at fault in ways that one cannot be made to be."""
    submitit = pytest.importorskip("submitit")
    command = ("--cluster", "{timeout_min: 9}")
    fake_slurm(squeue="echo Unable to contact slurm controller >&2; exit 1")
    assert sweep(*command, grid={}, clean=False) == 2
    assert "error: squeue does not answer (Unable to contact slurm controller)" in capsys.readouterr().err
    fake_slurm(
        sbatch="echo 'sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: limit' >&2; exit 1"
    )
    assert sweep(*command, grid={}, clean=False) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("salm-cli: error: SLURM did not take synthetic-salm-"), line
    assert line.endswith(": Batch job submission failed: limit."), line
    # A job that nobody has heard of since is not waited for, and the next start submits it again.
    fake_slurm(sbatch="echo Submitted batch job 7")
    for _ in range(2):
        assert sweep(*command, grid={}, clean=False) == 1
        said = capsys.readouterr()
        assert "SLURM job 7 is submitted: synthetic-salm-" in said.out
        assert "INTERRUPTED: SLURM job 7 is gone without a result (log: out/submitit/7_0_log.err)" in said.out
    (script,) = Path("out/submitit").glob("7_submission.sh")
    text = script.read_text()
    assert "#SBATCH --job-name=out-synthetic-salm-" in text
    assert "#SBATCH --requeue\n" in text
    assert "#SBATCH --time=9\n" in text
    submission = submitit.core.utils.DelayedSubmission.load(Path("out/submitit/7_submitted.pkl"))
    assert submission._timeout_countdown == 100


def test_a_run_that_another_process_is_at_is_left_alone(pretended: list[str]) -> None:
    (row, _) = plan(grid={})
    kept = row.folder / "checkpoints/step=1.ckpt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    row.note("failed", 1.0, "so that it would begin anew")
    with locked(row.folder, "run"), pytest.raises(OutputExistsError, match="is in use by process"):
        work(row)
    assert kept.is_file()


def test_a_fit_of_a_sweep_is_no_task_of_a_slurm_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or Lightning would take a device a task, and requeue the job itself."""
    program = Path("python").absolute()
    program.write_text("#!/bin/sh\nenv > seen\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    for name in ("NTASKS", "PROCID", "LOCALID", "JOB_ID"):
        monkeypatch.setenv(f"SLURM_{name}", "1")
    (row, _) = plan(grid={})
    row.prepare()
    work(row)
    assert [line for line in Path("seen").read_text().splitlines() if line.startswith("SLURM_")] == ["SLURM_JOB_ID=1"]


# Settings ---------------------------------------------------------------------------------------------------------------------

WRONG = [
    ({"generator.model.widht": [0.5]}, ["generator.model.widht=0.5", "generator.model.widht is not an option", "did you mean 'width'"]),
    ({"generator.model.init_args.methd": ["EM"]}, ["generator.model.init_args.methd=EM", "did you mean 'method'"]),
    ({"victim.model.arch": ["resnet18", "resnet19"]}, ["victim.model.arch=resnet19", "did you mean 'resnet18'"]),
    ({"generator.model.method.percent": [10, 101]}, ["generator.model.method.percent=101", "percent=101.0 is out of range"]),
    ({"generator.model.method": ["SALN"]}, ["generator.model.method=SALN is not known", "did you mean 'SALM'"]),
    ({"victim.trainer.max_step": [3]}, ["victim.trainer.max_step is not an option", "did you mean 'max_steps'"]),
    ({"victim.data.batch_sise": [3]}, ["victim.data.batch_sise is not an option", "did you mean 'batch_size'"]),
    ({"generatr.model.width": [1]}, ["grid key 'generatr.model.width' is not known", "did you mean 'generator'"]),
    ({"seeds": [1]}, ["grid key 'seeds' is not known", "did you mean 'seed'"]),
    ({"seed": 1}, ["grid key 'seed' has 1; give a list of values, such as [1]"]),
    ({"seed": []}, ["grid key 'seed' has []"]),
    ({"generator.config": ["method/emm.yaml"]}, ["--config method/emm.yaml is neither a file nor", "did you mean 'method/em.yaml'"]),
    ({"generator.model.seed": [1]}, ["generator.model.seed cannot be set: use --seed_everything"]),
    ({"victim.run": ["mine"]}, ["victim.run cannot be set: a sweep settles it"]),
    ({"victim.data": ["MedMNISTDataModule"]}, ["victim.data=MedMNISTDataModule", "Name those under generator.data"]),
    ({"victim.config": [["victim.yaml", "dataset/pathmnist.yaml"]]}, ["victim.data=MedMNISTDataModule"]),
    ({"victim.model": ["NoiseGeneratorModule"]}, ["victim.model=NoiseGeneratorModule"]),
]  # fmt: skip


@pytest.mark.parametrize(("grid", "expected"), WRONG)
def test_mistakes_are_found_before_anything_runs(
    grid: dict[str, Any], expected: list[str], pretended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(grid=grid) == 2
    shown = capsys.readouterr().err
    for text in expected:
        assert text in shown, shown
    assert pretended == []
    assert not Path("out").exists()


def test_mistakes_beside_the_grid(capsys: pytest.CaptureFixture[str]) -> None:
    for args, expected in (
        (["--workers", "0"], "workers=0 is out of range"),
        (["--worker", "2"], "did you mean 'workers'"),
        (["--generator.model.widht", "1"], "generator.model.widht is not an option; did you mean 'width'"),
    ):
        assert sweep(*args) == 2
        assert expected in capsys.readouterr().err
    assert sweep(victim=None) == 2
    assert "victim is missing" in capsys.readouterr().err


def test_merging_options() -> None:
    """As ``fit`` does, but another class drops the options of the one before."""
    salm = {"class_path": "SALM", "init_args": {"percent": 5, "radius": 4}}
    assert merge({"method": salm}, {"method.percent": 7})["method"] == {
        "class_path": "SALM",
        "init_args": {"percent": 7, "radius": 4},
    }
    assert merge(salm, {"init_args": {"percent": 7}})["init_args"] == {"percent": 7, "radius": 4}
    assert merge(salm, "SALM") == salm
    assert merge(salm, "EM") == {"class_path": "EM"}
    assert merge(salm, {"class_path": "EM", "radius": 2}) == {"class_path": "EM", "init_args": {"radius": 2}}
    assert merge("SALM", {"percent": 7}) == {"class_path": "SALM", "init_args": {"percent": 7}}
    assert merge({"class_path": "M", "init_args": {"m": salm}}, {"m.percent": 1})["init_args"]["m"]["init_args"]["percent"] == 1
    assert salm == {"class_path": "SALM", "init_args": {"percent": 5, "radius": 4}}, "nothing is changed in place"


def test_composing_files_and_options() -> None:
    Path("mine.yaml").write_text("run: mine\nmodel: {class_path: VictimModule, init_args: {arch: vgg11, width: 0.5}}\n")
    section = {"config": ["mine.yaml"], "trainer": {"max_steps": 3}}
    options = compose("victim", section, {"config": "trainer/cpu.yaml", "model.width": 1})
    assert options["model"]["init_args"] == {"arch": "vgg11", "width": 1}
    assert options["trainer"] == {"max_steps": 3, "accelerator": "cpu", "devices": 1, "precision": "32-true"}
    assert "run" not in options
    with pytest.raises(ConfigurationError, match=r"victim\.release cannot be set"):
        compose("victim", {"release": "there"}, {})


def test_classes_may_be_named_in_full() -> None:
    short = plan(grid={})
    method = {"class_path": "salm_lightning.SALM"}
    assert sweep("--dry_run", "true", grid={"generator.model.method": [method]}) == 0
    assert [row.name for row in plan(grid={"generator.model.method": [method]})] == [row.name for row in short]


def test_names_of_columns_and_values() -> None:
    keys = [
        "generator.trainer.max_steps",
        "victim.trainer.max_steps",
        "generator.model.init_args.method",
        "victim.model.arch",
        "seed",
    ]
    assert columns_of(keys) == {
        "generator.trainer.max_steps": "generator.trainer.max_steps",
        "victim.trainer.max_steps": "victim.trainer.max_steps",
        "generator.model.init_args.method": "generator.model.method",
    }
    assert short_names([*FIXED, *columns_of(keys).values()]) == {name: name for name in FIXED} | {
        "generator.trainer.max_steps": "generator.trainer.max_steps",
        "victim.trainer.max_steps": "victim.trainer.max_steps",
        "generator.model.method": "method",
    }
    sources = ["generator.model.source.arch", "generator.model.norm", "generator.model.subnorm"]
    assert list(short_names([*FIXED, *sources]).values()) == [*FIXED, "source.arch", "norm", "subnorm"]
    assert label({"class_path": "SALM", "init_args": {"percent": 10, "project": True}}) == "SALM percent=10 project=true"
    assert label({"method.score": "element", "init_args": {"loop": "fresh"}}) == "method.score=element loop=fresh"
    assert [label(value) for value in ({}, ["a", "b"], 0.5, None, False)] == ["default", "a b", "0.5", "null", "false"]


# Documentation ----------------------------------------------------------------------------------------------------------------


FEW = {
    "sweep/percent.yaml": ["--grid.generator.model.method.percent", "[10]"],
    "sweep/strict.yaml": ["--grid.generator.model.method", "[SALM]"],
}
"""Less of the shipped sweeps that the pages give as they are; test_configs.py plans all of them."""


@pytest.mark.parametrize(
    ("page", "count"),
    [
        pytest.param("reproducing", 3 + 3, marks=pytest.mark.slow),
        pytest.param("results", 4 + 4 + 6 + 1 + 1 + 2, marks=pytest.mark.slow),
        ("cluster", 1),
    ],
)
def test_documented_sweeps_can_be_planned(
    page: str, count: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those in loops as well, each as Bash would give it."""
    Path("benchmarks").symlink_to(ROOT / "benchmarks")  # the pages' commands are given where the repository is
    monkeypatch.syspath_prepend("benchmarks")
    commands = [command for command in shell_commands(page) if command[0] == "sweep"]
    assert len(commands) == count
    for command in commands:
        few = [] if "--grid.seed" in command else ["--grid.seed", "[0]"]
        few += [option for name, options in FEW.items() if name in command for option in options]
        narrow = ["--generator.model.width", "0.125", "--victim.model.width", "0.125"]
        assert main([*command, "--dry_run", "true", *narrow, *few]) == 0, command
    if page == "results":
        looped = [command for command in commands if "--generator.model.loop" in command]
        assert {command[command.index("--generator.model.loop") + 1] for command in looped} == {"persistent", "fresh"}
    if page == "reproducing":
        text = (ROOT / f"docs/{page}.md").read_text()
        (example,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
        Path("example.yaml").write_text(example)
        capsys.readouterr()
        assert main(["sweep", "--config", "example.yaml", "--dry_run", "true"]) == 0
        assert "40 victims, 16 releases" in capsys.readouterr().out
