"""What all figures have in common, and that of a confusion matrix: letters that can be read on a phone, colours for the colour-blind."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from salm_lightning.tensors import Tensor, torch

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
_ANSWERS = ("no:\nright", "no:\nwrong", "yes:\nmissed", "yes:\nfound")
CLEAN, PROTECTED, MAJORITY = COLORS[0], COLORS[1], "0.4"


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure, in inches, whose parts make room for each other."""
    return Figure(figsize=(width, height), layout="constrained")


def short(name: str, width: int, lines: int = 2) -> str:
    """Break a name into lines and cut what does not fit, first of all what stands in brackets; dollars begin no formula."""
    whole = textwrap.wrap(name, width, max_lines=lines, placeholder="…")
    kept = whole if "…" not in whole[-1] else textwrap.wrap(name.partition("(")[0], width, max_lines=lines, placeholder="…")
    return "\n".join(kept).replace("$", r"\$")


def accuracy_axis(axes: Axes, majority: float, *, horizontal: bool = False) -> None:
    """Make an axis one of accuracy in percent, 0 to 100, with the line of the majority class (in [0, 1])."""
    if horizontal:
        axes.axvline(100 * majority, color=MAJORITY, linestyle=":", label="majority class")
        axes.set(xlim=(0, 101), xlabel="accuracy on clean test images (%)")
        return
    axes.axhline(100 * majority, color=MAJORITY, linestyle=":", label="majority class")
    axes.set(ylim=(0, 101), ylabel="accuracy (%)")


@styled
def confusion_figure(matrix: ArrayLike, class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix (paper: Fig. 6): the share of the true class as the shade, counts as text.

    Args:
        matrix: Integer counts, rows true and columns predicted: ``[C, C]``, or ``[L, 2, 2]`` for a multi-label task, which
            becomes a table of one row per label.
        class_names: One name per class or label; long ones are cut.

    Raises:
        ValueError: The number of names is not the number of classes or labels.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    if len(class_names) != len(counts):
        raise ValueError(f"class_names has {len(class_names)} names for a matrix of {len(counts)} classes; give one per class.")
    shares = counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)
    rows, columns = [short(name, 24, 1) for name in class_names], list(_ANSWERS)
    labels = counts.ndim == 3
    if not labels:
        rows, columns = [f"{name}  {number}" for number, name in enumerate(rows)], [str(number) for number in range(len(rows))]
    counts, shares = (values.reshape(len(rows), -1) for values in (counts, shares))
    figure = new_figure(1.1 + 0.4 * len(rows))
    axes = figure.subplots()
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        ink = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=ink, fontsize=10)
    axes.set_yticks(range(len(rows)), rows, fontsize=10)
    axes.set_xticks(range(len(columns)), columns, fontsize=10)
    axes.set(xlabel="answer" if labels else "predicted class (number)", ylabel="label" if labels else "true class")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="share of the true class (%)")
    return figure


def confusion_image(matrix: Tensor, class_names: Sequence[str]) -> Tensor:
    """Return the picture that :func:`confusion_figure` draws, uint8 ``[3, H, W]`` in RGB."""
    canvas = FigureCanvasAgg(confusion_figure(matrix.detach().cpu().numpy(), class_names))
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.array(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return torch.from_numpy(pixels[..., :3]).permute(2, 0, 1).contiguous()
