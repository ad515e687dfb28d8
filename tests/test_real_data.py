"""The main path on real medical images: generator, release, verification, victim, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from salm_lightning.main import main

pytestmark = pytest.mark.real_data


@pytest.mark.parametrize(("name", "channels"), [("breastmnist", 1), ("retinamnist", 3), ("bloodmnist", 3)])
def test_protect_verify_and_train(
    name: str,
    channels: int,
    real_data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The release of a real dataset keeps its promises on the stored bytes, and a victim trains on it and is tested."""
    monkeypatch.chdir(tmp_path)
    data = ["--data", "MedMNISTDataModule", "--data.name", name, "--data.root", str(real_data_root)]
    short = ["--model.width", "0.0625", "--trainer.max_steps", "3", "--trainer.accelerator", "cpu"]
    generator = ["--model", "NoiseGeneratorModule", "--model.method", "SALM", "--model.updates_per_visit", "1"]
    assert main(["fit", "--run", "g", *data, *generator, "--model.last_pass_steps", "1", *short]) == 0
    release = tmp_path / "lightning_logs/g/protected"

    source = real_data_root / f"{name}.npz"
    assert main(["verify", str(release), "--source", str(source)]) == 0
    with np.load(source, allow_pickle=False) as before, np.load(release / f"{name}.npz", allow_pickle=False) as after:
        change = after["train_images"].astype(int) - before["train_images"].astype(int)
        for array in ("val_images", "test_images", "train_labels", "val_labels", "test_labels"):
            np.testing.assert_array_equal(after[array], before[array])
        assert before["train_images"].ndim == (3 if channels == 1 else 4)
    assert np.abs(change).max() == 8
    assert change.min() == -8, "negative noise survives"
    # A uniform start moves nearly every image; one left out by the last pass would be all zero.
    assert (change.reshape(len(change), -1) != 0).any(axis=1).all()

    assert (
        main(
            ["fit", "--run", "v", "--data", "PoisonedDataModule", "--data.root", str(release), "--model", "VictimModule", *short]
        )
        == 0
    )
    results = json.loads((tmp_path / "lightning_logs/v/results.json").read_text())
    with np.load(source, allow_pickle=False) as arrays:
        labels = arrays["test_labels"][:, 0]
    assert results["majority"] == pytest.approx(np.bincount(labels).max() / len(labels), abs=1e-6)
    assert np.sum(results["test"]["confusion"]) == len(labels)
    assert "majority class" in capsys.readouterr().out
