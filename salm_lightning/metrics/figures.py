"""Pictures of measurements, for TensorBoard; drawn with Pillow, which torchvision brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_CELL_WIDTH, _CELL_HEIGHT, _GAP = 64, 32, 8
_LONGEST_NAME = 28
_DARK = np.array([8, 64, 129])


@dataclass(frozen=True)
class ConfusionTable:
    """A confusion matrix as a table to be drawn.

    Attributes:
        counts: int64 ``[R, K]``.
        shares: Each count's share of its true class, ``[R, K]`` in [0, 1].
        rows: Names of the rows, long ones cut; for classes also their number.
        columns: Names of the columns: the classes' numbers, or for several labels per image what a yes or no came to.
    """

    counts: NDArray[np.int64]
    shares: NDArray[np.float64]
    rows: list[str]
    columns: list[str]


def confusion_table(matrix: NDArray[np.int64], class_names: Sequence[str]) -> ConfusionTable:
    """Arrange a confusion matrix for drawing.

    Args:
        matrix: Integer counts, rows true and columns predicted: ``[C, C]``, or ``[L, 2, 2]`` for a multi-label task, which
            becomes a table of one row per label.
        class_names: One name per class or label.

    Raises:
        ValueError: The number of names is not the number of classes or labels.
    """
    if len(class_names) != len(matrix):
        raise ValueError(f"class_names has {len(class_names)} names for a matrix of {len(matrix)} classes; give one per class.")
    shares = matrix / np.maximum(matrix.sum(axis=-1, keepdims=True), 1)
    names = [name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…" for name in class_names]
    if matrix.ndim == 3:
        columns = ["no: right", "no: wrong", "yes: missed", "yes: found"]
        return ConfusionTable(matrix.reshape(-1, 4), shares.reshape(-1, 4), names, columns)
    rows = [f"{name}  {number}" for number, name in enumerate(names)]
    return ConfusionTable(matrix, shares, rows, [str(number) for number in range(len(names))])


def confusion_image(matrix: Tensor, class_names: Sequence[str]) -> Tensor:
    """Draw a confusion matrix: counts as text, the share of their row (of the true class) as the shade of blue.

    Args:
        matrix: Integer counts as :func:`confusion_table` takes them.
        class_names: One name per class or label; long ones are cut.

    Returns:
        uint8 ``[3, H, W]``, an RGB picture.

    Raises:
        ValueError: The number of names is not the number of classes or labels.
    """
    table = confusion_table(matrix.detach().cpu().numpy().astype(np.int64), class_names)
    rows, columns, counts, shares = table.rows, table.columns, table.counts, table.shares
    font = ImageFont.load_default()
    left = int(max(font.getlength(name) for name in rows)) + 2 * _GAP
    top = _CELL_HEIGHT
    size = (left + _CELL_WIDTH * len(columns) + _GAP, top + _CELL_HEIGHT * len(rows) + _GAP)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for j, name in enumerate(columns):
        draw.text((left + (j + 0.5) * _CELL_WIDTH, top / 2), name, fill="black", font=font, anchor="mm")
    for i, name in enumerate(rows):
        draw.text((left - _GAP, top + (i + 0.5) * _CELL_HEIGHT), name, fill="black", font=font, anchor="rm")
        for j in range(len(columns)):
            x, y = left + j * _CELL_WIDTH, top + i * _CELL_HEIGHT
            share = float(shares[i, j])
            red, green, blue = np.rint(255 + share * (_DARK - 255)).astype(int).tolist()
            draw.rectangle((x, y, x + _CELL_WIDTH - 2, y + _CELL_HEIGHT - 2), fill=(red, green, blue))
            ink = "white" if share > 0.5 else "black"
            draw.text((x + _CELL_WIDTH / 2, y + _CELL_HEIGHT / 2), str(counts[i, j]), fill=ink, font=font, anchor="mm")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
