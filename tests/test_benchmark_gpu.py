"""benchmarks/gpu.py: ten minutes of a GPU, tried on the CPU; what can only be seen on a GPU is marked so."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import write_fake_npz

from salm_lightning.data import SyntheticDataModule
from salm_lightning.data.catalogue import MEDMNIST

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture(scope="module")
def data() -> SyntheticDataModule:
    made = SyntheticDataModule(train_size=40, val_size=10, test_size=10)
    made.setup()
    return made


class Process:
    """A process that ends at once, or never."""

    def __init__(self, exitcode: int | None, log: list[str], name: str) -> None:
        self.exitcode, self.log, self.name = exitcode, log, name

    def start(self) -> None:
        self.log.append(self.name)

    def kill(self) -> None:
        if self.exitcode is None:
            self.exitcode = -9

    def join(self) -> None:
        pass


class Clock:
    """A clock that only goes while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def small(tmp_path: Path, **more: Any) -> Namespace:
    given = {"steps": 100, "victim_steps": 600, "at_once": 2, "out": tmp_path, "width": 0.0625, "device": "cpu"}
    return Namespace(**given, **more)


def test_noise_comes_before_its_victims_and_the_largest_question_first() -> None:
    from gpu import DATASETS, jobs

    wanted = list(jobs(DATASETS))
    names = [job.name for job in wanted]
    assert len(set(names)) == len(names)
    assert names[:3] == ["bloodmnist-clean-resnet18", "bloodmnist-em", "bloodmnist-em-resnet18"]
    assert all(names.index(job.needs) < place for place, job in enumerate(wanted) if job.needs)
    assert {job.countermeasure for job in wanted} == {"", "grey", "jpeg10", "at4"}
    assert next(jobs(["breastmnist"])).name == "breastmnist-clean-resnet18"


def test_a_part_that_failed_halfway_is_done_again() -> None:
    from gpu import finished

    lines = [
        {"group": "parity", "part": "16-mixed"},
        {"group": "parity", "failed": "no"},
        {"group": "speed"},
        {"group": "a", "failed": "x"},
    ]
    assert finished(lines) == {"speed"}
    assert finished([*lines, {"group": "a", "acc": 0.5}]) == {"speed", "a"}


def test_jobs_are_done_skipped_stopped_or_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu
    from gpu import Job, run_jobs

    monkeypatch.setattr(gpu, "time", Clock())
    clean, noise, victim = Job("a", "clean", "resnet18"), Job("a", "em"), Job("a", "em", "resnet18")
    broken, after, endless = Job("a", "sp"), Job("a", "sp", "resnet18"), Job("b", "clean", "vgg11")
    long = Job("b", "clean", "densenet121", "at4")
    for job in (clean, noise, victim):
        (tmp_path / "jobs" / job.name).mkdir(parents=True)
        (tmp_path / "jobs" / job.name / "shown.json").write_text('{"acc": 0.5}')
    (tmp_path / "jobs" / noise.name / "shown.json").unlink()
    codes = {clean: 0, noise: 0, victim: 0, broken: 1, endless: None}
    said, started = [], []

    def start(job: Any) -> Any:
        (tmp_path / "jobs" / job.name / "shown.json").write_text('{"acc": 0.5}') if job is noise else None
        return Process(codes.get(job), started, job.name)

    wanted = [victim, clean, noise, after, broken, endless, long]
    run_jobs(wanted, small(tmp_path), said.append, 2.0, start)
    lines = {line["part"]: line for line in said}
    assert list(lines) == ["a-clean-resnet18", "a-em", "a-em-resnet18", "a-sp", "a-sp-resnet18", long.name, endless.name]
    assert started.index("a-em") < started.index("a-em-resnet18")
    assert lines["a-em-resnet18"]["acc"] == 0.5
    assert lines["a-sp"]["failed"] == "exit code 1"
    assert lines["a-sp-resnet18"]["skipped"] == "there is no a-sp"
    assert "s are left" in lines[long.name]["skipped"]
    assert lines[endless.name]["stopped"]


def test_two_noises_are_compared_by_signs_places_and_bytes() -> None:
    from gpu_speed import agreement

    one = torch.zeros(1, 1, 10, 10)
    one[0, 0, 0] = torch.arange(1, 11) / 255
    other = one.clone()
    other[0, 0, 0, :5] *= -1  # the ten largest stay where they are
    assert agreement(one, other) == pytest.approx({"same_signs": 0.95, "same_mask": 1.0, "same_bytes": 0.95})
    assert agreement(one, one.flip(2))["same_mask"] == 0


def test_parity_and_speed_are_measured(data: SyntheticDataModule, tmp_path: Path) -> None:
    from gpu_speed import parity, speed

    options = small(tmp_path, parity_steps=2, batch_size=8, low=["bf16-mixed"], repeats=1, matmul=32)
    first, last = parity(data, options)
    assert (first["steps"], last["steps"]) == (1, 2)
    assert 0.6 < last["same_signs"] <= first["same_signs"] < 1
    same = list(parity(data, Namespace(**{**vars(options), "low": ["32-true"]})))
    assert all(line["same_bytes"] == line["same_mask"] == 1 for line in same)
    line = speed(data, options, "bf16 contiguous")
    assert set(line["images_per_second"]) == {"PGD pass", "source step", "whole step", "last pass"}
    assert line["same_signs"] > 0.9
    assert line["matmul_tflops"] >= 0


@pytest.mark.gpu
def test_graphs_make_the_same_noise(data: SyntheticDataModule, tmp_path: Path) -> None:
    from gpu_speed import speed

    options = small(tmp_path, batch_size=32, repeats=2, matmul=1024)
    options.device = "cuda"
    assert speed(data, options, "bf16 graphs")["same_signs"] > 0.999


def test_all_that_a_run_needs_is_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gpu import pack

    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "bloodmnist.npz").write_bytes(b"x")
    pack(tmp_path / "packed", tmp_path / "from", ["bloodmnist"])
    size = float(capsys.readouterr().out.split()[-2])
    assert size < 60 - 36.4  # megabytes, without the three files of images
    for name in (
        "benchmarks/gpu.py",
        "salm_lightning/__init__.py",
        "configs/victim.yaml",
        "data/bloodmnist.npz",
        "site/medmnist/info.py",
    ):
        assert (tmp_path / "packed" / name).is_file()


@pytest.mark.slow
def test_the_whole_of_it_runs_on_a_cpu(tmp_path: Path) -> None:
    from gpu import jobs

    write_fake_npz(tmp_path / "breastmnist.npz", MEDMNIST["breastmnist"], (24, 8, 8))
    given = "--datasets breastmnist --accelerator cpu --width 0.0625 --precision 32-true --steps 2 --victim-steps 2 --at-once 1"
    given += (
        " --variants fp32 --low bf16-mixed --batch-size 4 --parity-steps 1 --repeats 1 --matmul 32 --no-tests --minutes 100000"
    )
    command = [sys.executable, "gpu.py", "--data", str(tmp_path), "--out", str(tmp_path / "out"), *given.split()]
    subprocess.run(command, cwd=BENCHMARKS, check=True, capture_output=True)
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["group"] for line in lines[:2]] == ["parity", "speed-fp32"]
    assert {line["part"] for line in lines[2:]} == {job.name for job in jobs(["breastmnist"])}
    assert not any({"failed", "skipped", "stopped"} & line.keys() for line in lines)
    assert all(0 <= line["acc"] <= 1 for line in lines if line.get("arch"))
