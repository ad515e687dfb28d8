"""Starting up: no command loads what it does not need, and the overview says all that there is without importing it."""

from __future__ import annotations

import inspect
import json
import shlex
import subprocess
import sys

import pytest

from salm_lightning import __version__, commands
from salm_lightning.main import main

HEAVY = ("torch", "lightning", "torchvision", "torchmetrics", "medmnist", "pandas", "sklearn", "skimage", "scipy", "matplotlib")


def _loaded_by(code: str) -> list[str]:
    """Return the heavy libraries that a program has loaded at its end."""
    last = f"\nimport json, sys\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code + last], capture_output=True, text=True, timeout=120, check=True)
    loaded: list[str] = json.loads(done.stderr.splitlines()[-1])
    return loaded


def _command(arguments: str) -> str:
    """Return a program that runs a command, which must not end by an error."""
    call = f"from salm_lightning.main import main\ntry:\n    main({shlex.split(arguments)!r})"
    return f"{call}\nexcept SystemExit as end:\n    assert not end.code"


@pytest.mark.parametrize("code", ["import salm_lightning", _command("--help"), _command("--version")])
def test_the_package_and_the_overview_load_nothing_heavy(code: str) -> None:
    assert _loaded_by(code) == []


def test_the_test_sees_what_is_loaded() -> None:
    assert "torch" in _loaded_by("import salm_lightning\nsalm_lightning.VictimModule")


@pytest.mark.parametrize("name", [name for name in commands.COMMANDS if not commands.of_trainer(name) and name != "audit"])
def test_help_and_a_mistake_load_no_torch(name: str) -> None:
    assert _loaded_by(_command(f"{name} --help")) == []
    assert _loaded_by(_command(f"{name} somewhere --no_such_option 3")) == []


def test_the_overview_says_what_the_commands_say() -> None:
    for name, command in commands.COMMANDS.items():
        if not commands.of_trainer(name):
            assert inspect.getdoc(commands.function_of(name)).splitlines()[0] == command.help, name  # type: ignore[union-attr]
            assert shlex.split(command.example)[:2] == ["salm-cli", name]


def test_the_overview_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "] == list(commands.COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"salm-cli {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "way_out"),
    [
        ("--config victim.yaml fit", "salm-cli fit --config victim.yaml"),
        ("--overwrite protect synthetic", "salm-cli protect --overwrite synthetic"),
        ("--config victim.yaml", "salm-cli COMMAND --config victim.yaml"),
    ],
)
def test_a_command_in_the_wrong_place_is_told_where_it_belongs(
    arguments: str, way_out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(shlex.split(arguments)) == 2
    assert capsys.readouterr().err.endswith(f"the command comes first: {way_out}\n")


def test_hyphens_in_options(capsys: pytest.CaptureFixture[str]) -> None:
    """In the name alone: a value keeps its own."""
    printed = []
    for typed in (
        "--victim_steps 7 --out=a-b --method.step_size 2 --proof false",
        "--victim-steps 7 --out=a-b --method.step-size=2 --proof no",
    ):
        with pytest.raises(SystemExit):
            main(shlex.split(f"protect synthetic {typed} --print_config"))
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "out: a-b" in printed[0]
    assert main(shlex.split("protect synthetic --victim-stepps 7")) == 2
    assert "--victim-stepps is not an option; did you mean 'victim_steps'?" in capsys.readouterr().err
