"""Starting up: no command loads what it does not need, and the overview says all that there is without importing it."""

from __future__ import annotations

import inspect
import io
import json
import os
import pwd
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks.progress.rich_progress import CustomProgress
from rich.console import Console
from rich.progress import TextColumn

from salm_lightning import __version__, commands
from salm_lightning.callbacks import RunProgressBar
from salm_lightning.main import main

HEAVY = ("torch", "lightning", "torchvision", "torchmetrics", "medmnist", "pandas", "sklearn", "skimage", "scipy", "matplotlib")

PLAIN = [name for name in commands.COMMANDS if name not in commands.TRAINERS]


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


@pytest.mark.parametrize("name", PLAIN)
def test_help_and_a_mistake_load_no_torch(name: str) -> None:
    assert _loaded_by(_command(f"{name} --help")) == []
    assert _loaded_by(_command(f"{name} somewhere --no_such_option 3")) == []


def test_the_overview_says_what_the_commands_say() -> None:
    for name in PLAIN:
        assert inspect.getdoc(commands.function_of(name)).splitlines()[0] == commands.COMMANDS[name].help, name  # type: ignore[union-attr]


def test_the_overview_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "] == list(commands.COMMANDS)


@pytest.mark.parametrize("name", [*PLAIN, "fit"])
def test_the_help_of_a_command_fits_the_terminal(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([name, "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"salm-cli {__version__}\n"


def test_a_fit_says_nothing_that_tells_nobody_anything(tmp_path: Path) -> None:
    data = "--data synthetic --data.size 16 --data.train_size 20 --data.val_size 8 --data.test_size 10"
    steps = "--model.width 0.125 --trainer.accelerator cpu --trainer.max_steps 1 --trainer.val_check_interval 1"
    command = [
        sys.executable,
        "-m",
        "salm_lightning",
        *shlex.split(f"fit --model NoiseGeneratorModule --model.method em {data} {steps}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True, cwd=tmp_path)
    shown = done.stdout + done.stderr
    assert "Protected dataset:" in shown
    noise = (
        "GPU available",
        "val_check_interval",
        "`Trainer",
        "checkpoint path",
        "Loaded model weights",
        "Tip",
        "Epoch",
        "FLOPs",
        "writable",
    )
    assert [text for text in noise if text in shown] == [], shown


@pytest.mark.parametrize(("width", "columns"), [(80, 4), (160, 5)])
def test_progress_stays_on_one_line(width: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    console = Console(width=width, file=io.StringIO(), force_terminal=True)
    shown = RunProgressBar().configure_columns(Trainer(logger=False, enable_checkpointing=False, accelerator="cpu"))
    metrics = TextColumn("train/source_loss: 0.693 val/clean_acc: 0.731")
    bar = CustomProgress(*shown, metrics, console=console)
    bar.add_task("Training", total=12345, completed=12344, visible=True)
    assert len(shown) == columns
    assert len(console.render_lines(bar.get_renderable())) == 1


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


def test_a_fit_loads_no_library_of_other_commands() -> None:
    loaded = _loaded_by("import salm_lightning.cli.fit")
    assert "torch" in loaded
    assert not {"medmnist", "pandas", "sklearn", "skimage"} & set(loaded)


@pytest.mark.parametrize("arguments", [["--version"], ["verify", "--help"], ["verify", "nowhere"]])
def test_a_reader_that_has_seen_enough_is_no_error(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "salm_lightning", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode in (0, 1, 128 + signal.SIGPIPE)  # argparse and Rich end a program by others
    assert said == ""


def test_a_terminal_that_lacks_a_sign_shows_another_one() -> None:
    code = "from salm_lightning.main import main; main(['--version']); print('67.0 ± 0.4')"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert process.stdout.endswith(b"67.0 ? 0.4\n")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("SALM_DATA_ROOT", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    assert main(["verify", "nowhere", "--source", "~/tiny.npz"]) == 2
    assert "~/tiny.npz: Could not determine home directory. Set HOME to a folder" in capsys.readouterr().err
