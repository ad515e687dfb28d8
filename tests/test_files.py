"""Folders that one program at a time works in, what killed programs leave there, and links that somebody else may have laid."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from fakes import write_fake_npz

from salm_lightning import files
from salm_lightning.data import MEDMNIST
from salm_lightning.errors import OutputExistsError, SalmError
from salm_lightning.files import LOCK, beside, exchange, locked, replacing, write_text
from salm_lightning.main import main


def _gone() -> int:
    """Return the number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_processes_that_share_a_cache_take_turns(tmp_path: Path) -> None:
    """Also while others have just removed the lock: each makes a file that nobody else may have made."""
    busy, children = tmp_path / "busy", []
    for _ in range(4):
        if not (child := os.fork()):
            try:
                for _ in range(100):
                    with files.one_at_a_time(tmp_path / "archive"):
                        busy.touch(exist_ok=False)
                        busy.unlink()
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert not list(files.cache_root().glob(".*.lock"))


def test_a_folder_is_locked_once_and_the_second_hears_by_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    (tmp_path / LOCK).write_text("process 1 of somebody with a long name, since long ago" * 9)
    with locked(tmp_path, "out=here"), pytest.raises(OutputExistsError) as error, locked(tmp_path, "out=here"):
        pass
    assert re.fullmatch(
        rf"out=here is in use by process {os.getpid()} \(.+, job 4711\) since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d, or by what that "
        "has left running; wait for it, or name another folder.",
        str(error.value),
    )
    with locked(tmp_path, "out=here"):
        pass


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("years of work")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).symlink_to(tmp_path / "mine.txt")
    with pytest.raises(OutputExistsError, match=r"out/\.lock is a link"), locked(tmp_path / "out", "out=out"):
        pass
    assert (tmp_path / "mine.txt").read_text() == "years of work"


def test_what_killed_programs_left_is_removed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def left_by(process: int, name: str) -> Path:
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: process)
            return beside(tmp_path / name)

    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").touch()
    dead, alive = _gone(), os.getppid()
    for process in (dead, alive):
        left_by(process, "folder").mkdir()
        left_by(process, "inner/deeper.png").parent.mkdir(parents=True, exist_ok=True)
        left_by(process, "inner/deeper.png").touch()
    left_by(dead, "link").symlink_to("outside", target_is_directory=True)
    monkeypatch.setattr(files, "_HOST", "elsewhere")
    left_by(dead, "of-another-machine").touch()
    monkeypatch.undo()
    (tmp_path / ".mine.tmp").touch()
    with locked(tmp_path, "out=here"):
        found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert {name for name in found if f".{dead}." in name} == {f".of-another-machine.elsewhere.{dead}.tmp"}
    assert {name for name in found if f".{alive}." in name} == {
        left_by(alive, name).relative_to(tmp_path).as_posix() for name in ("folder", "inner/deeper.png")
    }
    assert found >= {".mine.tmp", "outside/kept"}


@pytest.mark.parametrize("again", [False, True], ids=["gone", "made anew"])
def test_a_folder_that_is_taken_away_is_not_made_again(tmp_path: Path, again: bool) -> None:
    def work() -> None:
        with locked(tmp_path / "out", "out=here"):
            write_text(tmp_path / "out/first.txt", "1")
            (tmp_path / "out").rename(tmp_path / "moved")
            if again:
                (tmp_path / "out").mkdir()
                (tmp_path / "out" / LOCK).touch()
            write_text(tmp_path / "out/second.txt", "2")

    with pytest.raises(SalmError, match="out=here was deleted or moved while this was at work"):
        work()
    assert (tmp_path / "out").exists() == again
    assert not (tmp_path / "out/second.txt").exists()
    with pytest.raises(SalmError, match="out=here was deleted"), locked(tmp_path / "moved", "out=here"):
        shutil.rmtree(tmp_path / "moved")
    write_text(tmp_path / "out/third.txt", "nobody holds it")


def test_names_are_exchanged_in_one_step(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").write_text("new")
    if not exchange(tmp_path / "new", tmp_path / "old"):
        pytest.skip("this system cannot")
    assert (tmp_path / "old").read_text() == "new"
    assert (tmp_path / "new").is_dir()
    assert not exchange(tmp_path / "new", tmp_path / "missing")


SHORT = "--width 0.125 --steps 2 --batch_size 8 --accelerator cpu --proof false"
FIT = (
    "fit --model NoiseGeneratorModule --model.method Random --data NpzDataModule --data.path mine.npz --model.width 0.125 "
    "--trainer.accelerator cpu --trainer.max_steps 2"
)


@pytest.mark.parametrize(
    ("command", "folder", "named"),
    [
        (f"protect mine.npz --out out --method Random {SHORT}", "out", "out=out"),
        (f"protect mine.npz --out out --method Random {SHORT} --overwrite true", "out", "out=out"),
        ("classwise mine.npz synthetic --out out --training.accelerator cpu --overwrite true", "out", "out=out"),
        (f"{FIT} --run r --overwrite true", "lightning_logs/r", "run=r"),
        (f"{FIT} --run r --release rel/p", "rel/.p.parts", "release=rel/p"),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_two_at_once(command: str, folder: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_fake_npz(Path("mine.npz"), MEDMNIST["breastmnist"], (20, 8, 10))
    place = Path(folder)
    place.mkdir(parents=True)
    (place / "config.yaml").write_text("of the one that is at work\n")
    before = {path.as_posix() for path in place.rglob("*")}
    with locked(place, "out=here"):
        assert main(shlex.split(command)) == 2
        shown = capsys.readouterr().err
        assert f"salm-cli: error: {named} is in use by process {os.getpid()} (" in shown
        assert before | {(place / LOCK).as_posix()} == {path.as_posix() for path in place.rglob("*")}


@pytest.mark.usefixtures("workplace")
def test_a_finished_fit_repeated_shows_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    write_fake_npz(Path("mine.npz"), MEDMNIST["breastmnist"], (20, 8, 10))
    command = FIT.replace("Random", "SALM")
    assert main(shlex.split(f"{command} --run r")) == 0
    summary = capsys.readouterr().out.partition("Protected dataset:")[2]
    archive = Path("lightning_logs/r/protected/mine.npz")
    made = archive.stat().st_ino
    assert main(shlex.split(f"{command} --ckpt_path lightning_logs/r")) == 0
    assert capsys.readouterr().out.partition("Protected dataset:")[2] == summary
    assert archive.stat().st_ino == made
    archive.write_bytes(archive.read_bytes()[:-1])
    assert main(shlex.split(f"{command} --ckpt_path lightning_logs/r")) == 2, "a damaged release is not taken for a finished one"
    assert main(shlex.split(f"{command} --ckpt_path lightning_logs/r --overwrite true")) == 0
    assert main(["verify", str(archive.parent)]) == 0


def test_a_temporary_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    beside(tmp_path / "a.txt").symlink_to("theirs")
    write_text(tmp_path / "a.txt", "ours")
    assert ((tmp_path / "theirs").read_text(), (tmp_path / "a.txt").read_text()) == ("theirs", "ours")


def test_a_lock_refuses_links_that_lead_out(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "inside").mkdir(parents=True)
    (folder / "inside/link").symlink_to("../inside")
    with locked(folder, "out=out"):
        pass
    (folder / "inside/other").symlink_to("../../outside")
    with pytest.raises(OutputExistsError, match="inside/other is a link that leads out"), locked(folder, "out=out"):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(
    "write",
    [
        lambda stream: torch.save(torch.zeros(10**6), stream),
        lambda stream: np.save(stream, np.zeros(10**6)),
        lambda stream: stream.write(bytes(10**6)),
    ],
    ids=["torch", "numpy", "bytes"],
)
def test_a_full_disk_names_the_file_whatever_writes(tmp_path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Torch makes a RuntimeError of it, and numpy an OSError without a number."""

    def fill() -> None:
        with replacing(tmp_path / "a.bin") as temporary:
            temporary.symlink_to("/dev/full")
            with temporary.open("wb") as stream:
                write(stream)

    with pytest.raises(OSError, match="No space left on device") as error:
        fill()
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "a.bin"))
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("workplace")
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_fake_npz(Path("mine.npz"), MEDMNIST["breastmnist"], (20, 8, 10))

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(files, "flush", full)
        assert main(shlex.split(f"protect mine.npz --out out {SHORT}")) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "rror" in line)
    assert line.startswith(
        "salm-cli: error: [Errno 28] No space left on device: 'out/protect.json'. What was finished before is kept"
    )
    assert main(shlex.split(f"protect mine.npz --out out {SHORT}")) == 0


@pytest.fixture
def small_disk(workplace: None, tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """Work on a disk of 20 MB of its own; what it yields leaves so many bytes free."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")

    def leave(size: int) -> None:
        Path("ballast").unlink(missing_ok=True)
        with Path("ballast").open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, shutil.disk_usage(disk).free - size)

    os.chdir(disk)
    yield leave
    os.chdir(tmp_path)
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("command", "again"),
    [
        (f"protect ../mine.npz --out lightning_logs/r {SHORT} --batch_size 64", ""),
        (
            FIT.replace("Random", "SALM").replace("mine.npz", "../mine.npz")
            + " --run r --data.batch_size 64 --model.pgd_steps 1",
            "--overwrite true",
        ),
    ],
    ids=["protect", "fit"],
)
def test_a_disk_that_fills_at_any_time(
    command: str, again: str, small_disk: Callable[[int], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """Minutes: wherever it is full, there is one line and nothing half written, and the same command makes the same release later."""
    write_fake_npz(Path("../mine.npz"), MEDMNIST["bloodmnist"], (600, 40, 40))
    archive = Path("lightning_logs/r/protected/mine.npz")
    assert main(shlex.split(command)) == 0
    whole, needed = archive.read_bytes(), sum(path.stat().st_size for path in Path("lightning_logs").rglob("*") if path.is_file())
    for tenth in range(0, 10, 3):
        shutil.rmtree("lightning_logs")
        small_disk(needed * tenth // 10)
        capfd.readouterr()
        assert main(shlex.split(command)) == 2
        shown = capfd.readouterr().err
        assert "Traceback" not in shown
        assert (
            len(re.findall(r"salm-cli: error: .*No space left on device: .+\. What was finished before is kept", shown)) == 1
        ), shown
        assert not list(Path.cwd().rglob("*.tmp"))
        Path("ballast").unlink()
        assert main(shlex.split(f"{command} {again}")) == 0
        assert archive.read_bytes() == whole
