r"""Draw the README's picture from a result of ``salm-cli protect``: images, their noise, and what a model learns from either.

Example::

    salm-cli protect bloodmnist --config quickstart.yaml --method EM --method.noise_per class --source_model resnet18 --steps 200 \
        --updates_per_visit 1 --out lightning_logs/overview
    python benchmarks/overview_figure.py lightning_logs/overview --source bloodmnist --out docs/figures/overview.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from salm_lightning.audit.figures import noise_image, noise_limit
from salm_lightning.audit.pairs import Pairs
from salm_lightning.metrics.figures import CLEAN, PROTECTED, accuracy_axis, new_figure, short, styled
from salm_lightning.release import PoisonedDataModule

COLORS = {"clean": CLEAN, "protected": PROTECTED}
KINDS = ("original", "noise", "protected")
MOST_CLASSES = 5


def learning_curve(folder: Path) -> tuple[list[int], list[float]]:
    """Return the steps of a victim's validations, and its accuracy on the clean test split after each in percent."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload().Scalars("test_curve/acc")
    return [event.step for event in events], [100 * event.value for event in events]


def draw_images(grid: NDArray[np.object_], pairs: Pairs) -> None:
    """Draw an image of each class: the original, its noise (black and white are the largest change), the protected image."""
    names, positions = pairs.one_per_class()
    original, protected = pairs.at(positions[: grid.shape[1]])
    limit = noise_limit(original, protected)
    for column, (before, after) in enumerate(zip(original, protected, strict=True)):
        for axes, image in zip(grid[:, column], (before, noise_image(before, after, limit), after), strict=True):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        grid[0, column].set_title(short(names[column], 16), fontsize=9)
    for axes, kind in zip(grid[:, 0], KINDS, strict=True):
        axes.set_ylabel(kind, fontsize=9)


def draw_curves(axes: Axes, folder: Path) -> None:
    """Draw what a model that is trained on either learns, on clean test images."""
    for name, color in COLORS.items():
        steps, accuracy = learning_curve(folder / f"victim-{name}")
        axes.plot(steps, accuracy, color=color, label=f"trained on {name} images: {accuracy[-1]:.0f} %")
    results = json.loads((folder / "victim-clean" / "results.json").read_text(encoding="utf-8"))
    accuracy_axis(axes, results["majority"])
    axes.set(xlabel="training step", title="What a model learns", xlim=(0, None))
    axes.legend(loc="center right", fontsize=9)


@styled
def draw(folder: Path, pairs: Pairs) -> Figure:
    """Draw both halves."""
    figure = new_figure(3.5, width=11.0)
    images, curves = figure.subfigures(1, 2, width_ratios=(1.35, 1))
    columns = min(MOST_CLASSES, len(pairs.one_per_class()[0]))
    draw_images(images.subplots(3, columns, squeeze=False), pairs)
    draw_curves(curves.subplots(), folder)
    return figure


def main() -> None:
    """Read the result, draw it, and print the figures that the picture shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="Folder of a finished `salm-cli protect`.")
    parser.add_argument("--source", required=True, help="What was protected: a MedMNIST name, or an .npz file.")
    parser.add_argument("--out", type=Path, required=True, help="Where the picture goes.")
    options = parser.parse_args()
    release = options.result / "protected"
    pairs = Pairs(release, PoisonedDataModule(release).open_original(options.source).load())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(options.result, pairs).savefig(options.out, dpi=110)
    for name in COLORS:
        print(f"trained on {name} images: {learning_curve(options.result / f'victim-{name}')[1][-1]:.1f} %")
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
