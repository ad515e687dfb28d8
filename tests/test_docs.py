"""Every ``salm-cli`` command of docs/reproducing.md is one that can be given: its options are read, and its data and modules built.

Sweeps are planned in test_sweep.py; the commands of other pages have tests of their own.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fakes import write_fake_npz
from pages import only_read, shell_commands
from test_configs import SHORT, Built

from salm_lightning import commands
from salm_lightning.data import MEDMNIST, NpzDataModule
from salm_lightning.main import main
from salm_lightning.modules import NoiseGeneratorModule
from salm_lightning.noise.selection import class_number
from salm_lightning.release import write_release
from salm_lightning.reproduce.targets import TARGETS


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny datasets, a working directory, and a release outside of it."""
    for name in ("pathmnist", "bloodmnist"):
        write_fake_npz(tmp_path / f"{name}.npz", MEDMNIST[name], (90, 9, 9))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("SALM_DATA_ROOT", str(tmp_path))
    data = NpzDataModule(tmp_path / "bloodmnist.npz")
    write_release(tmp_path / "made", data, [data.split("train").images], {}, {"norm": "linf", "radius": 8})
    return tmp_path / "made"


def test_fits_can_be_built(release: Path) -> None:
    """In their order: a victim's config stands where the command before it puts it."""
    fits = [command for command in shell_commands("reproducing") if command[0] == "fit"]
    runs = [command[command.index("--run") + 1] for command in fits]
    assert len(set(runs)) == len(runs), "a run that has the name of an earlier one would be refused"
    kinds: Counter[str] = Counter()
    for run, command in zip(runs, fits, strict=True):
        model, data = (cli := Built([*command, *SHORT])).model, cli.datamodule
        kinds[type(model).__name__] += 1
        if isinstance(model, NoiseGeneratorModule):
            if model.selection is not None:
                model.selection.mask(data.split("train").labels, data.info)
            shutil.copytree(release, Path("lightning_logs") / run / "protected")
    assert kinds == {"NoiseGeneratorModule": 5 + 1 + 1 + 5 + 1, "VictimModule": 6 + 1 + 1 + 5 + 2}


def test_other_commands_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[dict[str, Any]] = []
    function_of = commands.function_of
    monkeypatch.setattr(commands, "function_of", lambda name: only_read(function_of(name), taken))
    for command in shell_commands("reproducing"):
        if command[0] not in ("fit", "sweep"):
            assert main(command) == 0, command
    papers = [given for given in taken if "target" in given]
    assert len(papers) == 5
    for given in papers:
        assert TARGETS[given["target"]].choose(given["datasets"], given["methods"])
    owners = [given for given in taken if "target" not in given]
    assert len(owners) == len({given["out"] for given in owners}) == 3, "a result that stands at out would be refused"
    for given in owners:
        for name in given["classes"] or []:
            class_number(name, MEDMNIST[given["data"]])
