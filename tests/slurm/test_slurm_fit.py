"""``salm-cli fit`` on a real SLURM: the script of ``docs/cluster.md``, requeued; ``torchrun``; what ranks do one at a time."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from cluster import Slurm, wait
from fakes import write_fake_npz

from salm_lightning.data.base import DatasetInfo
from salm_lightning.data.catalogue import MEDMNIST
from salm_lightning.main import main

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
SMALL = (
    "--trainer.accelerator cpu --trainer.max_steps 300 --trainer.callbacks RunCheckpoint --trainer.callbacks.every_n_steps 10 "
    "--trainer.val_check_interval 1000 --model.width 0.125 --data.batch_size 8 --data.chunk_size 16"
)
NOISE = "--model.last_pass_steps 1 --model.updates_per_visit 1"
TWO = ["--nodes=1", "--ntasks-per-node=2", "--gres=gpu:2", "--cpus-per-task=1", "--mem=4G", "--time=9"]


@pytest.fixture
def place(slurm: Slurm) -> Slurm:
    """A SLURM, in a folder that is set up as the page says, with a small PathMNIST."""
    Path(".venv").symlink_to(sys.prefix)
    known = MEDMNIST["pathmnist"]
    info = DatasetInfo("pathmnist", known.task, known.class_names, known.channels, 28)
    Path("data").mkdir()
    write_fake_npz(Path("data/pathmnist.npz"), info, (64, 18, 18))
    return slurm


def block(start: str) -> str:
    """Return the page's block of Bash that begins so."""
    (found,) = re.findall(rf"```bash\n({re.escape(start)}.*?)```", PAGE, flags=re.DOTALL)
    return str(found)


def changed(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert text.count(old) == 1, (old, text)
        text = text.replace(old, new)
    return text


def protected(job: str) -> dict[str, bytes]:
    folder = Path(f"lightning_logs/salm_pathmnist_{job}/protected")
    return {name: (folder / name).read_bytes() for name in ("pathmnist.npz", "manifest.json")}


def test_the_data_are_fetched_beforehand(place: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = block("export SALM_DATA_ROOT")
    for name in ("data", "cache"):
        assert f"=$PWD/{name}" in fetch.splitlines()[0]
    monkeypatch.setenv("SALM_DATA_ROOT", str(Path("data").absolute()))
    (code,) = re.findall(r"python -c '(.*)'", fetch)
    with pytest.warns(UserWarning, match=r"data/pathmnist\.npz is not the official MedMNIST file"):
        exec(code)


def test_the_documented_script_is_requeued_and_its_release_is_that_of_an_uninterrupted_run(place: Slurm) -> None:
    script = changed(
        block("#!/bin/bash"),
        ('"${resume[@]}"\n', f'"${{resume[@]}}" {SMALL} {NOISE}\n'),
        ("status=$?\n", "status=$?; date +%s.%N > ended\n"),
    )
    Path("script.sh").write_text(script)
    uninterrupted = place.submit(*TWO, "script.sh")
    wait(lambda: uninterrupted not in place.jobs(), "the run's end")
    log = Path(f"salm-{uninterrupted}.log").read_text()
    assert place.details(uninterrupted)["JobState"] == "COMPLETED", log
    assert "auto-requeueing" not in log
    stopped = place.submit(*TWO, "--nodes=2", "--ntasks-per-node=1", "--gres=gpu:1", "script.sh")
    run = Path(f"lightning_logs/salm_pathmnist_{stopped}")
    wait(lambda: [*run.glob("checkpoints/step=*.ckpt")], "a checkpoint")
    place.run("scancel", "--signal=TERM", stopped)  # as SLURM does before the time is over
    wait(lambda: place.details(stopped)["Restarts"] == "1", "a job that is queued again")
    saved = max(checkpoint.stat().st_mtime for checkpoint in run.glob("checkpoints/step=*.ckpt"))
    ended = float(Path("ended").read_text())
    print(f"gone {ended - saved:.1f} s after the state was saved")
    assert ended - saved < 2 + os.getloadavg()[0], "with a second or two of SLURM's own"
    wait(lambda: stopped not in place.jobs(), "the run's end")
    log = Path(f"salm-{stopped}.log").read_text()
    assert place.details(stopped)["JobState"] == "COMPLETED", log
    assert log.count("interrupted; the state is saved") == 2, "once a rank"
    assert protected(stopped) == protected(uninterrupted)
    release = str(Path(f"lightning_logs/salm_pathmnist_{stopped}/protected"))
    assert main(["verify", release, "--source", "data/pathmnist.npz"]) == 0


def test_torchrun_within_a_job_and_two_ranks_that_say_nothing_false(place: Slurm) -> None:
    command = changed(
        block("torchrun"),
        ("nproc_per_node 4", "nproc_per_node 2"),
        ("devices 4", "devices 2"),
        ("method/salm.yaml", "victim.yaml"),
    )
    Path("script.sh").write_text(
        f"#!/bin/bash\nsource .venv/bin/activate\nexport SALM_DATA_ROOT=$PWD/data\n{command.strip()} {SMALL}\n"
    )
    job = place.submit("--cpus-per-task=2", "--gres=gpu:2", "--output=log", "--time=9", "script.sh")
    wait(lambda: job not in place.jobs(), "the run's end")
    log = Path("log").read_text()
    assert place.details(job)["JobState"] == "COMPLETED", log
    assert Path("lightning_logs/on_four/results.json").is_file()
    assert "sync_dist" not in log
    assert "auto-requeueing" not in log


DRIVER = """
import shutil, sys, time
from datetime import timedelta
from pathlib import Path

import torch.distributed as distributed

from salm_lightning.data import arrays, medmnist, sums
from salm_lightning.main import main
from salm_lightning.runs import generation

write, together = generation.write_release, generation._on_rank_zero
unpack, sum_up = arrays._unpack_member, sums._sum_up


def note(what):
    with Path("done").open("a") as stream:
        stream.write(what + "\\n")


def download(self):
    note("download")
    shutil.copy("data/pathmnist.npz", self.source_path)
    time.sleep(3)


def summed(path, size):
    if "elsewhere" in str(path):
        note("sum")
        time.sleep(3)  # as a file of gigabytes takes; the sums of one that has just changed are not kept
    return sum_up(path, size)


def unpack_member(archive, name, folder):
    note("unpack")
    unpack(archive, name, folder)


def write_late(*arguments):
    time.sleep(8)
    write(*arguments)


def on_rank_zero(trainer, work):
    if work.__name__ == "write":
        note("limited")
        distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=4), distributed.group.WORLD)
    together(trainer, work)


medmnist.MedMNISTDataModule._download = download
arrays._unpack_member, sums._sum_up = unpack_member, summed
generation.write_release, generation._on_rank_zero = write_late, on_rank_zero
sys.exit(main(sys.argv[1:]))
"""


def test_one_rank_fetches_the_data_and_the_others_wait_for_as_long_as_a_release_takes(place: Slurm) -> None:
    Path("driver.py").write_text(DRIVER)
    Path("elsewhere").mkdir()
    options = "fit --config method/random.yaml --config dataset/pathmnist.yaml --config trainer/slurm.yaml --run once"
    here = f"--trainer.num_nodes 2 --trainer.devices 1 --data.root elsewhere --data.resident mapped {SMALL}"
    Path("script.sh").write_text(f"#!/bin/bash\nsource .venv/bin/activate\nsrun python driver.py {options} {here}\n")
    job = place.submit(*TWO, "--nodes=2", "--ntasks-per-node=1", "--gres=gpu:1", "--output=log", "script.sh")
    wait(lambda: job not in place.jobs(), "the run's end")
    log = Path("log").read_text()
    assert place.details(job)["JobState"] == "COMPLETED", log
    assert sorted(Path("done").read_text().split()) == ["download", "limited", "limited", "sum", *3 * ["unpack"]]
