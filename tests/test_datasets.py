"""Every dataset, size and task of MedMNIST goes the whole way: generator, release, check, victim, test; on tiny fake files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import write_fake_npz

from salm_lightning.data import MEDMNIST, Task
from salm_lightning.main import main
from salm_lightning.release import Manifest

ANY = "chestmnist_any"
"""ChestMNIST as any finding against none."""
ONE_PER_TASK = ("chestmnist", "bloodmnist", "retinamnist", "breastmnist")
CASES = [
    *(pytest.param(name, 28, id=f"{name}-28") for name in (*ONE_PER_TASK, ANY)),
    *(pytest.param(name, 28, id=f"{name}-28", marks=pytest.mark.slow) for name in sorted(set(MEDMNIST) - set(ONE_PER_TASK))),
    *(pytest.param(name, size, id=f"{name}-{size}", marks=pytest.mark.slow) for name in ONE_PER_TASK for size in (64, 128, 224)),
]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_the_whole_way(name: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = name.removesuffix("_any")
    info = replace(MEDMNIST[dataset], size=size)
    source = tmp_path / (f"{dataset}.npz" if size == 28 else f"{dataset}_{size}.npz")
    labels = write_fake_npz(source, info, (24, 16, 16))["test_labels"].astype(int)
    if name == ANY:
        labels[:4] = 0  # images without any finding are rare in the drawn ones
        write_fake_npz(source, info, (24, 16, 16), test_labels=labels.astype(np.uint8))
        labels = labels.max(axis=1, keepdims=True)
    shared = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--model.width", "0.125", "--data.batch_size", "8"]
    data = ["--config", f"dataset/{name}.yaml", "--data.size", str(size), "--data.root", str(tmp_path)]
    assert main(["fit", *data, "--model", "NoiseGeneratorModule", "--model.method", "SALM", "--run", "g", *shared]) == 0

    release = Path("lightning_logs/g/protected")
    assert main(["verify", str(release), "--source", str(source)]) == 0
    assert Manifest.read(release).measured.linf == 8
    on_release = ["--config", f"{release}/datamodule.yaml"]
    assert main(["fit", *on_release, "--model", "VictimModule", "--run", "v", *shared]) == 0

    results = json.loads(Path("lightning_logs/v/results.json").read_text())
    assert ("kappa" in results["test"]) is (info.task is Task.ORDINAL)
    confusion = np.array(results["test"]["confusion"])
    assert confusion.sum() == labels.size
    right = np.trace(confusion, axis1=-2, axis2=-1).sum()
    assert results["test"]["acc"] == pytest.approx(right / labels.size)
    counts = [np.bincount(column) for column in labels.T]
    assert results["majority"] == pytest.approx(sum(map(max, counts)) / labels.size)
    # Rows of the confusion matrix are the true classes.
    assert np.array_equal(confusion.sum(axis=-1).reshape(len(counts), -1), counts)
