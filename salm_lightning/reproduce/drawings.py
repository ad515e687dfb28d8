"""The paper's figures of what has finished: learning curves, accuracy over K, t-SNE, confusion and accuracies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from salm_lightning.audit.album import Album
from salm_lightning.audit.charts import Bar, Curve, battery_figure, curves_figure, percent_figure
from salm_lightning.audit.image_figures import embed, tsne_figure
from salm_lightning.audit.networks import features_of
from salm_lightning.callbacks.checkpoint import latest_checkpoint
from salm_lightning.data import MEDMNIST, DatasetInfo, Task
from salm_lightning.metrics.figures import confusion_figure
from salm_lightning.metrics.style import COLORS
from salm_lightning.models import Architecture
from salm_lightning.release import PoisonedDataModule
from salm_lightning.reproduce.cells import CLEAN, AccuracyOn, Cell, Recipe
from salm_lightning.reproduce.settings import Dataset
from salm_lightning.reproduce.victims import Victims
from salm_lightning.sweep.job import Job
from salm_lightning.sweep.plan import PlannedVictim

_CURVE = "test_curve/acc"
_MOST_POINTS = 500
LEFT, RIGHT = "left", "right"
"""What the cells of Fig. 2 begin with."""

Finished = list[tuple[Cell, list[PlannedVictim]]]


def fig2(experiment: Victims, album: Album) -> None:
    """Draw the learning curves by method, a picture for each dataset that has them, and the accuracy by K."""
    series, majority = {}, {}
    for dataset, finished in _by_dataset(experiment):
        left, right = ([pair for pair in finished if pair[0].what.startswith(side)] for side in (LEFT, RIGHT))
        if left:
            figure = curves_figure({str(dataset): _curves(left, lambda cell: cell.method)}, _majority(left))
            caption = "Accuracy on clean test images while training (Fig. 2, left)."
            album.add(f"fig2-left-{dataset}", figure, "Learning curves by method", caption)
        if right:
            series[str(dataset)] = [(_percent(cell), _test(victim)["acc"]) for cell, victims in right for victim in victims]
            majority[str(dataset)] = _majority(right)
    if series:
        figure = percent_figure(series, majority)
        album.add("fig2-right", figure, "Accuracy by K", "K = 0 is a victim on the clean images (Fig. 2, right).")


def fig5(experiment: Victims, album: Album) -> None:
    """Draw the learning curves on the parts of a dataset, and t-SNE of clean and protected images in the model of the whole."""
    for dataset, finished in _by_dataset(experiment):
        figure = curves_figure({str(dataset): _curves(finished, lambda cell: cell.what)}, _majority(finished))
        caption = "Accuracy on clean test images while training on 20 % clean, 80 % protected images, or both (Fig. 5, left)."
        album.add(f"fig5-left-{dataset}", figure, "Learning curves by part", caption)
        whole = [victims[0].job for cell, victims in finished if cell.what == "both"]
        if whole and MEDMNIST[dataset.name].task is not Task.MULTI_LABEL:
            _draw_features(whole[0], dataset, album)


def fig6(experiment: Victims, album: Album) -> None:
    """Draw the confusion matrix of the first seed."""
    for dataset, finished in _by_dataset(experiment):
        _, victims = finished[0]
        figure = confusion_figure(_test(victims[0])["confusion"], MEDMNIST[dataset.name].class_names)
        caption = "Counts on clean test images; training images of three classes are protected (Fig. 6)."
        album.add(f"fig6-{dataset}", figure, "Predictions where three classes are protected", caption)


def fig7(experiment: Victims, album: Album) -> None:
    """Draw the accuracy on the three classes by architecture, for clean and protected training images."""
    for dataset, finished in _by_dataset(experiment):
        found: dict[str, dict[bool, list[float]]] = {}
        for cell, victims in finished:
            shares = [cell.measure(_test(victim)) / 100 for victim in victims]
            found.setdefault(victims[0].values["arch"], {})[cell.method == CLEAN] = shares
        measure = finished[0][0].measure
        assert isinstance(measure, AccuracyOn)
        bars = [Bar(arch, shares.get(False, []), shares.get(True, [])) for arch, shares in found.items()]
        figure = battery_figure(bars, measure.constant(_test(finished[0][1][0])) / 100)
        caption = (
            "Accuracy on clean test images of the three protected classes; dotted: always the most frequent of them (Fig. 7)."
        )
        album.add(f"fig7-{dataset}", figure, "Accuracy on three classes", caption)


def _by_dataset(experiment: Victims) -> Iterator[tuple[Dataset, Finished]]:
    """Yield cells with the victims that have finished, for each dataset that has any."""
    pairs = [
        (cell, [victim for victim in victims if victim.job.state().is_done])
        for cell, victims in zip(experiment.cells, experiment.victims, strict=True)
    ]
    for dataset in dict.fromkeys(cell.dataset for cell in experiment.cells):
        finished = [(cell, victims) for cell, victims in pairs if cell.dataset == dataset and victims]
        if finished:
            yield dataset, finished


def _curves(finished: Finished, label: Callable[[Cell], str]) -> list[Curve]:
    """Return a learning curve for each victim, those of a cell in one colour."""
    return [
        Curve(label(cell), *_learning_curve(victim.job), COLORS[number])
        for number, (cell, victims) in enumerate(finished)
        for victim in victims
    ]


def _learning_curve(job: Job) -> tuple[list[float], list[float]]:
    """Return steps, and accuracies on the clean test split in [0, 1]; a run that was resumed has several files of them."""
    events = EventAccumulator(str(job.folder), size_guidance={"scalars": 0}).Reload()
    points = {event.step: event.value for event in events.Scalars(_CURVE)} if _CURVE in events.Tags()["scalars"] else {}
    return [float(step) for step in sorted(points)], [points[step] for step in sorted(points)]


def _draw_features(job: Job, dataset: Dataset, album: Album) -> None:
    """Draw where a victim of a mix puts clean and protected training images, equally many of each class."""
    assert job.needs is not None
    data = PoisonedDataModule(job.needs.release)
    train, protected = data.split("train"), data.manifest.coverage.mask()
    clean_rows, protected_rows = _same_classes(train.labels[:, 0], protected)
    network = _network(job, data.info)
    features = [features_of(network, np.asarray(train.images[rows])) for rows in (clean_rows, protected_rows)]
    classes = train.labels[clean_rows, 0].astype(np.int64)
    figure = tsne_figure(embed(features[0], features[1], seed=0), classes, data.info.class_names)
    caption = "t-SNE of training images in features of the model trained on clean and protected ones together (Fig. 5, right)."
    album.add(f"fig5-right-{dataset}", figure, "Clean and protected images in one model", caption)


def _same_classes(labels: NDArray[np.integer[Any]], protected: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows of clean and of protected images, of equal classes at equal positions."""
    rng, numbers = np.random.default_rng(0), np.unique(labels)
    chosen: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    for number in numbers:
        parts = [rng.permutation(np.flatnonzero((labels == number) & (protected == side))) for side in (False, True)]
        count = min(len(parts[0]), len(parts[1]), max(1, _MOST_POINTS // len(numbers)))
        for rows, part in zip(chosen, parts, strict=True):
            rows.append(part[:count])
    return np.concatenate(chosen[0]), np.concatenate(chosen[1])


def _network(job: Job, info: DatasetInfo) -> nn.Module:
    """Return a finished victim's network."""
    options = job.settings["model"]["init_args"]
    path = latest_checkpoint(job.folder / "checkpoints")
    assert path is not None
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    network = Architecture.parse(options["arch"]).build(info.num_classes, info.channels, info.size, options["width"])
    prefix = "network."
    network.load_state_dict({name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)})
    return network


def _majority(finished: Finished) -> float:
    return float(_results(finished[0][1][0])["majority"])


def _test(victim: PlannedVictim) -> dict[str, Any]:
    found: dict[str, Any] = _results(victim)["test"]
    return found


def _results(victim: PlannedVictim) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(victim.job.product.read_text(encoding="utf-8"))
    return found


def _percent(cell: Cell) -> float:
    """Return K; clean images are K = 0."""
    assert isinstance(cell.recipe, Recipe)
    return 0.0 if cell.recipe.clean else float(cell.recipe.method["init_args"]["percent"])
