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
from salm_lightning.audit.results import AuditResult, Matrix
from salm_lightning.audit.segmentation import Segmenter
from salm_lightning.audit.similarity import DISTANCES, NAMES, summarise
from salm_lightning.metrics.figures import confusion_figure
from salm_lightning.metrics.style import CLEAN, PROTECTED

_PerImage = dict[str, NDArray[np.float64]]
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


def draw_extremes(album: Album, pairs: Pairs, similarity: _PerImage) -> None:
    """Draw the median and the least similar pair by SSIM."""
    chosen = _median_and_last(-similarity["ssim"])
    names = [
        f"{kind}\nimage {pairs.rows[place]}\nSSIM {similarity['ssim'][place]:.3f}\nPSNR {similarity['psnr'][place]:.1f} dB"
        for kind, place in chosen.items()
    ]
    original, protected = pairs.at(np.array(list(chosen.values())))
    album.add(
        "extremes",
        pairs_figure(original, protected, names),
        "The typical and the worst image",
        "The protected images of median and of least structural similarity (SSIM) to their originals, with their position in the "
        f"training split. Black and white in the noise are {noise_limit(original, protected)} of 255 grey levels.",
    )


def draw_worst(album: Album, pairs: Pairs, similarity: _PerImage) -> None:
    """Draw the worst image of each measure; measures with the same one share a row, and those that are equal everywhere have none."""
    found: dict[int, list[str]] = {}
    for name, values in similarity.items():
        summary = summarise(values, np.arange(len(values)), high_is_bad=name in DISTANCES)
        if summary is not None and (values != values[0]).any():
            found.setdefault(summary.worst_index, []).append(f"{NAMES[name]} {summary.worst:.4g}")
    if not found:
        return
    original, protected = pairs.at(np.array(list(found)))
    album.add(
        "worst",
        pairs_figure(original, protected, [f"image {pairs.rows[place]}\n" + "\n".join(named) for place, named in found.items()]),
        "The worst image of each measure",
        "The protected images that are least like their originals, each by the measures on its left, with their position in the training "
        f"split. Black and white in the noise are {noise_limit(original, protected)} of 255 grey levels.",
    )


def draw_segmentation(album: Album, pairs: Pairs, segmenter: Segmenter, masks: _PerImage) -> None:
    """Draw the median and the most changed segmentation."""
    chosen = _median_and_last(masks["changed_share"])
    names = [
        f"{kind}\nimage {pairs.rows[place]}\n{masks['changed_share'][place]:.1%} of pixels\nDice {masks['dice'][place]:.3f}"
        for kind, place in chosen.items()
    ]
    original, protected = pairs.at(np.array(list(chosen.values())))
    album.add(
        "segmentation",
        segmentation_figure(original, protected, segmenter(original), segmenter(protected), names),
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
    album = Album(out, result.release.archive_sha256)
    if result.rows:
        _draw_battery(album, result)
    if result.curves:
        _draw_curves(album, result)
    matrices = {"protected": result.confusion.protected, "clean": result.confusion.clean} if result.confusion else {}
    for trained_on, matrix in matrices.items():
        if matrix is not None and result.confusion is not None:
            _draw_confusion(album, trained_on, matrix, result.confusion.class_names)
    album.show()


def _draw_battery(album: Album, result: AuditResult) -> None:
    title = _titles(result)
    bars = [
        Bar(title(row.title, row.arch), row.protected.acc, row.clean.acc if row.clean else (), row.worst) for row in result.rows
    ]
    album.add(
        "battery",
        battery_figure(bars, result.majority),
        "What each attempt to learn from the protected images reaches",
        "Accuracy on clean test images of models trained on protected images (circles) and, treated alike, on clean ones (squares); "
        "a mark per seed. The worst case is in bold, the dotted line is what always answering the most common class reaches.",
    )


def _draw_curves(album: Album, result: AuditResult) -> None:
    title, panels = _titles(result), dict[str, list[Curve]]()
    for curve in result.curves:
        line = Curve(curve.trained_on, curve.steps, curve.test_acc, _COLORS[curve.trained_on])
        panels.setdefault(title(curve.countermeasure, curve.arch), []).append(line)
    first = next(iter(panels))
    album.add(
        "curves",
        curves_figure({first: panels[first]}, result.majority),
        "Learning curves",
        f"{first}: accuracy on clean test images while training on clean and on protected images.",
    )
    if len(panels) > 1:
        album.add(
            "curves-all",
            curves_figure(panels, result.majority),
            "Learning curves of every countermeasure",
            "The same for every countermeasure and architecture.",
        )


def _titles(result: AuditResult) -> Callable[[str, str], str]:
    """Return what names a row or a curve: its countermeasure's title, and the architecture where there are several."""
    several = len({row.arch for row in result.rows}) > 1
    return lambda title, arch: f"{title}, {arch}" if several else title


def _draw_confusion(album: Album, trained_on: str, matrix: Matrix, class_names: Sequence[str]) -> None:
    album.add(
        f"confusion-{trained_on}",
        confusion_figure(matrix, class_names),
        f"Answers of a model trained on {trained_on} images",
        "Confusion matrix on clean test images: a row for each true class, a column for each answer; numbers are images.",
    )


def _median_and_last(badness: NDArray[np.float64]) -> dict[str, int]:
    order = np.argsort(badness, kind="stable")
    return {"typical": int(order[(len(order) - 1) // 2]), "worst": int(order[-1])}
