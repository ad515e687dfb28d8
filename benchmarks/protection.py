"""Show what protection costs: a victim's accuracy over the processor seconds of making the noise, ours beside that of a research code.

The other side is the loop of error-minimising noise as REM's code has it (Fu et al., ICLR 2022), in our own words as a plain PyTorch
loop: a ResNet-18, a full PGD of 10 steps from a random start at each training step, on images that are augmented one by one on the
host, and a last PGD over all images; without its mistake of making that last noise on augmented images. Ours is ``salm-cli protect``
with the options that are given. Both protect the same images, and the same victim is trained on what they release.

Every release and victim is written down in ``OUT/results.json`` as soon as it is done; the same command goes on with what is missing.
The seconds are those of the process, over all threads; loading Python's packages is not counted. Example::

    OMP_NUM_THREADS=1 python benchmarks/protection.py bloodmnist --out lightning_logs/protection
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generator import RADIUS, STEP, PlainLoop
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from salm_lightning.commands.protect import protect
from salm_lightning.data import ImageDataModule
from salm_lightning.data.arrays import labels_to_tensor, to_tensor
from salm_lightning.data.batches import permutation
from salm_lightning.data.original import named_images
from salm_lightning.files import address, replacing, write_json
from salm_lightning.metrics.figures import CLEAN, COLORS, MARKERS, accuracy_axis, new_figure, styled
from salm_lightning.noise.methods import SALM
from salm_lightning.noise.pgd import release_images
from salm_lightning.release import PoisonedDataModule, write_release
from salm_lightning.runs.victims import VictimSettings, train_victim

BATCH, PGD_STEPS = 128, 10
CLEAN_IMAGES, REM, OURS = "clean images", "REM's loop", "salm-cli protect"
Cell = dict[str, Any]


class RemLoop(PlainLoop):
    """The loop of REM's error-minimising noise, for images ``[N, 3, 28, 28]`` in [0, 1]."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss on images that are augmented already."""
        return cross_entropy(self.network((images - 0.5) / 0.25), labels)

    def pgd(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        """Return noise of a full PGD from a random start; the network is in evaluation mode and frozen meanwhile."""
        self.network.eval().requires_grad_(False)
        delta = (2 * torch.rand_like(images) - 1) * RADIUS
        for _ in range(PGD_STEPS):
            delta = ((images + delta).clamp(0, 1) - images).requires_grad_(True)
            (grad,) = torch.autograd.grad(self.loss(images + delta, labels), delta)
            delta = (delta.detach() - STEP * grad.sign()).clamp(-RADIUS, RADIUS)
        self.network.train().requires_grad_(True)
        return (images + delta).clamp(0, 1) - images

    def make(self, images: Tensor, labels: Tensor, steps: int) -> Iterator[NDArray[np.uint8]]:
        """Train for so many steps, with REM's falls of the learning rate, then yield the protected images in their order, by batches."""
        schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [round(share * steps) for share in (0.4, 0.8)])
        order = torch.randperm(len(images))
        for _ in range(steps):
            if len(order) < BATCH:
                order = torch.randperm(len(images))
            rows, order = order[:BATCH], order[BATCH:]
            views, targets = self.transform(images[rows]), labels[rows]
            self.source(views, targets, self.pgd(views, targets))
            schedule.step()
        for some, targets in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            yield release_images(some, self.pgd(some, targets), 255 * RADIUS).numpy()


def smaller(data: ImageDataModule, images: int, path: Path) -> None:
    """Write a set with as many training images, drawn at random, and all others, as a file in MedMNIST's layout."""
    kept = np.sort(permutation(len(data.split("train")), 0, "benchmark")[:images])
    arrays = {}
    for name in ("train", "val", "test"):
        split = data.split(name)
        rows = kept if name == "train" else np.arange(len(split))
        arrays |= {f"{name}_images": np.asarray(split.images[rows]), f"{name}_labels": split.labels[rows]}
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)


def make_release(cell: Cell, source: Path, folder: Path) -> float:
    """Protect the images and return the processor seconds that it took."""
    begin = time.process_time()
    if cell["loop"] == OURS:
        method = SALM(cell["percent"], step_size=cell["step_size"])
        training = {name: cell[name] for name in ("source_model", "steps", "updates_per_visit", "source_learning_rate", "seed")}
        protect(str(source), folder, method=method, proof=False, overwrite=True, accelerator="cpu", **training)
    else:
        data = named_images(str(source)).load()
        split = data.split("train")
        torch.manual_seed(cell["seed"])
        loop = RemLoop(data.num_classes, cell["rem_width"], torch.device("cpu"), 0.1)
        images = to_tensor(np.asarray(split.images)).float().div(255)
        made = loop.make(images, labels_to_tensor(split.labels, data.task), cell["steps"])
        bound = {"norm": "linf", "radius": 255 * RADIUS}
        write_release(folder / "protected", data, made, {"method": {"name": "rem"}, "seed": cell["seed"]}, bound, overwrite=True)
    return time.process_time() - begin


def measured(cell: Cell, source: Path, folder: Path) -> Cell:
    """Protect the images, unless clean ones are asked for, and train a victim; return the cell with what both have shown."""
    place = folder / address(cell)
    clean = data = named_images(str(source)).load()
    seconds = 0.0
    if cell["loop"] != CLEAN_IMAGES:
        seconds = make_release(cell, source, place)
        data = PoisonedDataModule(place / "protected", seed=cell["seed"])
        data.measure_on(clean)
    settings = VictimSettings(
        width=cell["victim_width"], steps=cell["victim_steps"], precision=cell["precision"], seed=cell["seed"]
    )
    results = train_victim(settings, data, place, "victim", place / "victim", accelerator="cpu").results
    return cell | {"seconds": seconds, "accuracy": results["test"]["acc"], "majority": results["majority"]}


def means(results: Iterable[Cell], loop: str) -> list[tuple[float, float, int]]:
    """Return processor seconds, accuracy (both means over the seeds) and steps of each length of a loop, short ones first."""
    lengths: dict[int, list[Cell]] = {}
    for result in results:
        if result["loop"] == loop:
            lengths.setdefault(result["steps"], []).append(result)
    columns = ("seconds", "accuracy")
    points = [(*(float(np.mean([one[name] for one in group])) for name in columns), steps) for steps, group in lengths.items()]
    return sorted(points)  # type: ignore[arg-type]


def ratios(results: list[Cell]) -> Iterator[tuple[float, float, float]]:
    """Yield accuracy and seconds of each length of REM's loop, and how many times fewer seconds ours take to leave a victim no better.

    They are those of the shortest of our lengths that does so, hence at least so many times fewer; 0 where none does.
    """
    ours = means(results, OURS)
    for seconds, accuracy, _ in means(results, REM):
        enough = [spent for spent, reached, _ in ours if reached <= accuracy]
        yield accuracy, seconds, seconds / min(enough) if enough else 0.0


@styled
def draw(results: list[Cell]) -> Figure:
    """Draw accuracy over processor seconds, a line through the means and a point for each seed."""
    figure = new_figure(4.2)
    axes = figure.subplots()
    for color, marker, loop in zip(COLORS[1:], MARKERS, (OURS, REM), strict=False):
        points = [(one["seconds"], 100 * one["accuracy"]) for one in results if one["loop"] == loop]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, marker=marker, linestyle="none")
            line = [(seconds, 100 * accuracy) for seconds, accuracy, _ in means(results, loop)]
            axes.plot(*zip(*line, strict=True), color=color, label=loop)
    for _, accuracy, _ in means(results, CLEAN_IMAGES):
        axes.axhline(100 * accuracy, color=CLEAN, label=CLEAN_IMAGES)
    accuracy_axis(axes, results[0]["majority"])
    axes.set(xscale="log", xlabel="processor seconds for the noise")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def report(results: list[Cell]) -> None:
    """Print results and ratios as Markdown."""
    print("| | steps | processor s | accuracy of the victim, by seed |\n|---|---|---|---|")
    for loop in (CLEAN_IMAGES, REM, OURS):
        for seconds, _, steps in means(results, loop):
            values = [f"{100 * one['accuracy']:.1f}" for one in results if (one["loop"], one["steps"]) == (loop, steps)]
            print(f"| {loop} | {steps or ''} | {f'{seconds:.0f}' if steps else ''} | {', '.join(values)} |")
    for accuracy, seconds, ratio in ratios(results):
        verdict = f"ours takes at least {ratio:.1f} times less" if ratio else "none of our lengths does as well"
        print(f"To leave a victim at {100 * accuracy:.1f} % REM's loop takes {seconds:.0f} processor s; {verdict}.")


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Yield all that is to be measured, each with what it depends on, what tells most first."""
    common = {name: getattr(options, name) for name in ("images", "victim_width", "victim_steps", "precision")}
    names = ("percent", "step_size", "source_model", "updates_per_visit", "source_learning_rate")
    ours = {name: getattr(options, name) for name in names}
    for seed in options.seeds:
        for steps in sorted(options.our_steps):
            yield common | {"loop": OURS, "steps": steps, "seed": seed} | ours
        for steps in sorted(options.rem_steps):
            yield common | {"loop": REM, "steps": steps, "seed": seed, "rem_width": options.rem_width}
    yield common | {"loop": CLEAN_IMAGES, "steps": 0, "seed": options.seeds[0]}


def main() -> None:
    """Measure what is not there yet, and print and draw what is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="A MedMNIST name, or an .npz file in its layout, of colour images of 28 px.")
    parser.add_argument("--out", type=Path, required=True, help="Folder of all that is made; a place to go on.")
    parser.add_argument("--images", type=int, help="Training images, drawn at random; all by default.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rem-steps", type=int, nargs="*", default=[50, 150, 450], help="Lengths of REM's loop.")
    parser.add_argument("--our-steps", type=int, nargs="*", default=[60, 120, 240], help="Lengths of ours.")
    parser.add_argument("--rem-width", type=float, default=0.125, help="Width of its ResNet-18; REM has 1.")
    parser.add_argument("--percent", type=float, default=100, help="Our K; 100 is EM, as REM's.")
    parser.add_argument("--step-size", type=float, default=1.6, help="Ours.")
    parser.add_argument("--source-model", default="cnn", help="Ours.")
    parser.add_argument("--updates-per-visit", type=int, default=5, help="Ours.")
    parser.add_argument("--source-learning-rate", type=float, default=0.1, help="Ours; REM has 0.1.")
    parser.add_argument("--victim-width", type=float, default=0.125)
    parser.add_argument("--victim-steps", type=int, default=400)
    parser.add_argument("--precision", default="32-true", help="The victims'.")
    options = parser.parse_args()
    file, source = options.out / "results.json", options.out / f"images-{options.images or 'all'}.npz"
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    if not source.is_file():
        data = named_images(options.data).load()
        smaller(data, options.images or len(data.split("train")), source)
    wanted = list(cells(options))
    for cell in wanted:
        if not any(cell.items() <= result.items() for result in results):
            results.append(measured(cell, source, options.out))
            write_json(file, results)
    found = [result for cell in wanted for result in results if cell.items() <= result.items()]
    report(found)
    draw(found).savefig(options.out / "protection.png", dpi=150)


if __name__ == "__main__":
    main()
