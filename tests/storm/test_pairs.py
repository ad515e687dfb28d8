"""Two commands in one folder, the second at any moment of the first: each ends well or is refused in a line, and nothing is mixed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import strikes
from strikes import COMMANDS, Command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

OTHER = {
    "protect": "--seed 1",
    "protect-over": "--seed 2",
    "protect-folder": "--seed 1",
    "fit": "--seed_everything 1",
    "fit-victim": "--seed_everything 1",
    "classwise": "--training.seed 1",
    "audit": "--seeds 1",
    "quality": "--seed 1 --max_images 10",
    "report": "--audit out/other --overwrite true",
    "sweep": "--generator.trainer.max_steps 2",
    "reproduce": "--seeds 1",
}
"""Options that make another result."""


def alone(command: Command, prepared: Path, folder: Path, *lines: str) -> dict[str, str]:
    """Return what is there after commands one after the other."""
    strikes.copy(prepared, folder)
    for line in lines:
        strikes.run(folder, line)
    return strikes.content(folder)


@pytest.mark.parametrize("same", [True, False], ids=["same", "other"])
@pytest.mark.parametrize("name", COMMANDS)
def test_two_at_any_moment(name: str, same: bool, repetitions: int, tmp_path: Path) -> None:
    command = COMMANDS[name]
    made = strikes.changes(command, tmp_path / "uninterrupted")
    prepared = command.prepare(tmp_path / "prepared")
    if name == "report":
        assert strikes.run(prepared, f"{strikes.AUDIT} --out out/other") == 0
    first, second = command.line, command.line if same else f"{command.line} {OTHER[name]}"
    orders = [(first,), (second,), (first, second), (second, first)]
    allowed: Mapping[tuple[str, ...], dict[str, str]] = {
        order: alone(command, prepared, tmp_path / "alone", *order) for order in orders[: 1 if same else 4]
    }
    faults: list[str] = []
    struck = strikes.spread(len(made), repetitions)
    ends: dict[tuple[int, int], int] = {}
    for count in struck:
        folder = strikes.copy(prepared, tmp_path / "run")
        codes = strikes.meet(folder, first, count, second)
        ends[codes] = ends.get(codes, 0) + 1
        where = f"{name}: a second one before change {count} of {len(made)} ({made[count - 1]}), exit codes {codes}: "
        try:
            assert 0 in codes
            for code, log in zip(codes, ("-first", ""), strict=True):
                lines = strikes.errors(folder, log)
                assert (code, len(lines)) in {(0, 0), (2, 1)}, strikes.said(folder, log)
            strikes.whole(folder / command.release)
            found = strikes.content(folder)
            assert min((strikes.difference(found, expected) for expected in allowed.values()), key=len) == []
        except AssertionError as error:
            faults.append(where + str(error)[:1500])
            print(faults[-1], flush=True)
    print(f"{name}: {len(struck)} meetings, ends {ends}, {len(faults)} faults", flush=True)
    assert not faults, "\n\n".join(faults)
