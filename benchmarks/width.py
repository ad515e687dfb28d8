r"""Draw the trend with width: a victim's accuracy on BloodMNIST where source model and victim are so wide, beside the paper's width 1.

It reads the ``results.csv`` of sweeps whose grids hold ``victim.model.width``, one for each width; a point for each seed. Example::

    for width in 0.125 0.25 0.5; do
        salm-cli sweep --config sweep/methods.yaml --out lightning_logs/width_$width --generator.model.width $width \
            --grid.victim.model.width "[$width]" --grid.generator.model.method "[EM, SALM]" --grid.seed "[0]" \
            --generator.trainer.max_steps 5000 --generator.trainer.precision bf16-mixed \
            --victim.trainer.max_steps 5000 --victim.trainer.precision bf16-mixed
    done
    python benchmarks/width.py lightning_logs/width_*/results.csv --out docs/figures/width.png
"""

from __future__ import annotations

from pathlib import Path

from frontier import drawing_parser, finished, save
from matplotlib.figure import Figure

from salm_lightning.metrics.figures import CLEAN, COLORS, MARKERS, accuracy_axis, new_figure, styled
from salm_lightning.reproduce.paper import figure as paper

NAMES = {"clean": "clean images", "EM": "EM", "SALM": "SALM, K = 10"}
PAPER = {name: paper("table1_methods", name.lower(), dataset="BloodMNIST") for name in NAMES}
"""Table 1 of the paper, BloodMNIST, width 1: accuracy in percent by what the victim was trained on."""

Points = dict[str, list[tuple[float, float]]]


def read(paths: list[Path]) -> tuple[Points, float]:
    """Return width and accuracy in percent of each victim, by what it was trained on, and the share of the majority class."""
    rows = finished(paths)
    points: Points = {name: [] for name in NAMES}
    for row in rows:
        points[row["generator.model.method"] or "clean"].append((float(row["victim.model.width"]), 100 * float(row["accuracy"])))
    return points, float(rows[0]["majority"])


@styled
def draw(points: Points, majority: float) -> Figure:
    """Draw accuracy over width; the paper's points are hollow."""
    figure = new_figure(4.0)
    axes = figure.subplots()
    for color, marker, (name, found) in zip((CLEAN, *COLORS[1:]), MARKERS, points.items(), strict=False):
        axes.plot(*zip(*sorted(found), strict=True), color=color, marker=marker, label=NAMES[name])
        axes.plot(1, PAPER[name], color=color, marker=marker, markerfacecolor="none", linestyle="none")
    axes.set_xscale("log", base=2)
    accuracy_axis(axes, majority)
    axes.set(xlabel="width of source model and victim (hollow: the paper, width 1)")
    figure.legend(loc="outside lower center", ncols=len(points))
    return figure


def main() -> None:
    """Print the points as a Markdown table, and draw them."""
    options = drawing_parser(__doc__).parse_args()
    points, majority = read(options.results)
    widths = sorted({width for found in points.values() for width, _ in found})
    print(f"| trained on | {' | '.join(f'{width:g}' for width in widths)} | 1, the paper |\n|{'---|' * (len(widths) + 2)}")
    for name, found in points.items():
        cells = [", ".join(f"{accuracy:.1f}" for at, accuracy in found if at == width) for width in widths]
        print(f"| {NAMES[name]} | {' | '.join(cells)} | {PAPER[name]} |")
    save(draw(points, majority), options.out)


if __name__ == "__main__":
    main()
