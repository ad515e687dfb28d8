"""benchmarks/protection.py: what protection costs, ours beside a research code's loop."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from salm_lightning.data import SyntheticDataModule
from salm_lightning.data.arrays import labels_to_tensor, to_tensor

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_rems_loop_protects_every_image_within_the_radius_and_fits_its_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import protection
    from protection import RemLoop

    monkeypatch.setattr(protection, "PGD_STEPS", 5)
    data = SyntheticDataModule(train_size=140, val_size=4, test_size=4)
    data.setup()
    split = data.split("train")
    images, labels = to_tensor(split.images).float() / 255, labels_to_tensor(split.labels, data.task)
    torch.manual_seed(0)
    loop = RemLoop(data.num_classes, 0.0625, torch.device("cpu"), 0.1)
    blocks = list(loop.make(images, labels, 3))
    assert [len(block) for block in blocks] == [128, 12]
    made = np.concatenate(blocks).astype(int)
    assert np.abs(made - to_tensor(split.images).numpy()).max() == 8
    assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(0.001)  # fell after steps 1 and 2 of 3
    loop.network.eval()
    with torch.no_grad():
        random = images + (2 * torch.rand_like(images) - 1) * 8 / 255
        losses = [float(loop.loss(shown.clamp(0, 1), labels)) for shown in (random, torch.from_numpy(made).float() / 255)]
    assert losses[1] < 0.9 * losses[0]


def result(loop: str, steps: int, seconds: float, accuracy: float, seed: int = 0) -> dict[str, Any]:
    return {"loop": loop, "steps": steps, "seed": seed, "seconds": seconds, "accuracy": accuracy, "majority": 0.2}


def test_ratios_are_at_least_what_is_said() -> None:
    from protection import OURS, REM, means, ratios

    results = [
        result(OURS, 60, 20, 0.7), result(OURS, 240, 50, 0.3, 1), result(OURS, 240, 70, 0.5),
        result(REM, 50, 80, 0.9), result(REM, 450, 600, 0.45), result(REM, 900, 1200, 0.2),
    ]  # fmt: skip
    assert means(results, OURS) == [(20, pytest.approx(0.7), 60), (60, pytest.approx(0.4), 240)]
    assert [ratio for _, _, ratio in ratios(results)] == [pytest.approx(4), pytest.approx(10), 0]


def test_what_is_there_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import protection

    made: list[dict[str, Any]] = []

    def fake(cell: dict[str, Any], source: Path, folder: Path) -> dict[str, Any]:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(cell)
        return cell | {"seconds": 10.0 + cell["steps"], "accuracy": 0.5, "majority": 0.25}

    monkeypatch.setattr(protection, "measured", fake)
    words = f"protection.py synthetic --out {tmp_path / 'out'} --images 20 --seeds 0 --our-steps 5 9 --rem-steps 90"
    monkeypatch.setattr(sys, "argv", words.split())
    with pytest.raises(KeyboardInterrupt):
        protection.main()
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 3
    monkeypatch.setattr(protection, "measured", lambda cell, *places: made.append(cell) or fake_clean(cell))
    protection.main()
    assert [(cell["loop"], cell["steps"]) for cell in made] == [
        (protection.OURS, 5), (protection.OURS, 9), (protection.REM, 90), (protection.CLEAN_IMAGES, 0),
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert "| REM's loop | 90 | 100 | 50.0 |" in printed
    assert "To leave a victim at 50.0 % REM's loop takes 100 processor s; ours takes at least 6.7 times less." in printed
    assert (tmp_path / "out" / "protection.png").read_bytes().startswith(b"\x89PNG")
    with np.load(tmp_path / "out" / "images-20.npz") as file:
        assert len(file["train_images"]) == len(file["train_labels"]) == 20
        assert len(file["test_images"]) > 20


def fake_clean(cell: dict[str, Any]) -> dict[str, Any]:
    return cell | {"seconds": 0.0, "accuracy": 0.9, "majority": 0.25}


@pytest.mark.slow
def test_both_loops_and_a_clean_victim_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import protection

    words = f"protection.py synthetic --out {tmp_path} --images 140 --seeds 0 --our-steps 2 --rem-steps 2 --victim-steps 2"
    monkeypatch.setattr(sys, "argv", [*words.split(), "--rem-width", "0.0625", "--victim-width", "0.0625"])
    protection.main()
    ours, rem, clean = json.loads((tmp_path / "results.json").read_text())
    assert ours["seconds"] > 0
    assert rem["seconds"] > 0
    assert clean["seconds"] == 0
    assert all(0 <= one["accuracy"] <= 1 for one in (ours, rem, clean))
