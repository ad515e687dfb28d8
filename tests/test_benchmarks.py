"""The scripts in benchmarks/: they run, and print the numbers that they are given."""

from __future__ import annotations

import csv
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fakes import write_fake_npz
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from salm_lightning.countermeasures import Grey, Median
from salm_lightning.data import DatasetInfo, NpzDataModule, Task
from salm_lightning.models import Architecture
from salm_lightning.noise.methods import EM, SALM
from salm_lightning.noise.pgd import Objective, Samples
from salm_lightning.noise.transforms import CropFlip
from salm_lightning.release import write_release
from salm_lightning.sweep.plan import columns_of

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(*arguments: str) -> str:
    """Run a script and return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=BENCHMARKS, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_generator() -> None:
    small = "--width 0.0625 --batch-size 8 --rounds 1 --repeats 1 --last-pass-steps 1 --accelerator cpu"
    printed = run("generator.py", *small.split())
    for name in ("PGD pass", "source step", "whole step", "last pass"):
        ours, plain, ratio = map(float, re.findall(rf"{name}\D+(\d+)\D+(\d+)\D+([\d.]+)", printed)[0])
        assert ratio == pytest.approx(ours / plain, rel=0.1)


def test_folder() -> None:
    printed = run("folder.py", "--images", "60", "--size", "8").splitlines()
    assert len(printed) == 1
    assert re.fullmatch(r"60 images: [\d.]+ s, [\d.]+ ms an image, at most \d+ MB a process", printed[0])


def test_source_models_of_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in ("source_models.MLP", "source_models.StridedResNet18", "source_models.InTurn", "robust_methods.WithViT"):
        network = Architecture.parse(name).build(8, 3, 28, 0.125)
        first = network(torch.rand(2, 3, 28, 28))
        assert first.shape == (2, 8)
        if name.endswith(("InTurn", "WithViT")):
            images = torch.rand(2, 3, 28, 28)
            network.eval()
            answers = [network(images) for _ in range(7)]
            count = 3 if name.endswith("InTurn") else 2
            torch.testing.assert_close(answers[0], answers[count])
            assert not torch.allclose(answers[0], answers[1])


def test_methods_of_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from robust_methods import Noisy, Tied
    from short_passes import Folded, WhereSteep, folded

    images = torch.rand(6, 3, 28, 28) / 2 + 0.25
    samples = Samples(images, torch.arange(6), torch.arange(6), Task.MULTI_CLASS, 8, 0)
    network = Architecture.parse("cnn").build(8, 3, 28).eval().requires_grad_(False)

    def improved(method: EM, steps: int) -> torch.Tensor:
        objective = Objective(network, samples, method.transform, "eot")
        return method.improve(images, method.start(images, samples.indices, 0), objective, steps).delta

    tied = improved(Tied(transform=Noisy(8)), 2)
    torch.testing.assert_close(tied, tied[:, :1].expand_as(tied))
    assert tied.abs().max() <= 8.001 / 255
    seen = Noisy(8)(images, samples.indices, 0, "eot", 0) - CropFlip()(images, samples.indices, 0, "eot", 0)
    assert 7 / 255 < seen.abs().max() <= 8.001 / 255
    torch.testing.assert_close(improved(WhereSteep(1.0), 3), improved(EM(), 3))
    half, once, whole = improved(WhereSteep(0.5), 3), improved(EM(), 1), improved(EM(), 3)
    as_once, as_whole = (((half - other).abs().amax(dim=(1, 2, 3)) < 1e-6).sum() for other in (once, whole))
    assert (as_once, as_whole) == (3, 3)
    network.train()(images)  # statistics that are not those of its start
    network.eval()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded(network).modules())
    torch.testing.assert_close(folded(network)(images), network(images), rtol=1e-3, atol=1e-4)
    assert (improved(Folded(), 1) - improved(EM(), 1)).abs().lt(1e-6).float().mean() > 0.99  # a few signs turn


@pytest.mark.slow
def test_working_size(tmp_path: Path) -> None:
    for number in range(16):
        pixels = np.random.default_rng(number).integers(0, 100, (20, 24, 3), np.uint8) + np.uint8(100 * (number % 2))
        (tmp_path / "scans" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "scans" / "ab"[number % 2] / f"{number}.png")
    small = "--sizes 8 --methods EM --scalings nearest bilinear --victims 12 --steps 2 --width 0.0625 --victim_steps 2"
    command = ["working_size.py", str(tmp_path / "scans"), "--out", str(tmp_path / "out"), *small.split()]
    printed = [line for line in run(*command).splitlines() if line.startswith("{")]
    assert [re.search(r"'scaling': '(\w*)'", line)[1] for line in printed] == ["", "nearest", "bilinear"]  # type: ignore[index]
    noise = np.load(tmp_path / "out/EM-0.0-8-0/noise.npy")
    assert noise.shape[1:] == (8, 8, 3)
    assert 0 < np.abs(noise).max() <= 8
    assert "{" not in run(*command)


@pytest.mark.slow
def test_later(tmp_path: Path) -> None:
    write_fake_npz(tmp_path / "mine.npz", DatasetInfo("mine", Task.MULTI_CLASS, ("a", "b"), 3, 28), (16, 4, 8))
    small = "--methods EM --seeds 0 --steps 2 --victim_steps 2 --source_width 0.0625 --width 0.0625"
    command = ["later.py", str(tmp_path / "mine.npz"), "--out", str(tmp_path / "later.csv"), *small.split(), "--ways"]
    printed = run(*command, "3 times the steps")
    assert "| EM | 3 times the steps |" in re.sub(" +", " ", printed)
    assert re.search(r"majority class \d+\.\d%", printed)
    rows = list(csv.DictReader((tmp_path / "later.csv").open()))
    assert [row["trained_on"] for row in rows] == ["B", "B", "B", "A and B", "A and B", "A and B", "B"]
    assert len(run(*command, "A's mean noise of the class as start").split("EM, 0, ")) == 2


def test_frontier(tmp_path: Path) -> None:
    grid = yaml.safe_load((BENCHMARKS.parent / "configs/sweep/strict.yaml").read_text())["grid"]
    (method,) = columns_of(grid).values()
    columns = (method, "accuracy", "majority", "linf", "changed_share", "ssim", "psnr", "status", "release")
    rows = [
        ("SALM percent=30", "0.6", "0.2", "8", "0.3", "0.98", "36.5", "done", "b/protected"),
        ("SALM percent=10", "0.7", "0.2", "8", "0.1", "0.99", "41.25", "done", "a/protected"),
        ("SALM percent=5", "", "", "", "", "", "", "failed", "c/protected"),
        ("", "0.9", "0.2", "", "", "", "", "done", ""),
    ]
    with (tmp_path / "results.csv").open("w") as stream:
        csv.writer(stream).writerows([columns, *rows])
    picture = tmp_path / "new" / "frontier.png"
    printed = run("frontier.py", str(tmp_path / "results.csv"), "--out", str(picture)).splitlines()
    assert printed[2:] == ["| SALM percent=10 | 10.0 | 41.2 | 0.990 | 70.0 |", "| SALM percent=30 | 30.0 | 36.5 | 0.980 | 60.0 |"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_width(tmp_path: Path) -> None:
    columns = ("generator.model.method", "victim.model.width", "accuracy", "majority", "status")
    rows = {
        0.125: [
            ("EM", "0.125", "0.5", "0.2", "done"),
            ("SALM", "0.125", "0.625", "0.2", "done"),
            ("", "0.125", "0.875", "0.2", "done"),
        ],
        0.25: [("EM", "0.25", "0.375", "0.2", "done"), ("SALM", "0.25", "", "0.2", "failed")],
    }
    files = [tmp_path / f"{width}.csv" for width in rows]
    for file, some in zip(files, rows.values(), strict=True):
        with file.open("w") as stream:
            csv.writer(stream).writerows([columns, *some])
    printed = run("width.py", *map(str, files), "--out", str(tmp_path / "new/width.png")).splitlines()
    assert printed[0] == "| trained on | 0.125 | 0.25 | 1, the paper |"
    assert printed[2:] == ["| clean images | 87.5 |  | 95.8 |", "| EM | 50.0 | 37.5 | 30.5 |", "| SALM, K = 10 | 62.5 |  | 7.1 |"]
    assert (tmp_path / "new/width.png").read_bytes().startswith(b"\x89PNG")


def test_the_overview_shows_what_a_result_holds(tmp_path: Path) -> None:
    write_fake_npz(tmp_path / "mine.npz", DatasetInfo("mine", Task.MULTI_CLASS, ("a", "b", "c"), 3, 28), (9, 4, 4))
    data = NpzDataModule(tmp_path / "mine.npz")
    data.setup("fit")
    settings = {"method": {"name": "salm"}, "seed": 0}
    write_release(tmp_path / "out/protected", data, [data.split("train").images], settings, {"norm": "linf", "radius": 8})
    for name, last in (("clean", 0.875), ("protected", 0.25)):
        with SummaryWriter(str(tmp_path / "out" / f"victim-{name}")) as writer:
            for step, accuracy in ((1, 0.125), (2, last)):
                writer.add_scalar("test_curve/acc", accuracy, step)
        (tmp_path / "out" / f"victim-{name}" / "results.json").write_text('{"majority": 0.5}')
    picture = tmp_path / "new" / "overview.png"
    printed = run("overview_figure.py", str(tmp_path / "out"), "--source", str(tmp_path / "mine.npz"), "--out", str(picture))
    assert "trained on clean images: 87.5 %" in printed
    assert "trained on protected images: 25.0 %" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_remnants_are_what_grey_and_filters_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from remnants import remnant

    originals = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    light, colour, dots = (originals.clone() for _ in range(3))
    light[:, :, :, ::2] += 8
    colour[:, 0, :, ::2] += 10
    colour[:, 1, :, ::2] -= 5  # 0.299 x 10 - 0.587 x 5 is no grey level
    dots[:, :, ::2, ::2] += 9
    assert remnant(Grey(), [(originals, light)]) == pytest.approx((1, 1))
    assert remnant(Grey(), [(originals, colour)])[0] == pytest.approx(0, abs=1e-6)
    assert remnant(Median(), [(originals, dots)])[0] == pytest.approx(0, abs=1e-6)
    # the light noise has 64 a value in half of its values and stays; the colours' have (100 + 25) / 3 and go
    size, likeness = remnant(Grey(), [(originals, light), (originals, colour)])
    assert (size, likeness) == pytest.approx((math.sqrt(64 / (64 + 125 / 3)),) * 2)


def test_remnants_of_a_release(tmp_path: Path) -> None:
    write_fake_npz(tmp_path / "source.npz", DatasetInfo("cells", Task.MULTI_CLASS, ("a", "b"), 3, 28))
    data = NpzDataModule(tmp_path / "source.npz")
    images = data.split("train").images
    write_release(tmp_path / "release", data, [images ^ np.uint8(4)], {}, {"norm": "linf", "radius": 8})
    rows = run("remnants.py", str(tmp_path / "release"), "--source", str(tmp_path / "source.npz"), "--images", "20").splitlines()
    assert rows[0].startswith("20 images, noise of ")
    assert len(rows) == 4 + 10


def test_operations_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix product of two images takes 2 x 2 x 4 x 3: once forward and once back per PGD pass, three times in training."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from generator import matmul_peak, step_flops

    assert step_flops(torch.nn.Linear(4, 3), torch.zeros(2, 4), passes=5) == 48 * (2 * 5 + 3)
    assert matmul_peak(torch.device("cpu"), "32-true", size=8) > 0


class Slope:
    """An objective with a given gradient for each step."""

    def __init__(self, gradients: list[Tensor]) -> None:
        self.gradients: Iterator[Tensor] = iter(gradients)

    def __call__(self, delta: Tensor, step: int) -> Tensor:
        return next(self.gradients)


def test_strict_variants_keep_to_their_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from strict_variants import Accumulate

    rng = np.random.default_rng(0)
    images = torch.full((4, 3, 10, 10), 0.5)
    signs = rng.choice([-1, 1], size=(4, 3, 10, 10))  # those of a pixel stay, so that its noise does not come back to zero
    gradients = [torch.from_numpy(signs * rng.uniform(size=signs.shape)).float() for _ in range(12)]
    for pace, drop in ((1.0, 0.0), (0.1, 0.0), (0.5, 0.2)):
        method: SALM = Accumulate(percent=10, pace=pace, drop=drop)
        objective, delta = Slope(gradients), torch.zeros_like(images)
        counts = []
        for _ in range(4):  # visits of three steps
            before = (delta != 0).any(dim=1)
            delta = method.improve(images, delta, objective, 3).delta  # type: ignore[arg-type]
            changed = (delta != 0).any(dim=1)
            counts.append(changed.sum(dim=(1, 2)).tolist())
            if not drop:
                assert bool((changed | ~before).all()), "a pixel that was chosen stays chosen"
        assert counts[-1] == [10] * 4
        assert max(map(max, counts)) == method.max_changed_pixels(100, 10) == 10
        expected = np.abs(gradients[0].numpy()).sum(axis=1).reshape(4, -1).argsort(axis=1)[:, -10:]
        if pace == 1.0:
            assert all(set(np.flatnonzero(image)) == set(best) for image, best in zip(changed.flatten(1), expected, strict=True))


@pytest.mark.slow
def test_memory() -> None:
    printed = run("memory.py", "--images", "64", "--width", "0.0625")
    assert 0 < float(re.findall(r"\| 64 \| 0\.01 \| ([\d.]+)", printed)[0]) < 4


def test_jpeg(tmp_path: Path) -> None:
    for number, sampling in enumerate((0, 2)):
        picture = np.random.default_rng(number).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(picture).resize((40, 32), Image.Resampling.BICUBIC).save(
            tmp_path / f"{number}.jpg", quality=92, subsampling=sampling
        )
    lines = run("jpeg.py", str(tmp_path), "--working_size", "6").splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["4:2:0", "1"], ["4:4:4", "1"]]
    for line in lines[1:]:
        largest, within = line.split()[5:9:2], line.split()[6:10:2]
        assert all(float(one) <= 8 for one in largest)
        assert within == ["100%", "100%"]
