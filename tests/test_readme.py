"""The README's commands, in their order, on tiny fake files and with short runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import write_fake_npz
from pages import only_read
from PIL import Image

from salm_lightning.commands import function_of
from salm_lightning.data import MEDMNIST
from salm_lightning.main import main
from salm_lightning.release import Manifest, verify_release

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = {
    "protect": ["--steps", "2", "--victim_steps", "2", "--width", "0.0625", "--accelerator", "cpu"],
    "fit": [
        "--trainer.max_steps",
        "2",
        "--model.width",
        "0.0625",
        "--trainer.accelerator",
        "cpu",
        "--trainer.precision",
        "32-true",
    ],
    "sweep": ["--dry_run", "true", "--generator.model.width", "0.0625", "--victim.model.width", "0.0625"],
    "verify": [],
    "audit": [
        "--countermeasures",
        "none",
        "--victim_steps",
        "2",
        "--width",
        "0.0625",
        "--quality",
        "false",
        "--accelerator",
        "cpu",
    ],
    "inspect": [],
    "report": [],
    "quality": [],
}


def commands() -> list[list[str]]:
    """Return the arguments of every ``salm-cli`` line in the README's shell blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("salm-cli ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with MedMNIST's default folder, and a folder to work in that holds a user's own file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SALM_DATA_ROOT", raising=False)
    sizes = (24, 10, 10)
    for name in ("pathmnist", "bloodmnist", "breastmnist"):
        write_fake_npz(tmp_path / ".medmnist" / f"{name}.npz", MEDMNIST[name], sizes)
    folder = tmp_path / "work"
    folder.mkdir()
    write_fake_npz(folder / "my_images.npz", MEDMNIST["breastmnist"], sizes)
    for number in range(12):
        path = folder / "my_scans" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 20), np.uint8)).save(path)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.timeout(900)
def test_every_command_runs(workplace: Path) -> None:
    """Each command of the README succeeds, and the release that it promises stands there."""
    ran = [command for command in commands() if "quickstart.yaml" not in " ".join(command)]
    assert {command[0] for command in ran} == {"inspect", "protect", "verify", "audit", "quality", "fit", "sweep", "report"}
    for command in ran:
        arguments = [str(Path(part).expanduser()) if part.startswith("~") else part for part in command]
        if "--ckpt_path" in command:
            # The command before it has finished the run, which is refused; leave it as if killed before the release stood.
            shutil.rmtree(Path(command[command.index("--ckpt_path") + 1]) / "protected")
        assert main([*arguments, *SHORT[command[0]]]) == 0, " ".join(command)
    assert (workplace / "lightning_logs/pathmnist-salm/protected/pathmnist.npz").is_file()
    assert (workplace / "lightning_logs/my_images-salm/protected/manifest.json").is_file()
    assert (workplace / "lightning_logs/salm_pathmnist/protected/datamodule.yaml").is_file()
    assert (workplace / "result/protected/a/0.png").is_file()


def test_make_targets_exist() -> None:
    """The README's two commands are targets of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE))
    assert named == {"demo", "test"}
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


@pytest.mark.filterwarnings("ignore:.*MD5.*")
def test_the_python_example_makes_a_release(workplace: Path) -> None:
    """The README's own code, but for the length and the width."""
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    for given, short in (("max_steps=5000", "max_steps=2, accelerator='cpu'"), ("data.task)", "data.task, width=0.0625)")):
        assert code.count(given) == 1
        code = code.replace(given, short)
    names: dict[str, Any] = {}
    exec(code, names)
    manifest = Manifest.read(names["release"])
    assert (manifest.dataset["name"], manifest.settings["method"]["name"]) == ("bloodmnist", "salm")
    assert manifest.settings["method"]["percent"] == 10
    assert manifest.settings["training"]["steps"] == 2
    assert all(check.ok for check in verify_release(names["release"], workplace.parent / ".medmnist/bloodmnist.npz"))


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_installs_and_runs_what_the_readme_promises(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is run: make says what it would do, and the program reads the arguments that it would get."""
    venv = workplace / "venv"  # one that is not there, so that it would be made
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # these tests may run under make
    command = ["make", "-n", "demo", "test", f"VENV={venv}", "PYTHON=python3"]
    said = subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, check=True)
    lines = [shlex.split(line) for line in said.stdout.splitlines()]
    (install,), (demo,) = (
        [shlex.split(line)[1:] for line in README.splitlines() if line.startswith(start)]
        for start in ("python -m pip install", "salm-cli protect --config")
    )
    assert "test" in re.findall(r"\w+", install[-1]), "the extra with pytest"
    assert [
        line for line in lines if line[0] in ("python3", f"{venv}/bin/python", f"{venv}/bin/salm-cli") and line[1] != "-c"
    ] == [
        ["python3", "-m", "venv", str(venv)],
        [f"{venv}/bin/python", *install],
        [f"{venv}/bin/salm-cli", *demo, "--overwrite", "true"],  # which lets make demo be given twice
        [f"{venv}/bin/python", "-m", "pytest"],
    ]
    taken: list[dict[str, Any]] = []
    protect = only_read(function_of("protect"), taken)
    monkeypatch.setattr("salm_lightning.commands.function_of", lambda _: protect)
    assert main([*demo, "--overwrite", "true"]) == 0
    assert (taken[0]["data"], taken[0]["proof"], taken[0]["overwrite"]) == ("synthetic", True, True)
