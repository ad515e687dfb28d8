"""A link in the place of every path that a command writes: nothing is written, changed or deleted where it leads."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import strikes
from strikes import COMMANDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]


@pytest.mark.parametrize("name", COMMANDS)
def test_links_lead_nowhere(name: str, repetitions: int, tmp_path: Path) -> None:
    command = COMMANDS[name]
    made = strikes.changes(command, tmp_path / "uninterrupted")
    prepared = command.prepare(tmp_path / "prepared")
    written = [line.split(" ", 1)[1] for line in made if not line.startswith("exchange")]
    own = re.compile(r"(out|lightning_logs)/.+")  # cache and state are the user's
    temporary = re.compile(r"\.tmp\b|tfevents|version_")
    paths = sorted({path for path in written if own.fullmatch(path) and not temporary.search(path)})
    assert paths
    mine = tmp_path / "mine"
    faults: list[str] = []
    ends: dict[int, int] = {}
    planted = 0
    for place in strikes.spread(len(paths), repetitions):
        path = paths[place - 1]
        for target in ("", "years of work.txt", "nothing"):
            shutil.rmtree(mine, ignore_errors=True)
            (mine / "inner").mkdir(parents=True)
            (mine / "inner" / "results.json").write_text("{}")
            (mine / "years of work.txt").write_text("mine")
            before = strikes.content(mine)
            folder = strikes.copy(prepared, tmp_path / "run")
            link = folder / path
            if link.is_dir() or not link.parent.resolve().is_relative_to(folder):
                continue
            link.unlink(missing_ok=True)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(mine / target)
            planted += 1
            code = strikes.run(folder, command.line)
            ends[code] = ends.get(code, 0) + 1
            try:
                assert (code, len(strikes.errors(folder))) in {(0, 0), (2, 1)}, strikes.said(folder)
                assert strikes.difference(strikes.content(mine), before) == []
            except AssertionError as error:
                faults.append(f"{name}: {path} is a link to mine/{target}, exit {code}: {error}"[:1500])
                print(faults[-1], flush=True)
    print(f"{name}: {planted} links in place of {len(paths)} paths, ends {ends}, {len(faults)} faults", flush=True)
    assert not faults, "\n\n".join(faults)
