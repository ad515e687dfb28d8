"""Figures: accuracies, images with their noise and segmentations, and where a model's features put them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from salm_lightning.audit.shown import Image, Images, grey, noise_image, noise_limit
from salm_lightning.metrics.figures import CLEAN, COLORS, MARKERS, PROTECTED, WIDTH, accuracy_axis, new_figure, short, styled
from salm_lightning.models.backbones import SMALL_IMAGE

_OUTLINE = "#F0E442"
_CHANGED = np.array([213, 94, 0])
_KINDS = ("original", "noise", "protected")


@dataclass(frozen=True)
class Curve:
    """A learning curve: an accuracy in [0, 1] for each of some training steps; curves of one label share an entry of the legend."""

    label: str
    steps: Sequence[float]
    accuracy: Sequence[float]
    color: str


@dataclass(frozen=True)
class Bar:
    """A line of a battery: accuracies in [0, 1], one per seed, of what was tried, and of its clean twins if there are any."""

    label: str
    protected: Sequence[float | None]
    clean: Sequence[float | None]
    worst: bool = False


@styled
def curves_figure(panels: Mapping[str, Sequence[Curve]], majority: float) -> Figure:
    """Draw learning curves (paper: Fig. 2 and 5, left), a panel for each title."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(3.6 if len(panels) == 1 else 0.8 + 2.1 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (title, curves) in zip(grid.flat, panels.items(), strict=False):
        for curve in curves:
            axes.plot(curve.steps, 100 * np.asarray(curve.accuracy), color=curve.color, label=curve.label)
        accuracy_axis(axes, majority)
        axes.set(title=short(title, 44 // columns), xlabel="training step")
        axes.label_outer()
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    _legend_below(figure, grid.flat[0])
    return figure


@styled
def battery_figure(bars: Sequence[Bar], majority: float) -> Figure:
    """Draw what each of the things tried reaches on protected images, beside what it reaches on clean ones."""
    figure = new_figure(1.6 + 0.36 * len(bars))
    axes = figure.subplots()
    for place, bar in enumerate(bars):
        protected, clean = (100 * np.asarray(values, dtype=float) for values in (bar.protected, bar.clean))
        if len(clean):
            axes.plot([protected.mean(), clean.mean()], [place, place], color="0.8", zorder=1)
            axes.scatter(clean, [place] * len(clean), color=CLEAN, marker="s", label="trained on clean images", zorder=2)
        axes.scatter(protected, [place] * len(protected), color=PROTECTED, label="trained on protected images", zorder=3)
    accuracy_axis(axes, majority, horizontal=True)
    axes.set_yticks(range(len(bars)), [short(bar.label, 30) for bar in bars])
    for label, bar in zip(axes.get_yticklabels(), bars, strict=True):
        label.set_fontweight("bold" if bar.worst else "normal")
    axes.set(ylim=(len(bars) - 0.5, -0.5), ylabel="what was tried")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    _legend_below(figure, axes)
    return figure


@styled
def percent_figure(series: Mapping[str, Sequence[tuple[float, float]]], majority: Mapping[str, float]) -> Figure:
    """Draw the victims' accuracy over K (paper: Fig. 2, right).

    Args:
        series: Rows of (K in percent, accuracy in [0, 1]) by dataset; several rows of one K are seeds, and the line goes through their
            mean.
        majority: Accuracy of the most common class by dataset, drawn as a dotted line of the same colour.
    """
    figure = new_figure(4.0)
    axes = figure.subplots()
    for number, (name, rows) in enumerate(series.items()):
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        percents, accuracies = np.asarray(rows, dtype=float).T
        places = np.unique(percents)
        axes.plot(
            places, [100 * accuracies[percents == place].mean() for place in places], color=color, marker=marker, label=name
        )
        axes.scatter(percents, 100 * accuracies, color=color, marker=marker, s=15, alpha=0.5)
        axes.axhline(100 * majority[name], color=color, linestyle=":", linewidth=1.5)
    axes.plot([], [], color="0.4", linestyle=":", label="majority class")
    axes.set(xlabel="K: pixels that a step may move (%)", ylabel="clean test accuracy (%)", ylim=(0, 101))
    _legend_below(figure, axes)
    return figure


@styled
def examples_figure(original: Images, protected: Images, names: Sequence[str]) -> Figure:
    """Draw originals, noise and protected images below each other (paper: Fig. 8), four side by side."""
    columns = min(4, len(names))
    blocks = -(-len(names) // columns)
    side = (WIDTH - 0.4) / columns
    figure = new_figure(blocks * (3 * side + 0.5))
    grid = figure.subplots(3 * blocks, columns, squeeze=False)
    limit = noise_limit(original, protected)
    for axes in grid.flat:
        axes.set_visible(False)
    for number, name in enumerate(names):
        block, column = divmod(number, columns)
        shown = (original[number], noise_image(original[number], protected[number], limit), protected[number])
        for axes, image, label in zip(grid[3 * block : 3 * block + 3, column], shown, _KINDS, strict=True):
            axes.set_visible(True)
            _show(axes, image)
            if column == 0:
                axes.set_ylabel(label)
        grid[3 * block, column].set_title(short(name, 56 // columns))
    return figure


@styled
def pairs_figure(original: Images, protected: Images, names: Sequence[str]) -> Figure:
    """Draw a row for each pair: original, noise, protected image; the names stand on the left."""
    limit = noise_limit(original, protected)
    noise = [noise_image(*pair, limit) for pair in zip(original, protected, strict=True)]
    return _rows_figure(names, _KINDS, list(zip(original, noise, protected, strict=True)))


@styled
def kept_figure(original: Images, protected: Images, kept: Sequence[NDArray[np.bool_]], names: Sequence[str]) -> Figure:
    """Draw a row for each pair: original, noise, and in colour the pixels ``[H, W]`` that keep their values."""
    limit = noise_limit(original, protected)
    noise = [noise_image(*pair, limit) for pair in zip(original, protected, strict=True)]
    coloured = [
        np.where(mask[..., None], _CHANGED, 128 + grey(image[None])[0][..., None] // 2).astype(np.uint8)
        for mask, image in zip(kept, original, strict=True)
    ]
    return _rows_figure(names, ("original", "noise", "kept"), list(zip(original, noise, coloured, strict=True)))


@styled
def segmentation_figure(
    original: Images,
    protected: Images,
    before: Sequence[NDArray[np.int64]],
    after: Sequence[NDArray[np.int64]],
    names: Sequence[str],
) -> Figure:
    """Draw a row for each pair: both images with the outline of their foreground, and in colour the pixels whose class changes.

    Classes of their pixels before and after protection are ``[H, W]`` each.
    """
    pale = [128 + grey(image[None])[0][..., None] // 2 for image in original]
    changed = [
        np.where((was != now)[..., None], _CHANGED, shade).astype(np.uint8)
        for was, now, shade in zip(before, after, pale, strict=True)
    ]
    figure = _rows_figure(names, ("original", "protected", "changed"), list(zip(original, protected, changed, strict=True)))
    for row, masks in enumerate(zip(before, after, strict=True)):
        for column, mask in enumerate(masks):
            if len(np.unique(mask > 0)) == 2:  # a contour of nothing is a warning
                width = 2.0 if len(mask) <= SMALL_IMAGE else 0.8  # thin enough for vessels
                figure.axes[3 * row + column].contour(mask > 0, levels=[0.5], colors=_OUTLINE, linewidths=width)
    return figure


@styled
def tsne_figure(points: NDArray[np.float32], classes: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """Draw an embedding (paper: Fig. 5, right): clean images on the left, protected ones on the right, on the same axes.

    Args:
        points: ``[2, N, 2]``: of the clean images, then of the protected ones.
        classes: Class numbers, ``[N]``.
        class_names: By class number.
    """
    present = np.unique(classes)
    figure = new_figure(3.4 + 0.3 * -(-len(present) // 2))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, title, places in zip(panels, ("clean images", "protected images"), points, strict=True):
        for number in present:
            color, marker = COLORS[number % len(COLORS)], MARKERS[(number + number // len(COLORS)) % len(MARKERS)]
            x, y = places[classes == number].T
            axes.scatter(x, y, s=14, color=color, marker=marker, linewidths=0, label=short(class_names[number], 26, 1))
        axes.set(title=title, xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)", xticks=[], yticks=[])
        axes.label_outer()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=10, markerscale=2, handletextpad=0.2)
    return figure


def embed(clean: NDArray[np.float32], protected: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Embed the features of clean and protected images ``[N, D]`` in one plane by t-SNE; return ``[2, N, 2]``."""
    together = np.concatenate([clean, protected])
    tsne = TSNE(perplexity=min(30, (len(together) - 1) / 3), init="random", random_state=seed)
    points: NDArray[np.float32] = tsne.fit_transform(together)
    return points.reshape(2, len(clean), 2)


def _show(axes: Axes, image: Image) -> None:
    """Draw an image, without smoothing its pixels and without axes."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _rows_figure(names: Sequence[str], titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> Figure:
    side = (WIDTH - 1.6) / len(titles)
    figure = new_figure(0.4 + side * len(rows))
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for place, (name, images) in enumerate(zip(names, rows, strict=True)):
        for axes, title, image in zip(grid[place], titles, images, strict=True):
            _show(axes, image)
            if place == 0:
                axes.set_title(title)
        grid[place, 0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
    return figure


def _legend_below(figure: Figure, axes: Axes) -> None:
    """Put one legend under everything, each label once."""
    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    columns = max(1, min(len(entries), int(WIDTH * 9 / (max(map(len, entries)) + 6))))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)
