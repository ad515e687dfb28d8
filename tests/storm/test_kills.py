"""Every command is killed at every change that it makes, and repeated: the same result, nothing left, releases whole at every moment."""

from __future__ import annotations

from pathlib import Path

import pytest
import strikes
from strikes import COMMANDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]


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
