"""The paper's figures of what has finished: learning curves, accuracy over K, t-SNE, confusion and accuracies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from salm_lightning.audit.figures import Bar, Curve, battery_figure, curves_figure, embed, percent_figure, tsne_figure
from salm_lightning.audit.pictures import Album
from salm_lightning.audit.probes import features_of
from salm_lightning.callbacks.saved import latest_checkpoint
from salm_lightning.countermeasures import FineTune
from salm_lightning.data import MEDMNIST, Task
from salm_lightning.metrics.figures import COLORS, confusion_figure
from salm_lightning.models import Architecture
from salm_lightning.release import PoisonedDataModule
from salm_lightning.reproduce.cells import CLEAN, AccuracyOn, Cell, tested
from salm_lightning.reproduce.settings import Dataset
from salm_lightning.reproduce.victims import Victims
from salm_lightning.sweep.job import Job

_CURVE = "test_curve/acc"
_MOST_POINTS = 500
LEFT, RIGHT = "left", "right"
"""What the cells of Fig. 2 begin with."""


class Finished(NamedTuple):
    """A victim that has finished, its cell, and what was found on clean test images, ``majority`` beside it."""

    cell: Cell
    victim: Job
    test: dict[str, Any]


def fig2(experiment: Victims, album: Album) -> None:
    """Draw the learning curves by method, a picture for each dataset that has them, and the accuracy by K."""
    series, majority = {}, {}
    for dataset, finished in _by_dataset(experiment):
        left, right = ([one for one in finished if one.cell.what.startswith(side)] for side in (LEFT, RIGHT))
        if left:
            caption = "Accuracy on clean test images while training (Fig. 2, left)."
            figure = _curves(dataset, left, lambda cell: cell.method)
            album.add(f"fig2-left-{dataset}", figure, "Learning curves by method", caption)
        if right:
            series[str(dataset)] = [(_percent(one.cell), one.test["acc"]) for one in right]
            majority[str(dataset)] = right[0].test["majority"]
    if series:
        figure = percent_figure(series, majority)
        album.add("fig2-right", figure, "Accuracy by K", "K = 0 is a victim on the clean images (Fig. 2, right).")


def fig5(experiment: Victims, album: Album) -> None:
    """Draw the learning curves on the parts of a dataset, and t-SNE of clean and protected images in the model of the whole."""
    for dataset, finished in _by_dataset(experiment):
        caption = "Accuracy on clean test images while training on 20 % clean, 80 % protected images, or both (Fig. 5, left)."
        figure = _curves(dataset, finished, lambda cell: cell.what)
        album.add(f"fig5-left-{dataset}", figure, "Learning curves by part", caption)
        whole = next((one.victim for one in finished if one.cell.what == "both"), None)
        if whole and MEDMNIST[dataset.name].task is not Task.MULTI_LABEL:
            seen = "t-SNE of training images in features of the model trained on clean and protected ones together"
            figure = _features(whole)
            album.add(f"fig5-right-{dataset}", figure, "Clean and protected images in one model", f"{seen} (Fig. 5, right).")


def fig6(experiment: Victims, album: Album) -> None:
    """Draw the confusion matrix of the first seed."""
    for dataset, finished in _by_dataset(experiment):
        caption = "Counts on clean test images; training images of three classes are protected (Fig. 6)."
        figure = confusion_figure(finished[0].test["confusion"], MEDMNIST[dataset.name].class_names)
        album.add(f"fig6-{dataset}", figure, "Predictions where three classes are protected", caption)


def fig7(experiment: Victims, album: Album) -> None:
    """Draw the accuracy on the three classes by architecture, for clean and protected training images."""
    for dataset, finished in _by_dataset(experiment):
        found: dict[str, dict[bool, list[float]]] = {}
        for cell, victim, test in finished:
            of_arch = found.setdefault(victim.values["arch"], {True: [], False: []})
            of_arch[cell.method == CLEAN].append(cell.measure(test) / 100)
        measure = finished[0].cell.measure
        assert isinstance(measure, AccuracyOn)
        bars = [Bar(arch, shares[False], shares[True]) for arch, shares in found.items()]
        figure = battery_figure(bars, measure.constant(finished[0].test) / 100)
        caption = (
            "Accuracy on clean test images of the three protected classes; dotted: always the most frequent of them (Fig. 7)."
        )
        album.add(f"fig7-{dataset}", figure, "Accuracy on three classes", caption)


def _by_dataset(experiment: Victims) -> Iterator[tuple[Dataset, list[Finished]]]:
    """Yield the victims that have finished, in the order of their cells, for each dataset that has any."""
    found: dict[Dataset, list[Finished]] = {}
    for cell, victims in zip(experiment.cells, experiment.victims, strict=True):
        for victim in victims:
            run = tested(victim.state(), victim.product)
            if run.is_done:
                found.setdefault(cell.dataset, []).append(Finished(cell, victim, run.results))
    yield from found.items()


def _curves(dataset: Dataset, finished: list[Finished], label: Callable[[Cell], str]) -> Figure:
    """Return a figure with a learning curve for each victim, those of a cell in one colour."""
    labels = list(dict.fromkeys(label(one.cell) for one in finished))
    curves = [Curve(label(one.cell), *_learning_curve(one.victim), COLORS[labels.index(label(one.cell))]) for one in finished]
    return curves_figure({str(dataset): curves}, finished[0].test["majority"])


def _learning_curve(job: Job) -> tuple[list[float], list[float]]:
    """Return steps, and accuracies on the clean test split in [0, 1]; a run that was resumed has several files of them."""
    events = EventAccumulator(str(job.folder), size_guidance={"scalars": 0}).Reload()
    points = {event.step: event.value for event in events.Scalars(_CURVE)} if _CURVE in events.Tags()["scalars"] else {}
    return [float(step) for step in sorted(points)], [points[step] for step in sorted(points)]


def _features(job: Job) -> Figure:
    """Return a figure of where a victim of a mix puts clean and protected training images, equally many of each class."""
    path = latest_checkpoint(job.folder / "checkpoints")
    assert job.needs is not None
    assert path is not None
    data, options = PoisonedDataModule(job.needs.release), job.settings["model"]["init_args"]
    train, info = data.split("train"), data.info
    network = Architecture.parse(options["arch"]).build(info.num_classes, info.channels, info.size, options["width"])
    FineTune(str(path)).initialise(network)
    rows = _same_classes(train.labels[:, 0], data.manifest.coverage.mask())
    clean, protected = (features_of(network, np.asarray(train.images[part])) for part in rows)
    return tsne_figure(embed(clean, protected, seed=0), train.labels[rows[0], 0].astype(np.int64), info.class_names)


def _same_classes(labels: NDArray[np.integer[Any]], protected: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Return rows of clean and of protected images, of equal classes at equal positions."""
    rng, numbers = np.random.default_rng(0), np.unique(labels)
    chosen = []
    for number in numbers:
        parts = [rng.permutation(np.flatnonzero((labels == number) & (protected == side))) for side in (False, True)]
        count = min(*map(len, parts), max(1, _MOST_POINTS // len(numbers)))
        chosen.append([part[:count] for part in parts])
    return [np.concatenate(rows) for rows in zip(*chosen, strict=True)]


def _percent(cell: Cell) -> float:
    """Return K; clean images are K = 0."""
    return 0.0 if cell.recipe.clean else float(cell.recipe.method["init_args"]["percent"])
