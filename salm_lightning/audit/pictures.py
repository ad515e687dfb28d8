"""The pictures of an audit: which are drawn, from what, and what is written beneath them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from salm_lightning.audit.album import Album
from salm_lightning.audit.charts import Bar, Curve, battery_figure, curves_figure
from salm_lightning.audit.image_figures import (
    embed,
    examples_figure,
    noise_limit,
    pairs_figure,
    segmentation_figure,
    tsne_figure,
)
from salm_lightning.audit.networks import features_of
from salm_lightning.audit.pairs import Pairs
from salm_lightning.audit.results import AuditResult
from salm_lightning.audit.segmentation import Segmenter
from salm_lightning.audit.similarity import DISTANCES, NAMES, PerImage, summarise
from salm_lightning.metrics.figures import CLEAN, PROTECTED, confusion_figure

_MOST_POINTS = 500  # pairs, so a thousand images
_COLORS = {"clean": CLEAN, "protected": PROTECTED}


def draw_examples(album: Album, pairs: Pairs) -> None:
    """Draw an image of each class with its noise."""
    names, positions = pairs.one_per_class()
    original, protected = pairs.at(positions)
    limit = noise_limit(original, protected)
    album.add(
        "examples",
        examples_figure(original, protected, names),
        "Original, noise and protected image",
        f"One training image of each class. The noise is amplified: grey is no change, black and white are {limit} of 255 grey levels.",
    )


def draw_similarity(album: Album, pairs: Pairs, similarity: PerImage) -> None:
    """Draw the median and the least similar pair by SSIM, and the worst image of each measure.

    Measures with the same worst image share a row, and those that are equal everywhere have none.
    """

    def draw(name: str, rows: Sequence[tuple[int, str]], title: str, which: str) -> None:
        original, protected = pairs.at(np.array([place for place, _ in rows]))
        album.add(
            name,
            pairs_figure(original, protected, [text for _, text in rows]),
            title,
            f"The protected images {which}, with their position in the training split. Black and white in the noise are "
            f"{noise_limit(original, protected)} of 255 grey levels.",
        )

    ssim, psnr = similarity["ssim"], similarity["psnr"]
    draw(
        "extremes",
        _median_and_last(pairs, -ssim, lambda place: f"SSIM {ssim[place]:.3f}\nPSNR {psnr[place]:.1f} dB"),
        "The typical and the worst image",
        "of median and of least structural similarity (SSIM) to their originals",
    )
    found: dict[int, str] = {}
    for name, values in similarity.items():
        summary = summarise(values, np.arange(len(values)), high_is_bad=name in DISTANCES)
        if summary is not None and (values != values[0]).any():
            place = summary.worst_index
            found[place] = f"{found.get(place, f'image {pairs.rows[place]}')}\n{NAMES[name]} {summary.worst:.4g}"
    if found:
        draw(
            "worst",
            list(found.items()),
            "The worst image of each measure",
            "that are least like their originals, each by the measures on its left",
        )


def draw_segmentation(album: Album, pairs: Pairs, segmenter: Segmenter, masks: PerImage) -> None:
    """Draw the median and the most changed segmentation."""
    changed, dice = masks["changed_share"], masks["dice"]
    rows = _median_and_last(pairs, changed, lambda place: f"{changed[place]:.1%} of pixels\nDice {dice[place]:.3f}")
    original, protected = pairs.at(np.array([place for place, _ in rows]))
    album.add(
        "segmentation",
        segmentation_figure(original, protected, segmenter(original), segmenter(protected), [text for _, text in rows]),
        "What segmentation sees",
        f"Outlines found by {segmenter.name} in the images whose segmentation changes by the median and by the most; pixels that change "
        "are in colour on the right.",
    )


def draw_features(album: Album, pairs: Pairs, classifier: nn.Module, seed: int) -> None:
    """Draw clean and protected images where a classifier's features put them; nothing for fewer than two images."""
    if len(pairs) < 2:
        return
    positions = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:_MOST_POINTS])
    clean, protected = (features_of(classifier, images) for images in pairs.at(positions))
    album.add(
        "features",
        tsne_figure(embed(clean, protected, seed), pairs.classes[positions], pairs.class_names),
        "Where a model puts the images",
        f"t-SNE of what the last layer of a clean-trained classifier takes, for {len(positions)} training images and their protected "
        "versions, in one plane. Where both panels look alike, a clean model sees the same in both.",
    )


def draw_audit(result: AuditResult, out: Path) -> None:
    """Draw the battery, learning curves and confusion matrices of an audit into ``out/pictures``, and for TensorBoard.

    Raises:
        DataError: ``out`` holds a ``pictures.json`` that cannot be read.
    """
    album, confusion = Album(out, result.release.archive_sha256), result.confusion
    several = len({row.arch for row in result.rows}) > 1

    def named(title: str, arch: str) -> str:
        return f"{title}, {arch}" if several else title

    if result.rows:
        bars = [
            Bar(named(row.title, row.arch), row.protected.acc, row.clean.acc if row.clean else (), row.worst)
            for row in result.rows
        ]
        album.add(
            "battery",
            battery_figure(bars, result.majority),
            "What each attempt to learn from the protected images reaches",
            "Accuracy on clean test images of models trained on protected images (circles) and, treated alike, on clean ones (squares); "
            "a mark per seed. The worst case is in bold, the dotted line is what always answering the most common class reaches.",
        )
    panels: dict[str, list[Curve]] = {}
    for curve in result.curves:
        line = Curve(curve.trained_on, curve.steps, curve.test_acc, _COLORS[curve.trained_on])
        panels.setdefault(named(curve.countermeasure, curve.arch), []).append(line)
    if panels:
        first = next(iter(panels))
        figure = curves_figure({first: panels[first]}, result.majority)
        caption = f"{first}: accuracy on clean test images while training on clean and on protected images."
        album.add("curves", figure, "Learning curves", caption)
    if len(panels) > 1:
        figure = curves_figure(panels, result.majority)
        caption = "The same for every countermeasure and architecture."
        album.add("curves-all", figure, "Learning curves of every countermeasure", caption)
    matrices = {"protected": confusion.protected, "clean": confusion.clean} if confusion else {}
    for trained_on, matrix in matrices.items():
        if confusion and matrix is not None:
            album.add(
                f"confusion-{trained_on}",
                confusion_figure(matrix, confusion.class_names),
                f"Answers of a model trained on {trained_on} images",
                "Confusion matrix on clean test images: a row for each true class, a column for each answer; numbers are images.",
            )
    album.show()


def _median_and_last(pairs: Pairs, badness: NDArray[np.float64], text: Callable[[int], str]) -> list[tuple[int, str]]:
    """Return the places of the median and of the worst image, and what stands beside them."""
    order = np.argsort(badness, kind="stable")
    chosen = {"typical": int(order[(len(order) - 1) // 2]), "worst": int(order[-1])}
    return [(place, f"{kind}\nimage {pairs.rows[place]}\n{text(place)}") for kind, place in chosen.items()]
