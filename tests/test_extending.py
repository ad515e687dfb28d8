"""The worked example of docs/extending.md, taken from the page and run as the page says."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from fakes import write_fake_npz
from processes import Patch, run

from salm_lightning.data import MEDMNIST
from salm_lightning.noise import methods
from salm_lightning.release import Manifest, verify_release

PAGE = (Path(__file__).parent.parent / "docs/extending.md").read_text(encoding="utf-8")
SHORT = {
    "fit": [
        "--model.width",
        "0.125",
        "--trainer.max_steps",
        "2",
        "--trainer.accelerator",
        "cpu",
        "--data.train_size",
        "24",
        "--data.val_size",
        "8",
        "--data.test_size",
        "8",
    ],
    "protect": ["--steps", "2", "--width", "0.125", "--accelerator", "cpu", "--proof", "false"],
}


def block(language: str, number: int = 0) -> str:
    """Return a block of the page: the method's, or the network's, which come in that order."""
    text: str = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)[number]
    return text


def on_path(folder: Path) -> Patch:
    """Return what PYTHONPATH does; the run is a process of its own, so that no other test knows the class."""

    def patch(rank: int) -> None:
        sys.path.insert(0, str(folder))

    return patch


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CI", "true")
    (tmp_path / "my_module.py").write_text(block("python"))
    (tmp_path / "my_method.yaml").write_text(block("yaml"))
    write_fake_npz(tmp_path / "my_images.npz", MEDMNIST["breastmnist"], (24, 8, 8))
    return tmp_path


def test_the_commands_of_the_page_run_the_method_of_the_page(workplace: Path) -> None:
    commands = [shlex.split(line) for line in block("bash").splitlines()]
    assert [command[2] for command in commands] == ["fit", "fit", "protect"]
    for number, (path, program, *command) in enumerate(commands):
        assert (path, program) == ("PYTHONPATH=.", "salm-cli")
        log = workplace / f"log-{number}"
        assert run([*command, *SHORT[command[0]]], log, patch=on_path(workplace)) == [0], log.with_suffix(".0").read_text()
    releases = ("lightning_logs/smooth", "lightning_logs/version_0", "lightning_logs/my_images-smoothem")
    for folder, reach in zip(releases, (2, 1, 2), strict=True):
        manifest = Manifest.read(workplace / folder / "protected")
        assert manifest.settings["method"] == {
            "name": "smoothem", "radius": 8.0, "step_size": 1.6, "reach": reach, "eot_samples": 1,
            "transform": {"padding": None, "flip": True},
        }  # fmt: skip
        assert manifest.settings["last_pass_steps"] == 10
        assert 7 <= manifest.measured.linf <= 8
        assert all(check.ok for check in verify_release(workplace / folder / "protected"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model.method.reach", "-1"], "reach=-1 is negative; give 0 (EM) or more."),
        (["--model.method.reech", "1"], "--model.method.reech is not an option; did you mean 'reach'?"),
        (["--model.method.step_size", "0.01"], "step_size=0.01 is below the resolution of stored noise"),
    ],
)
def test_wrong_options_of_the_method_get_the_usual_messages(workplace: Path, options: list[str], expected: str) -> None:
    command = ["fit", "--model", "NoiseGeneratorModule", "--model.method", "my_module.SmoothEM", *options]
    assert run([*command, "--data", "SyntheticDataModule", *SHORT["fit"]], workplace / "log", patch=on_path(workplace)) == [2]
    assert expected in (workplace / "log.0").read_text()


def test_the_page_is_as_short_as_it_says_and_names_every_attribute() -> None:
    assert len(block("python").splitlines()) <= 45
    public = {name for name in vars(methods.Method) if not name.startswith("_")} - {"improve", "name", "radius_unit", "settings"}
    assert {name for name in public if f"`{name}`" not in PAGE and f"`{name}()`" not in PAGE} == set()


TIMM = """
from torch import nn

def create_model(name, num_classes, in_chans):
    width = {"levit_128s": 4, "convnext_atto": 8}[name]
    pooled = nn.Sequential(nn.Conv2d(in_chans, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(pooled, nn.Linear(4 * width, num_classes))
"""
"""Stands in for the library, which is not needed."""


def test_the_network_of_the_page_is_a_victim_and_a_source_model(workplace: Path) -> None:
    (workplace / "timm.py").write_text(TIMM)
    (workplace / "my_nets.py").write_text(block("python", 1))
    commands = [shlex.split(line) for line in block("bash", 1).splitlines()]
    for number, (path, program, *command) in enumerate(commands):
        assert (path, program) == ("PYTHONPATH=.", "salm-cli")
        log = workplace / f"log-{number}"
        assert run([*command, *SHORT["fit"]], log, patch=on_path(workplace)) == [0], log.with_suffix(".0").read_text()
    victim = json.loads((workplace / "lightning_logs/victim/results.json").read_text())["victim"]
    assert victim["arch"] == {"class_path": "my_nets.Timm", "init_args": {"name": "levit_128s"}}
    assert (victim["optimizer"]["class"], victim["optimizer"]["lr"]) == ("AdamW", 0.001)
    manifest = Manifest.read(workplace / "lightning_logs/noise/protected")
    assert manifest.settings["source"] == {"class_path": "my_nets.Timm", "init_args": {}}
    assert manifest.settings["optimizer"]["class"] == "AdamW"
