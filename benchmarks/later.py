"""Show how well a noise generator protects images that arrive later: half of the training images with the generator of the other half.

The training split, or a part of it, is halved class by class: A, and B, which comes later. One generator is trained on A, another on B.
B is protected by A's, in several ways, and by its own. Victims train on B alone, and on A and B together, and are measured on the clean
test split. Every victim is a line of ``--out``: a repeated command goes on after the last one, and prints the table. Example::

    python benchmarks/later.py bloodmnist --methods EM SALM TAP --seeds 0 1 --out later.csv
"""

from __future__ import annotations

import argparse
import copy
import csv
import tempfile
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from salm_lightning.console import markdown_table, spread
from salm_lightning.data import ImageDataModule
from salm_lightning.data.arrays import to_array
from salm_lightning.data.base import Split
from salm_lightning.data.original import named_images
from salm_lightning.metrics import majority_baseline
from salm_lightning.modules import NoiseGeneratorModule
from salm_lightning.noise.methods import EM, SALM, TAP
from salm_lightning.runs.quiet import quieten
from salm_lightning.runs.trainers import facts_of, single_device_trainer
from salm_lightning.runs.victims import VictimSettings, train_victim


class Way(NamedTuple):
    """How A's generator protects B: last-pass steps as a multiple, J, the start, and how many models of its training."""

    steps: int = 1
    samples: int = 1
    class_start: bool = False
    models: int = 1


WAYS = {
    "A's generator": Way(),
    "3 times the steps": Way(steps=3),
    "10 times the steps": Way(steps=10),
    "J = 5": Way(samples=5),
    "A's mean noise of the class as start": Way(class_start=True),
    "that start and 3 times the steps": Way(steps=3, class_start=True),
    "3 models": Way(models=3),
}
METHODS = {"EM": (EM(), None), "SALM": (SALM(), None), "TAP": (TAP(step_size=0.64), 25)}
"""Methods, and their last-pass steps; TAP's are ten times larger and fewer than its own 250, for a CPU."""
CLEAN, OWN = "nothing (clean)", "its own generator"
COLUMNS = ("method", "seed", "protected_by", "trained_on", "accuracy")


class Images(ImageDataModule):
    """Images of a dataset, to train and to measure on."""

    def __init__(self, like: ImageDataModule, train: Split, test: Split, seed: int) -> None:
        super().__init__(like.info, batch_size=128, seed=seed)
        self._own = {"train": train, "val": test, "test": test}

    def load_splits(self) -> dict[str, Split]:
        """Return them."""
        return self._own


class Ensemble(nn.Module):
    """Models whose logits are averaged."""

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: Tensor) -> Tensor:
        """Return mean logits."""
        return torch.stack([model(images) for model in self.models]).mean(dim=0)


class Copies(Callback):
    """Copies of the source model after a half and three quarters of its training."""

    def __init__(self, steps: int) -> None:
        self.at, self.models = {steps // 2, steps * 3 // 4}, list[nn.Module]()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        """Copy it."""
        if trainer.global_step in self.at:
            self.models.append(copy.deepcopy(pl_module.source))


class Generator:
    """A noise generator that was trained on one half."""

    def __init__(self, method: str, data: Images, options: argparse.Namespace, folder: Path) -> None:
        copies = Copies(options.steps)
        settings, last_pass_steps = METHODS[method]
        self.module = NoiseGeneratorModule(
            copy.copy(settings),
            **facts_of(data),
            source=options.source_model,
            width=options.source_width,
            updates_per_visit=options.updates_per_visit,
            last_pass_steps=last_pass_steps,
            seed=data.seed,
        )
        self.data, self.trainer = data, single_device_trainer(folder, "generator", options.steps, [copies], "cpu")
        self.trainer.fit(self.module, datamodule=data)
        self.models = [*copies.models, self.module.source]

    def protected(self, data: Images, way: Way) -> Split:
        """Return the training images of a half with noise: of its own from the stored noise, of others from a random start."""
        mean_noise = self.mean_noise if way.class_start else torch.empty(0)  # made by a pass of its own, before this one
        module, steps, samples, begin = (
            self.module,
            self.module.last_pass_steps,
            self.module.method.eot_samples,
            self.module.noise.begin_last,
        )
        module.last_pass_steps, module.method.eot_samples = steps * way.steps, way.samples
        module.source = Ensemble(self.models) if way.models > 1 else self.models[-1]
        if way.class_start:
            module.noise.begin_last = lambda batch: mean_noise[batch.labels]
        predicted = self.trainer.predict(module, datamodule=data)
        module.last_pass_steps, module.method.eot_samples, module.noise.begin_last = steps, samples, begin
        images, labels = np.empty_like(data.split("train").images), data.split("train").labels
        for batch in predicted:
            images[batch.indices.numpy()] = to_array(batch.images)
        return Split(images, labels)

    @cached_property
    def mean_noise(self) -> Tensor:
        """The mean noise of each class of the half that it was trained on, float ``[classes, C, H, W]``."""
        clean, noisy = self.data.split("train"), self.protected(self.data, Way())
        noise = (noisy.images.astype(np.float32) - clean.images) / 255
        means = [noise[clean.labels[:, 0] == label].mean(axis=0) for label in range(self.data.num_classes)]
        return torch.from_numpy(np.moveaxis(np.stack(means), -1, 1).copy())


def halves(data: ImageDataModule, images: int | None, seed: int) -> tuple[Split, Split]:
    """Return two halves of the training images, or of so many of them, class by class."""
    train, rng = data.split("train"), np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(np.flatnonzero(train.labels[:, 0] == label)) for label in range(data.num_classes)])
    if images is not None:
        order = order[np.linspace(0, len(order) - 1, images).astype(int)]
    first, second = (np.sort(order[start::2]) for start in (0, 1))
    return tuple(Split(np.asarray(train.images[rows]), train.labels[rows]) for rows in (first, second))


def measured(data: ImageDataModule, options: argparse.Namespace) -> Split:
    """Return the test images, or so many of them."""
    test = data.split("test")
    rows = np.linspace(0, len(test) - 1, options.test_images or len(test)).astype(int)
    return Split(np.asarray(test.images[rows]), test.labels[rows])


def both(first: Split, second: Split) -> Split:
    """Return the images of two halves together."""
    return Split(np.concatenate([first.images, second.images]), np.concatenate([first.labels, second.labels]))


def trainings(method: str, data: ImageDataModule, seed: int, options: argparse.Namespace) -> Iterator[tuple[str, str, object]]:
    """Yield what victims train on: who protected B, whether A is there, too, and how to make the images."""
    first, second = halves(data, options.images, seed)
    of_a, of_b = (Images(data, half, measured(data, options), seed) for half in (first, second))

    @cache
    def generator(name: str) -> Generator:
        with tempfile.TemporaryDirectory() as folder:
            return Generator(method, {"A": of_a, "B": of_b}[name], options, Path(folder))

    @cache
    def protected(name: str, half: str, way: Way = Way()) -> Split:  # noqa: B008 (a tuple)
        return generator(name).protected({"A": of_a, "B": of_b}[half], way)

    plain = next(iter(WAYS))
    yield CLEAN, "B", lambda: second
    yield OWN, "B", lambda: protected("B", "B")
    yield plain, "B", lambda: protected("A", "B")
    yield plain, "A and B", lambda: both(protected("A", "A"), protected("A", "B"))
    yield OWN, "A and B", lambda: both(protected("A", "A"), protected("B", "B"))
    yield CLEAN, "A and B", lambda: both(first, second)
    for name in options.ways:
        yield name, "B", lambda way=WAYS[name]: protected("A", "B", way)


def accuracy(train: Split, data: ImageDataModule, seed: int, options: argparse.Namespace) -> float:
    """Train a victim, and return its accuracy on the clean test split."""
    settings = VictimSettings(options.victim, options.width, options.victim_steps, options.precision, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        victim = train_victim(
            settings,
            Images(data, train, measured(data, options), seed),
            Path(folder),
            "victim",
            Path(folder, "run"),
            accelerator="cpu",
        )
    return victim.results["test"]["acc"]


def table(rows: list[dict[str, str]]) -> str:
    """Return the means over the seeds, with their spread."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        of = found.setdefault((row["method"], row["protected_by"]), {})
        of.setdefault(row["trained_on"], []).append(float(row["accuracy"]))
    lines = [(*key, spread(of.get("B", [])), spread(of.get("A and B", []))) for key, of in found.items()]
    return markdown_table(("noise", "B protected by", "victim on B, %", "on A and B, %"), lines, left=2)


def main() -> None:
    """Train the victims that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--ways", nargs="*", default=[], choices=WAYS, help="what may help to protect B with A's generator")
    parser.add_argument("--images", type=int, help="of the training split; all of them by default")
    parser.add_argument("--test_images", type=int, help="of the test split; all of them by default")
    parser.add_argument("--size", type=int, help="working size of a folder")
    parser.add_argument("--source_model", default="cnn")
    parser.add_argument("--source_width", type=float, default=0.25)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--updates_per_visit", type=int, default=5)
    parser.add_argument("--victim", default="resnet18")
    parser.add_argument("--width", type=float, default=0.25, help="of the victims")
    parser.add_argument("--victim_steps", type=int, default=400)
    parser.add_argument("--precision", default="32-true", help="of the victims: 32-true or bf16-mixed")
    options = parser.parse_args()
    quieten()
    data = named_images(options.data, options.size).load()
    rows = list(csv.DictReader(options.out.open(encoding="utf-8"))) if options.out.exists() else []
    known = {tuple(row[name] for name in COLUMNS[:-1]) for row in rows}
    for seed in options.seeds:
        for method in options.methods:
            for protected_by, trained_on, make in trainings(method, data, seed, options):
                key = ("none" if protected_by == CLEAN else method, str(seed), protected_by, trained_on)
                if key in known:
                    continue
                row = dict(zip(COLUMNS, (*key, f"{accuracy(make(), data, seed, options):.4f}"), strict=True))
                known.add(key)
                rows.append(row)
                with options.out.open("a", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, COLUMNS)
                    if len(rows) == 1:
                        writer.writeheader()
                    writer.writerow(row)
                print(*row.values(), sep=", ", flush=True)
    majority = majority_baseline(data.split("test").labels, data.task, data.num_classes)
    print(f"{table(rows)}\n\nmajority class {majority:.1%}")


if __name__ == "__main__":
    main()
