"""Draw what sparsity costs: a victim's accuracy over the share of changed pixels, the PSNR and the SSIM of its release.

It reads the ``results.csv`` of sweeps; a line through the points of each radius, one point for each release, seeds included. Example::

    salm-cli sweep --config sweep/strict.yaml
    python benchmarks/frontier.py lightning_logs/sweep_strict/results.csv --out docs/figures/strict_frontier.png
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

from salm_lightning.metrics.figures import CLEAN, COLORS, MARKERS, accuracy_axis, new_figure, styled

AXES = {"changed_share": "changed pixels (%)", "psnr": "PSNR (dB)", "ssim": "SSIM"}
"""Columns of results.csv, and what they are called in the figure."""

Row = dict[str, str]


def finished(paths: Iterable[Path]) -> list[Row]:
    """Return the lines of the finished victims in the results of sweeps."""
    return [row for path in paths for row in csv.DictReader(path.open(encoding="utf-8")) if row["status"] == "done"]


def read(paths: Iterable[Path]) -> tuple[list[Row], list[float]]:
    """Return the finished victims on releases, and the accuracies of those on clean images."""
    rows = finished(paths)
    return [row for row in rows if row["release"]], [float(row["accuracy"]) for row in rows if not row["release"]]


def radius(row: Row) -> int:
    """Return the largest change of a release, in grey levels."""
    return int(row["linf"])


@styled
def draw(rows: list[Row], clean: list[float]) -> Figure:
    """Draw accuracy over each of ``AXES``, a series for each radius."""
    figure = new_figure(3.6, width=11.0)
    panels = figure.subplots(1, len(AXES), sharey=True)
    for axes, (column, title) in zip(panels, AXES.items(), strict=True):
        scale = 100 if column == "changed_share" else 1
        for number, (level, group) in enumerate(groupby(sorted(rows, key=radius), radius)):
            points = sorted((scale * float(row[column]), 100 * float(row["accuracy"])) for row in group)
            axes.plot(*zip(*points, strict=True), color=COLORS[1 + number], marker=MARKERS[number], label=f"radius {level}")
        for value in clean:
            axes.axhline(100 * value, color=CLEAN, label="clean images")
        accuracy_axis(axes, float(rows[0]["majority"]))
        axes.set(xlabel=title)
        axes.label_outer()
    handles, labels = panels[0].get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=len(entries))
    return figure


def drawing_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a script that draws the results of sweeps."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="results.csv of one or more sweeps on one dataset.")
    parser.add_argument("--out", type=Path, required=True, help="Where the picture goes.")
    return parser


def save(figure: Figure, path: Path) -> None:
    """Write a figure into a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print the points as a Markdown table, and draw them."""
    parser = drawing_parser(__doc__)
    options = parser.parse_args()
    rows, clean = read(options.results)
    if not rows:
        parser.error(f"{', '.join(map(str, options.results))}: no victim on a release has finished.")
    print("| method | changed pixels, % | PSNR, dB | SSIM | accuracy |\n|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (radius(row), float(row["changed_share"]))):
        share, accuracy = (100 * float(row[name]) for name in ("changed_share", "accuracy"))
        print(
            f"| {row['generator.model.method']} | {share:.1f} | {float(row['psnr']):.1f} | {float(row['ssim']):.3f} | {accuracy:.1f} |"
        )
    save(draw(rows, clean), options.out)


if __name__ == "__main__":
    main()
