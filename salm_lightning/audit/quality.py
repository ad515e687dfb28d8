"""Whether protected images are still useful: similarity, segmentation, readability, and what the noise looks like."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from salm_lightning.audit.album import Album
from salm_lightning.audit.networks import readability
from salm_lightning.audit.pairs import Pairs
from salm_lightning.audit.pictures import draw_examples, draw_features, draw_segmentation, draw_similarity
from salm_lightning.audit.results import ComparedRelease, Extremes, Quality, Segmentation
from salm_lightning.audit.segmentation import Segmenter, compare_masks
from salm_lightning.audit.separability import linear_separability
from salm_lightning.audit.similarity import DISTANCES, PerImage, Similarity, summarise
from salm_lightning.data import ImageDataModule
from salm_lightning.errors import ReleaseError


def assess(
    release: Path,
    source: ImageDataModule,
    out: Path,
    classifier: nn.Module | None = None,
    segmenter: Segmenter | None = None,
    max_images: int | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
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
        on_progress: Called with the number of images compared so far, and of all.

    Raises:
        ReleaseError: The release is damaged, or ``source`` is not what it was made from.
        ConfigurationError: An argument is out of range.
    """
    pairs = Pairs(release, source, max_images, seed)
    sha256 = pairs.manifest.archive.sha256
    meter, compared, done = Similarity(), [], 0
    for original, protected in pairs.chunks():
        meter.update(original, protected)
        if segmenter is not None:
            compared.append(compare_masks(segmenter(original), segmenter(protected)))
        done += len(original)
        on_progress(done, len(pairs))
    similarity = meter.per_image()
    masks = {name: np.concatenate([chunk[name] for chunk in compared]) for name in (compared[0] if compared else ())}
    readable = None
    if classifier is not None:
        readable = readability(classifier, pairs)
    else:
        with suppress(ReleaseError):  # such as of another release
            before = Quality.read(out, sha256)
            readable = before.readable if before else None
    result = Quality(
        release=ComparedRelease(sha256),
        images=len(pairs),
        protected_images=pairs.protected_images,
        similarity=_summary(similarity, pairs.rows),
        segmentation=None if segmenter is None else Segmentation(segmenter.name, **_summary(masks, pairs.rows)),  # type: ignore[arg-type]
        readable=readable,
        linear_separability=linear_separability(pairs, seed),
    )
    result.write(out)
    album = Album(out, sha256)
    draw_examples(album, pairs)
    draw_similarity(album, pairs, similarity)
    if segmenter is not None:
        draw_segmentation(album, pairs, segmenter, masks)
    if classifier is not None:
        draw_features(album, pairs, classifier, seed)
    album.show()
    return result


def _summary(per_image: PerImage, rows: NDArray[np.int64]) -> dict[str, Extremes | None]:
    return {name: summarise(values, rows, high_is_bad=name in DISTANCES) for name, values in per_image.items()}
