"""What all figures have in common: size, letters that can be read on a phone, colours that colour-blind people can tell apart."""

from __future__ import annotations

import textwrap

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 6.0
"""Inches; letters of 12 points are then a thirty-sixth of a figure's width."""
styled = rc_context(
    {
        "font.size": 12,
        "axes.titlesize": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "lines.linewidth": 2,
    }
)
"""Decorator of functions that draw; matplotlib's settings are left as they were."""
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's, but for their yellow, which nobody sees on white."""
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
CLEAN, PROTECTED, MAJORITY = COLORS[0], COLORS[1], "0.4"


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure, in inches, whose parts make room for each other."""
    return Figure(figsize=(width, height), layout="constrained")


def short(name: str, width: int, lines: int = 2) -> str:
    """Break a name into lines and cut what does not fit, first of all what stands in brackets."""
    whole = textwrap.wrap(name, width, max_lines=lines, placeholder="…")
    return "\n".join(
        whole if "…" not in whole[-1] else textwrap.wrap(name.partition("(")[0], width, max_lines=lines, placeholder="…")
    )


def accuracy_axis(axes: Axes, majority: float, *, horizontal: bool = False) -> None:
    """Make an axis one of accuracy in percent, 0 to 100, with the line of the majority class (in [0, 1])."""
    if horizontal:
        axes.axvline(100 * majority, color=MAJORITY, linestyle=":", label="majority class")
        axes.set(xlim=(0, 101), xlabel="accuracy on clean test images (%)")
        return
    axes.axhline(100 * majority, color=MAJORITY, linestyle=":", label="majority class")
    axes.set(ylim=(0, 101), ylabel="accuracy (%)")
