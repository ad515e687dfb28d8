"""Whether protected images are still useful: similarity, segmentation, readability, and what the noise looks like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from salm_lightning.audit.figures import embed, examples_figure, kept_figure, pairs_figure, segmentation_figure, tsne_figure
from salm_lightning.audit.file_pairs import FilePairs
from salm_lightning.audit.measuring import joined, measure
from salm_lightning.audit.pairs import Compared, Pairs
from salm_lightning.audit.pictures import Album
from salm_lightning.audit.probes import features_of, linear_separability, readability
from salm_lightning.audit.releases import open_release
from salm_lightning.audit.results import ComparedRelease, Extremes, Quality, Segmentation
from salm_lightning.audit.segmentation import Segmenter
from salm_lightning.audit.shown import Image, eight_bits, noise_limit
from salm_lightning.audit.similarity import DISTANCES, NAMES, PerImage, summarise
from salm_lightning.console import visible
from salm_lightning.data import FolderDataModule, ImageDataModule
from salm_lightning.errors import ReleaseError
from salm_lightning.files import write_csv
from salm_lightning.metrics.figures import short

_KEPT_SHOWN = 4
"""Images that are drawn of which pixels keep their values."""

FILES = "quality.csv"
"""A line for each compared image of a folder."""
_MOST_POINTS = 500  # pairs, so a thousand images


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

    The files of a folder's result are compared as they are stored, each of its own size, and ``quality.csv`` has a line for each; what
    models make of the images is measured at the size of ``source``.

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
    opened = open_release(release)
    pairs = Pairs(release, source, max_images, seed)
    shown = (
        FilePairs(release, source, max_images, seed)
        if isinstance(source, FolderDataModule) and opened.kind == "folder"
        else pairs
    )
    measured, done = [], 0
    for part in shown.map(partial(measure, shown.white, segmenter)):
        measured.append(part)
        done += len(part.similarity["ssim"])
        on_progress(done, len(shown))
    similarity, masks = (joined([part[number] for part in measured]) for number in (0, 1))
    readable = None
    if classifier is not None:
        readable = readability(classifier, pairs)
    else:
        with suppress(ReleaseError):  # such as of another release
            before = Quality.read(out, opened.sha256)
            readable = before.readable if before else None
    result = Quality(
        release=ComparedRelease(opened.sha256),
        images=len(shown),
        protected_images=shown.protected_images,
        similarity=_summary(similarity, shown),
        segmentation=None if segmenter is None else Segmentation(segmenter.name, **_summary(masks, shown)),  # type: ignore[arg-type]
        readable=readable,
        linear_separability=linear_separability(pairs, seed),
        white=shown.white,
    )
    result.write(out)
    if shown is not pairs:
        _write_files(out / FILES, shown, similarity, masks)
    album = Album(out, opened.sha256)
    _draw_examples(album, shown)
    _draw_similarity(album, shown, similarity)
    if isinstance(shown, FilePairs):
        _draw_kept(album, shown)
    if segmenter is not None:
        _draw_segmentation(album, shown, segmenter, masks)
    if classifier is not None:
        _draw_features(album, pairs, classifier, seed)
    album.show()
    return result


def _write_files(path: Path, pairs: Compared, similarity: PerImage, masks: PerImage) -> None:
    """Write a line for each image of a folder."""
    values = similarity | {f"segmentation_{name}": of_all for name, of_all in masks.items()}
    lines = (
        {"file": visible(pairs.file(place)), **{name: of_all[place] for name, of_all in values.items()}}
        for place in range(len(pairs))
    )
    write_csv(path, ("file", *values), lines)


def _summary(per_image: PerImage, pairs: Compared) -> dict[str, Extremes | None]:
    found = {name: summarise(values, np.arange(len(values)), high_is_bad=name in DISTANCES) for name, values in per_image.items()}
    return {
        name: one and replace(one, worst_index=int(pairs.rows[one.worst_index]), worst_file=pairs.file(one.worst_index))
        for name, one in found.items()
    }


def _seen(pairs: Compared, positions: NDArray[np.integer]) -> tuple[list[Image], list[Image]]:
    """Return the originals and the protected images at some positions as they are shown, uint8."""
    original, protected = ([eight_bits(image, pairs.white) for image in images] for images in pairs.at(positions))
    return original, protected


def _draw_examples(album: Album, pairs: Compared) -> None:
    """Draw an image of each class with its noise."""
    names, positions = pairs.one_per_class()
    original, protected = _seen(pairs, positions)
    limit = noise_limit(original, protected)
    album.add(
        "examples",
        examples_figure(original, protected, names),
        "Original, noise and protected image",
        f"One image of each class. The noise is amplified: grey is no change, black and white are {limit} of 255 grey levels.",
    )


def _draw_kept(album: Album, pairs: FilePairs) -> None:
    """Draw images of which pixels keep their values, if there are any."""
    known = [(position, pairs.kept(position)) for position in pairs.with_kept_pixels(_KEPT_SHOWN)]
    if shown := [(position, mask) for position, mask in known if mask.any()]:
        positions = np.array([position for position, _ in shown])
        names = [f"{short(pairs.name(position), 16)}\n{mask.mean():.0%} kept" for position, mask in shown]
        album.add(
            "kept",
            kept_figure(*_seen(pairs, positions), [mask for _, mask in shown], names),
            "What was kept as it is",
            "In colour: pixels without noise, because they are transparent, padding or outside of ultrasound regions, or were kept out."
            + (
                " Boxes, or masks that lie elsewhere, are drawn by salm-cli quality with --keep_out."
                if pairs.regions_missing
                else ""
            ),
        )


def _draw_similarity(album: Album, pairs: Compared, similarity: PerImage) -> None:
    """Draw the median and the least similar pair by SSIM, and the worst image of each measure.

    Measures with the same worst image share a row, and those that are equal everywhere have none.
    """

    def draw(name: str, rows: Sequence[tuple[int, str]], title: str, which: str) -> None:
        original, protected = _seen(pairs, np.array([place for place, _ in rows]))
        known_by = "names" if pairs.file(0) else "position in the training split"
        caption = (
            f"The protected images {which}, with their {known_by}. Black and white in the noise are "
            f"{noise_limit(original, protected)} of 255 grey levels."
        )
        album.add(name, pairs_figure(original, protected, [text for _, text in rows]), title, caption)

    ssim, psnr = similarity["ssim"], similarity["psnr"]
    rows = _median_and_last(pairs, -ssim, lambda place: f"SSIM {ssim[place]:.3f}\nPSNR {psnr[place]:.1f} dB")
    which = "of median and of least structural similarity (SSIM) to their originals"
    draw("extremes", rows, "The typical and the worst image", which)
    found: dict[int, str] = {}
    for name, values in similarity.items():
        summary = summarise(values, np.arange(len(values)), high_is_bad=name in DISTANCES)
        if summary is not None and (values != values[0]).any():
            place = summary.worst_index
            found[place] = f"{found.get(place, short(pairs.name(place), 18, 3))}\n{NAMES[name]} {summary.worst:.4g}"
    if found:
        which = "that are least like their originals, each by the measures on its left"
        draw("worst", list(found.items()), "The worst image of each measure", which)


def _draw_segmentation(album: Album, pairs: Compared, segmenter: Segmenter, masks: PerImage) -> None:
    """Draw the median and the most changed segmentation."""
    changed, dice = masks["changed_share"], masks["dice"]
    rows = _median_and_last(pairs, changed, lambda place: f"{changed[place]:.1%} of pixels\nDice {dice[place]:.3f}")
    original, protected = _seen(pairs, np.array([place for place, _ in rows]))
    before, after = ([segmenter(image[None])[0] for image in images] for images in (original, protected))
    album.add(
        "segmentation",
        segmentation_figure(original, protected, before, after, [text for _, text in rows]),
        "What segmentation sees",
        f"Outlines found by {segmenter.name} in the images whose segmentation changes by the median and by the most; pixels that change "
        "are in colour on the right.",
    )


def _draw_features(album: Album, pairs: Pairs, classifier: nn.Module, seed: int) -> None:
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


def _median_and_last(pairs: Compared, badness: NDArray[np.float64], text: Callable[[int], str]) -> list[tuple[int, str]]:
    """Return the places of the median and of the worst image, and what stands beside them."""
    order = np.argsort(badness, kind="stable")
    chosen = {"typical": int(order[(len(order) - 1) // 2]), "worst": int(order[-1])}
    return [(place, f"{kind}\n{short(pairs.name(place), 18, 3)}\n{text(place)}") for kind, place in chosen.items()]
