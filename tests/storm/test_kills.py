"""Every command is killed at every change that it makes, and repeated: the same result, nothing left, releases whole at every moment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import strikes
from strikes import COMMANDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

_CHANGES_OF_A_FIT = 60


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_change(name: str, repetitions: int, tmp_path: Path) -> None:
    command = COMMANDS[name]
    made = strikes.changes(command, tmp_path / "uninterrupted")
    expected, final = strikes.content(tmp_path / "uninterrupted"), strikes.whole(tmp_path / "uninterrupted" / command.release)
    prepared = command.prepare(tmp_path / "prepared")
    earlier = strikes.whole(prepared / command.release)
    faults: list[str] = []
    struck = strikes.spread(len(made), repetitions)
    for count in struck:
        folder = strikes.copy(prepared, tmp_path / "run")
        code = strikes.run(folder, command.line, strikes.strike_at(folder, count, strikes.kill))
        where = f"{name}: killed before change {count} of {len(made)} ({made[count - 1]}, or what came in its place): "
        try:
            assert code in (-9, 0), f"exit {code}: {strikes.said(folder)}"
            assert strikes.whole(folder / command.release) in (earlier, final), "another release"
            assert command.repeat(folder) == 0, strikes.said(folder)
            assert strikes.whole(folder / command.release) == final, "another release in the end"
            assert strikes.difference(strikes.content(folder), expected) == []
        except AssertionError as error:
            faults.append(where + str(error)[:1500])
            print(faults[-1], flush=True)
    print(f"{name}: {len(struck)} kills at {len(made)} changes, {len(faults)} faults", flush=True)
    assert not faults, "\n\n".join(faults)


def test_fits_of_a_sweep_killed_at_any_change(repetitions: int, tmp_path: Path) -> None:
    command = COMMANDS["sweep"]
    strikes.changes(command, tmp_path / "uninterrupted")
    expected = strikes.content(tmp_path / "uninterrupted")
    prepared, here = command.prepare(tmp_path / "prepared"), Path(__file__).parent
    ends: dict[int, int] = {}
    for count in strikes.spread(_CHANGES_OF_A_FIT, repetitions):
        folder = strikes.copy(prepared, tmp_path / "run")

        def be_killed(rank: int, folder: Path = folder, count: int = count) -> None:
            paths = os.pathsep.join(map(str, (strikes.ROOT, here / "fits", here, here.parent)))
            os.environ |= {"PYTHONPATH": paths, "STORM_KILL": str(count), "STORM_PLACE": str(folder)}

        code = strikes.run(folder, command.line, be_killed)
        ends[code] = ends.get(code, 0) + 1
        assert not strikes.errors(folder)
        assert command.repeat(folder) == 0, (count, strikes.said(folder))
        assert strikes.difference(strikes.content(folder), expected) == [], count
    print(f"fits of a sweep: {sum(ends.values())} kills, ends {ends}", flush=True)
    assert ends.get(1), "none was killed"
