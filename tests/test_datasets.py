"""Every dataset, size and task of MedMNIST goes the whole way: generator, release, check, victim, test; on tiny fake files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import write_fake_npz

from salm_lightning.cli import main
from salm_lightning.data import MEDMNIST, Task
from salm_lightning.release import Manifest

ONE_PER_TASK = ("chestmnist", "bloodmnist", "retinamnist", "breastmnist")
CASES = [
    *(pytest.param(name, 28, id=f"{name}-28") for name in ONE_PER_TASK),
    *(pytest.param(name, 28, id=f"{name}-28", marks=pytest.mark.slow) for name in sorted(set(MEDMNIST) - set(ONE_PER_TASK))),
    *(pytest.param(name, size, id=f"{name}-{size}", marks=pytest.mark.slow) for name in ONE_PER_TASK for size in (64, 128, 224)),
]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_the_whole_way(name: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    info = replace(MEDMNIST[name], size=size)
    source = tmp_path / (f"{name}.npz" if size == 28 else f"{name}_{size}.npz")
    arrays = write_fake_npz(source, info, (24, 16, 16))
    shared = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--model.width", "0.125", "--data.batch_size", "8"]
    data = ["--data", "MedMNISTDataModule", "--data.name", name, "--data.size", str(size), "--data.root", str(tmp_path)]
    assert main(["fit", *data, "--model", "NoiseGeneratorModule", "--model.method", "SALM", "--run", "g", *shared]) == 0

    release = Path("lightning_logs/g/protected")
    assert main(["verify", str(release), "--source", str(source)]) == 0
    assert Manifest.read(release).measured.linf == 8
    on_release = ["--config", f"{release}/datamodule.yaml"]
    assert main(["fit", *on_release, "--model", "VictimModule", "--run", "v", *shared]) == 0

    results = json.loads(Path("lightning_logs/v/results.json").read_text())
    assert ("kappa" in results["test"]) is (info.task is Task.ORDINAL)
    answers = sum(map(_total, results["test"]["confusion"]))
    assert answers == arrays["test_labels"].size
    assert 0 <= results["test"]["acc"] <= 1
    assert 0 < results["majority"] <= 1


def _total(rows: list) -> int:
    return sum(_total(row) if isinstance(row, list) else row for row in rows)
