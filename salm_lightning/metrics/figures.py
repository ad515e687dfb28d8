"""The picture of a confusion matrix, for TensorBoard, audits and reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from salm_lightning.metrics.style import new_figure, short, styled

_ANSWERS = ("no:\nright", "no:\nwrong", "yes:\nmissed", "yes:\nfound")


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
