"""Seals: what was written here is known again, and nothing else is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from salm_lightning.errors import ConfigurationError
from salm_lightning.sealed import read_sealed, write_sealed

VALUES = {"b": (1, 2.5), "a": {3: "x\ud800"}, "undefined": float("nan")}
READ = {"b": [1, 2.5], "a": {"3": "x\ud800"}, "undefined": None}


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own for the key."""
    monkeypatch.setenv("SALM_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def test_what_is_written_here_is_ours_and_what_was_changed_is_not(tmp_path: Path, state: Path) -> None:
    file = tmp_path / "audit.json"
    write_sealed(file, VALUES)
    assert read_sealed(file) == (READ, True)
    assert (state / "key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in state.iterdir()] == ["key"]
    file.rename(tmp_path / "protect.json")
    assert read_sealed(tmp_path / "protect.json") == (READ, False), "of another kind"
    for change in ({"b": [1, 2.6]}, {"seal": ""}, {"seal": "ü\ud800"}, {"seal": None}, {"more": 1}):
        write_sealed(file, VALUES)
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        assert not read_sealed(file)[1], change


@pytest.mark.usefixtures("state")
def test_the_key_decides_and_reading_makes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "audit.json"
    write_sealed(file, VALUES)
    monkeypatch.setenv("SALM_STATE_DIR", str(tmp_path / "other"))
    assert read_sealed(file) == (READ, False)
    assert not (tmp_path / "other").exists()
    write_sealed(tmp_path / "mine.json", VALUES)
    assert read_sealed(file) == (READ, False)
    monkeypatch.delenv("SALM_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    write_sealed(file, VALUES)
    assert (tmp_path / "xdg/salm_lightning/key").is_file()


def test_of_several_programs_at_once_one_makes_the_key(tmp_path: Path, state: Path) -> None:
    code = "import sys; from pathlib import Path; from salm_lightning.sealed import write_sealed; write_sealed(Path(sys.argv[1]), {})"
    files = [tmp_path / f"{number}.json" for number in range(4)]
    for process in [subprocess.Popen([sys.executable, "-c", code, str(file)]) for file in files]:
        assert process.wait() == 0
    assert [read_sealed(file)[1] for file in files] == [True] * 4
    assert [path.name for path in state.iterdir()] == ["key"]


def test_without_a_place_for_the_key_it_says_so(tmp_path: Path, state: Path) -> None:
    state.write_text("a file")
    with pytest.raises(ConfigurationError, match=r"SALM_STATE_DIR=.*state: the key .* cannot be kept there"):
        write_sealed(tmp_path / "audit.json", {})
