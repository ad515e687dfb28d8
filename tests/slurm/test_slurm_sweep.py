"""``salm-cli sweep --cluster`` on a real SLURM: jobs that are cancelled, left by a killed sweep, refused, preempted and timed out."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Slurm, wait

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

DATA = {"size": 16, "train_size": 20, "val_size": 8, "test_size": 10, "chunk_size": 16, "batch_size": 8}
TRAINER: dict[str, Any] = {"max_steps": 2, "accelerator": "cpu", "log_every_n_steps": 1, "val_check_interval": 100}
HELD = {"timeout_min": 5, "slurm_additional_parameters": {"hold": True}}


class Sweep:
    """A sweep in a process of its own, which prints into ``sweep.log``; a release a seed, and a victim on each."""

    def __init__(self, cluster: dict[str, Any], seeds: int = 1, steps: int = 2) -> None:
        data = {"class_path": "SyntheticDataModule", "init_args": DATA}
        model = {"method": "SALM", "width": 0.125, "last_pass_steps": 1, "updates_per_visit": 1}
        callbacks = [{"class_path": "RunCheckpoint", "init_args": {"every_n_steps": 5}}]
        settings = {
            "out": "swept",
            "generator": {
                "data": data,
                "model": {"class_path": "NoiseGeneratorModule", "init_args": model},
                "trainer": TRAINER | {"max_steps": steps, "callbacks": callbacks},
            },
            "victim": {"model": {"class_path": "VictimModule", "init_args": {"width": 0.125}}, "trainer": TRAINER},
            "grid": {"seed": list(range(seeds))},
            "clean": False,
            "cluster": cluster,
        }
        Path("sweep.yaml").write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "salm_lightning", "sweep", "--config", "sweep.yaml"]
        with Path("sweep.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def __enter__(self) -> Sweep:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def said(self) -> str:
        return Path("sweep.log").read_text()

    def wait_for(self, text: str, seconds: float = 240) -> None:
        wait(lambda: text in self.said or self.process.poll() is not None, text, seconds)
        assert text in self.said, self.said

    def end(self, seconds: float = 240) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.said) from None


def results() -> list[dict[str, str]]:
    with Path("swept/results.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_cancelled_job_ends_the_sweep_and_is_submitted_again(slurm: Slurm) -> None:
    with Sweep(HELD) as sweep:
        sweep.wait_for("is submitted: synthetic-salm-")
        ((number, (state, name)),) = slurm.jobs().items()
        assert (state, name[:21]) == ("PENDING", "swept-synthetic-salm-")
        assert f"SLURM job {number} is submitted: {name.removeprefix('swept-')}" in sweep.said
        slurm.run("scancel", number)
        assert sweep.end() == 1, sweep.said
        why = f"SLURM job {number} is gone without a result (log: swept/submitit/{number}_0_log.err)"
        assert f"INTERRUPTED: {why}" in sweep.said, sweep.said
    assert (results()[0]["status"], results()[0]["error"]) == ("interrupted", f"its release interrupted: {why}")
    with Sweep({"timeout_min": 5}) as sweep:
        assert sweep.end() == 0, sweep.said
    assert results()[0]["status"] == "done"
    assert "auto-requeueing" not in "".join(path.read_text() for path in Path("swept/jobs").glob("*.log"))


def test_a_killed_sweep_is_started_again_and_takes_its_jobs_over(slurm: Slurm) -> None:
    with Sweep(HELD, steps=3) as sweep:
        sweep.wait_for("is submitted: synthetic-salm-")
    (number,) = slurm.jobs()
    # Another folder's jobs are no concern of this one, whatever they are called.
    (_, name) = slurm.jobs()[number]
    Path("elsewhere.sh").write_text("#!/bin/sh\nsleep 60\n")
    other = slurm.submit("--hold", f"--job-name={name}", "elsewhere.sh")
    slurm.run("scontrol", "update", "PartitionName=main", "State=INACTIVE")
    with Sweep({"timeout_min": 5}, seeds=2, steps=3) as sweep:  # the second run is refused, the first is there
        assert sweep.end() == 2, sweep.said
        assert f"SLURM job {number} is there already: " in sweep.said
        (line,) = [line for line in sweep.said.splitlines() if "error" in line]
        assert line.startswith("salm-cli: error: SLURM did not take synthetic-salm-")
        reason = "Batch job submission failed: Required partition not available (inactive or drain)."
        assert f"{reason} Jobs {number} are left at work; the same command takes them over, scancel ends them." in line
    assert set(slurm.jobs()) == {number, other}
    slurm.run("scontrol", "update", "PartitionName=main", "State=UP")
    slurm.run("scontrol", "release", number)
    with Sweep({"timeout_min": 5}, steps=3) as sweep:
        assert sweep.end() == 0, sweep.said
        assert f"SLURM job {number} is there already: " in sweep.said
    assert len(list(Path("swept/submitit").glob("*_submission.sh"))) == 2, "one job a run"


def test_a_preempted_job_goes_on_and_one_that_timed_out_too_often_ends(slurm: Slurm) -> None:
    with Sweep({"timeout_min": 5, "max_num_timeout": 0}, steps=100000) as sweep:
        sweep.wait_for("is submitted: ")
        (number,) = slurm.jobs()
        wait(lambda: [*Path("swept").glob("*/checkpoints/step=*.ckpt")], "a checkpoint")
        urgent = slurm.submit("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        wait(lambda: slurm.details(number)["Restarts"] == "1", "a preempted job that is queued again")
        (log,) = Path("swept/jobs").glob("*.log")
        assert "interrupted; the state is saved" in log.read_text()
        shown = log.read_text().count("step ")
        wait(lambda: log.read_text().count("step ") > shown, "the run to go on")
        assert urgent not in slurm.jobs()
        assert "starts again" not in log.read_text()
        slurm.run("scancel", "--signal=USR2", number)  # as SLURM does before a job's time is over
        assert sweep.end() == 1, sweep.said
        assert "UncompletedJobError: Job not requeued because: timed-out too many times. (log: swept/submitit/" in sweep.said, (
            sweep.said
        )
    assert log.read_text().count("interrupted; the state is saved") == 2
    shown = log.read_text().count("step ")
    with Sweep({"timeout_min": 5, "cpus_per_task": 2}, steps=100000) as sweep:
        wait(lambda: log.read_text().count("step ") > shown, "the run to go on")
        (number,) = slurm.jobs()
        assert "CPUs=2" in slurm.run("scontrol", "show", "step", f"{number}.0")
        sweep.process.send_signal(signal.SIGINT)
        assert sweep.end() == 130, sweep.said
        assert f"scancel {number}" in sweep.said
    assert log.read_text().count("interrupted; the state is saved") == 3
    assert not slurm.jobs(), "a job that is cancelled is not queued again"
