"""The README's commands, in their order, on tiny fake files and with short runs."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from fakes import write_fake_npz

from salm_lightning.cli import main
from salm_lightning.data import MEDMNIST

ROOT = Path(__file__).parent.parent
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
    "sweep": ["--dry_run", "true"],
    "verify": [],
    "audit": ["--treatments", "none", "--steps", "2", "--width", "0.0625", "--quality", "false", "--accelerator", "cpu"],
    "report": [],
    "quality": [],
}


def commands() -> list[list[str]]:
    """Return the arguments of every ``salm-cli`` line in the README's shell blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
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
    monkeypatch.chdir(folder)
    return folder


def test_every_command_runs(workplace: Path) -> None:
    """Each command of the README succeeds, and the release that it promises stands there."""
    ran = [command for command in commands() if "quickstart.yaml" not in " ".join(command)]
    assert {command[0] for command in ran} == {"protect", "verify", "audit", "quality", "fit", "sweep", "report"}
    for command in ran:
        arguments = [str(Path(part).expanduser()) if part.startswith("~") else part for part in command]
        if "--ckpt_path" in command:
            # The command before it has finished the run, which is refused; leave it as if killed before the release stood.
            shutil.rmtree(Path(command[command.index("--ckpt_path") + 1]) / "protected")
        assert main([*arguments, *SHORT[command[0]]]) == 0, " ".join(command)
    assert (workplace / "lightning_logs/pathmnist-salm/protected/pathmnist.npz").is_file()
    assert (workplace / "lightning_logs/my_images-salm/protected/manifest.json").is_file()
    assert (workplace / "lightning_logs/salm_pathmnist/protected/datamodule.yaml").is_file()


def test_make_targets_exist() -> None:
    """The README's two commands are targets of the Makefile."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"^make (\w+)", text, flags=re.MULTILINE))
    assert named == {"demo", "test"}
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
