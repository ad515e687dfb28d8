"""Whether protected images are still useful: similarity, segmentation, readability, and what the noise looks like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from salm_lightning.audit.album import Album
from salm_lightning.audit.networks import readability
from salm_lightning.audit.pairs import Pairs
from salm_lightning.audit.pictures import draw_examples, draw_extremes, draw_features, draw_segmentation, draw_worst
from salm_lightning.audit.results import ComparedRelease, Extremes, Quality, Readability, Segmentation
from salm_lightning.audit.segmentation import Segmenter, compare_masks
from salm_lightning.audit.separability import linear_separability
from salm_lightning.audit.similarity import DISTANCES, Similarity, summarise
from salm_lightning.data import ImageDataModule
from salm_lightning.errors import ReleaseError

Progress = Callable[[int, int], None]
"""Called with the number of pairs compared so far, and of all."""


def assess(
    release: Path,
    source: ImageDataModule,
    out: Path,
    classifier: nn.Module | None = None,
    segmenter: Segmenter | None = None,
    max_images: int | None = None,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Quality:
    """Measure what protection did to the images; write ``quality.json``, ``pictures/*.png`` and ``pictures.json``.

    Args:
        release: Folder of the release.
        source: The data that it was made from.
        out: Folder of the results.
        classifier: A model trained on clean images that takes ``[B, C, H, W]`` in [0, 1]; ``None`` leaves readability as an earlier call
            has measured it, and the picture of its features as well.
        segmenter: ``None`` leaves segmentation out.
        max_images: Look at a random sample of at most so many of the protected images, for large datasets; ``None`` looks at all.
        seed: Settles samples.
        on_progress: Called now and then while images are compared.

    Raises:
        ReleaseError: The release is damaged, or ``source`` is not what it was made from.
        ConfigurationError: An argument is out of range.
    """
    pairs = Pairs(Path(release), source, max_images, seed)
    similarity, masks = _compare(pairs, segmenter, on_progress)
    sha256 = pairs.manifest.archive.sha256
    result = Quality(
        release=ComparedRelease(sha256),
        images=len(pairs),
        protected_images=pairs.protected_images,
        similarity=_summary(similarity, pairs.rows),
        segmentation=None if segmenter is None else Segmentation(segmenter.name, **_summary(masks, pairs.rows)),  # type: ignore[arg-type]
        readable=_measured_before(Path(out), sha256) if classifier is None else readability(classifier, pairs),
        linear_separability=linear_separability(pairs, seed),
    )
    result.write(Path(out))
    album = Album(Path(out), sha256)
    draw_examples(album, pairs)
    draw_extremes(album, pairs, similarity)
    draw_worst(album, pairs, similarity)
    if segmenter is not None:
        draw_segmentation(album, pairs, segmenter, masks)
    if classifier is not None:
        draw_features(album, pairs, classifier, seed)
    album.show()
    return result


def _measured_before(out: Path, archive_sha256: str) -> Readability | None:
    """Return the readability that stands in ``quality.json``, if that is about the same release."""
    try:
        before = Quality.read(out, archive_sha256)
    except ReleaseError:
        return None
    return before.readable if before else None


_PerImage = dict[str, NDArray[np.float64]]


def _compare(pairs: Pairs, segmenter: Segmenter | None, on_progress: Progress | None) -> tuple[_PerImage, _PerImage]:
    """Return the measures of similarity and of segmentation of each pair."""
    similarity, masks, done = Similarity(), [], 0
    for original, protected in pairs.chunks():
        similarity.update(original, protected)
        if segmenter is not None:
            masks.append(compare_masks(segmenter(original), segmenter(protected)))
        done += len(original)
        if on_progress is not None:
            on_progress(done, len(pairs))
    joined = {name: np.concatenate([chunk[name] for chunk in masks]) for name in (masks[0] if masks else ())}
    return similarity.per_image(), joined


def _summary(per_image: _PerImage, rows: NDArray[np.int64]) -> dict[str, Extremes | None]:
    return {name: summarise(values, rows, high_is_bad=name in DISTANCES) for name, values in per_image.items()}
