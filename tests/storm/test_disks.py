"""Disks that fill, folders that vanish or may no longer be written under a running command: one line, and the same command goes on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import strikes
from processes import combine
from strikes import COMMANDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]
JOBS = ("sweep", "reproduce")
"""Commands whose work is done by others, whose errors are in their logs and in the table of results."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 60 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", folder], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_fills_at_any_change(name: str, repetitions: int, disk: Path, tmp_path: Path) -> None:
    command, ballast = COMMANDS[name], disk / "ballast"

    def fill(kind: str, path: Path) -> None:
        with ballast.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, shutil.disk_usage(disk).free)

    made = strikes.changes(command, tmp_path / "uninterrupted")
    expected = strikes.content(tmp_path / "uninterrupted")
    prepared = command.prepare(tmp_path / "prepared")
    faults, lines = [], 0
    struck = strikes.spread(len(made), repetitions)
    for count in struck:
        folder = strikes.copy(prepared, disk / "run")
        code = strikes.run(folder, command.line, strikes.strike_at(folder, count, fill))
        where = f"{name}: full before change {count} of {len(made)} ({made[count - 1]}): "
        try:
            said = strikes.errors(folder)
            lines += len(said)
            assert (code, len(said)) in {(0, 0), (2, 1), *(((1, 0),) if name in JOBS else ())}, strikes.said(folder)
            for line in said:
                assert re.search(r"No space left on device: ['\"].+['\"]\. What was finished before is kept: make room", line), (
                    line
                )
            assert not [path for path in folder.rglob("*.tmp") if code]
            ballast.unlink(missing_ok=True)
            assert command.repeat(folder) == 0, strikes.said(folder)
            assert strikes.difference(strikes.content(folder), expected) == []
        except AssertionError as error:
            faults.append(where + str(error)[:1500])
            print(faults[-1], flush=True)
        ballast.unlink(missing_ok=True)
    print(f"{name}: {len(struck)} times full, {lines} errors, {len(faults)} faults", flush=True)
    assert not faults, "\n\n".join(faults)


def vanish(kind: str, path: Path) -> None:
    """Delete the folder of the results."""
    for name in ("out", "lightning_logs"):
        shutil.rmtree(name, ignore_errors=True)


def forbid(kind: str, path: Path) -> None:
    """Let nobody write into the folder of the results."""
    for name in ("out", "lightning_logs"):
        for place, _, _ in os.walk(name):
            Path(place).chmod(0o555)


_SAID = {
    "vanish": re.compile(
        r"was deleted or moved while this was at work in it|No such file or directory: |is not a protected dataset"
    ),
    "forbid": re.compile(r"Permission denied: '|cannot be made: .+ is not writable"),
}


@pytest.mark.parametrize("strike", [vanish, forbid])
@pytest.mark.parametrize("name", ["protect", "protect-folder", "fit", "fit-victim", "classwise", "audit", "quality"])
def test_a_folder_that_is_taken_away(name: str, strike: strikes.Strike, repetitions: int, tmp_path: Path) -> None:
    if strike is forbid and os.geteuid():
        pytest.skip("as root, who can take it back")
    command = COMMANDS[name]
    made = strikes.changes(command, tmp_path / "uninterrupted")
    expected = strikes.content(tmp_path / "uninterrupted")
    prepared = command.prepare(tmp_path / "prepared")
    faults, ends = [], {}
    struck = strikes.spread(len(made), repetitions)
    for count in struck:
        folder = strikes.copy(prepared, tmp_path / "run")
        struck_once = strikes.strike_at(folder, count, strike)
        code = strikes.run(folder, command.line, combine(lambda _: strikes.deprive(), struck_once))
        ends[code] = ends.get(code, 0) + 1
        where = f"{name}: {strike.__name__} before change {count} of {len(made)} ({made[count - 1]}): "
        try:
            lines = strikes.errors(folder)
            assert (code, len(lines)) in {(0, 0), (2, 1)}, f"exit {code}: {strikes.said(folder)}"
            assert all(_SAID[strike.__name__].search(line) for line in lines), lines
            assert code or strike is forbid or strikes.difference(strikes.content(folder), expected) == [], "exit 0"
            for place, _, _ in os.walk(folder):
                Path(place).chmod(0o755)
            if strike is forbid:
                assert command.repeat(folder) == 0, strikes.said(folder)
                assert strikes.difference(strikes.content(folder), expected) == []
        except AssertionError as error:
            faults.append(where + str(error)[:1500])
            print(faults[-1], flush=True)
    print(f"{name}: {len(struck)} times {strike.__name__}, ends {ends}, {len(faults)} faults", flush=True)
    assert not faults, "\n\n".join(faults)
