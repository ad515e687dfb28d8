from __future__ import annotations

import json
from pathlib import Path

import pytest

from salm_lightning.errors import OutputExistsError
from salm_lightning.runs.record import DONE, FAILED, Run, read_run, resume

IDENTITY = {"method": {"name": "salm", "percent": 10}, "steps": 5, "sizes": (1, 2)}


def test_a_run_begins_ends_and_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "run" / "run.json"
    run = resume(path, IDENTITY)
    assert (run.status, run.seconds, path.exists()) == ("open", 0.0, False)
    run.ended(FAILED, 2.0, why="it rained").write(path)
    again = resume(path, IDENTITY)
    assert (again.status, again.why, again.seconds) == ("failed", "it rained", 2.0)
    again.ended(DONE, 3.0, {"acc": 0.5}).write(path)
    done = resume(path, IDENTITY)
    assert done.is_done
    assert (done.seconds, done.results, done.why) == (5.0, {"acc": 0.5}, "")


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    resume(path, IDENTITY).write(path)
    other = {**IDENTITY, "method": {"name": "salm", "percent": 30}, "steps": 6}
    with pytest.raises(OutputExistsError) as refusal:
        resume(path, other, "out")
    assert f"out={tmp_path}" in str(refusal.value)
    assert "method.percent is 10 there and 30 here; steps is 5 there and 6 here" in str(refusal.value)
    assert "--overwrite true" in str(refusal.value)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"status": "done"}', '{"identity": {}, "unknown": 1}'])
def test_a_file_that_is_no_record_is_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content, encoding="utf-8")
    assert read_run(path) is None
    assert read_run(tmp_path / "missing.json") is None


def test_the_key_depends_on_the_settings_alone() -> None:
    run = Run({"a": 1, "b": 2})
    assert run.key == Run({"b": 2, "a": 1}, DONE, "", 3.0, {"acc": 1.0}).key != Run({"a": 1, "b": 3}).key
    assert json.loads(json.dumps(run.identity)) == run.identity
