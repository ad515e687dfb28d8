"""Figures of accuracies: learning curves, batteries, and the accuracy over K."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from salm_lightning.metrics.figures import CLEAN, COLORS, MARKERS, PROTECTED, WIDTH, accuracy_axis, new_figure, short, styled


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


def _legend_below(figure: Figure, axes: Axes) -> None:
    """Put one legend under everything, each label once."""
    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    columns = max(1, min(len(entries), int(WIDTH * 9 / (max(map(len, entries)) + 6))))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)
