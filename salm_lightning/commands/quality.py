"""``salm-cli quality``: whether protected images are still useful."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salm_lightning.console import cell, command, progress, say
from salm_lightning.errors import ConfigurationError
from salm_lightning.files import locked

if TYPE_CHECKING:
    from rich.table import Table

    from salm_lightning.audit.results import Quality

_TITLES = {
    "ssim": "structural similarity (SSIM)",
    "psnr": "signal to noise (PSNR, dB)",
    "ahash": "average hash, equal bits",
    "phash": "perceptual hash, equal bits",
    "dhash": "difference hash, equal bits",
    "nmi": "mutual information (NMI)",
    "linf": "largest change (l-inf)",
    "l0": "changed pixels (l0)",
    "changed_share": "changed share of the pixels",
}
_MASK_TITLES = {"changed_share": "pixels whose class changes", "dice": "overlap of the masks (Dice)"}
_SHARES = {"ahash", "phash", "dhash", "changed_share"}


def quality(
    release: Path,
    source: str | None = None,
    segmenter: str = "otsu",
    out: Path | None = None,
    max_images: int | None = None,
    root: Path | None = None,
    seed: int = 0,
    keep_out: str | None = None,
) -> None:
    """Measure whether protected images are still useful: similarity, segmentation, pictures.

    Args:
        release: Folder of the protected dataset; of a protected folder of images the result, which holds ``protected``.
        source: The data that it was made from: a MedMNIST name, an ``.npz`` file, a folder, or ``synthetic``.
        segmenter: ``otsu`` (cells), ``vessels``, ``ARCH:PATH`` for a state dict of one of torchvision's segmentation networks, such as
            ``deeplabv3_resnet50:weights.pth``, or ``torchscript:PATH`` for a TorchScript file, which is code: it can do whatever you can.
        out: Folder of the results; ``audit`` beside the release by default.
        max_images: Look at a random sample of at most so many images, for large datasets; by default at all of an ``.npz`` release, and at
            500 of a folder's, which are compared at their own size.
        root: Folder of MedMNIST's files; ``SALM_DATA_ROOT``, else ``~/.medmnist``.
        seed: Settles the sample and what is held out of it.
        keep_out: Masks or boxes that a folder was protected with, to draw them.

    Raises:
        SalmError: An argument is wrong, or ``source`` is not what the release was made from.
    """
    if source is None:
        raise ConfigurationError(
            "source is missing: give the originals, as in --source pathmnist, --source my.npz or --source scans."
        )
    import numpy as np
    from rich.console import Console

    from salm_lightning.audit.pairs import check_sample
    from salm_lightning.audit.pictures import BOARD
    from salm_lightning.audit.quality import assess
    from salm_lightning.audit.releases import open_release
    from salm_lightning.audit.results import audit_folder
    from salm_lightning.audit.segmentation import open_segmenter

    check_sample(max_images)
    chosen = open_segmenter(segmenter)
    opened = open_release(release)
    images = opened.originals(source, root, keep_out=keep_out)
    chosen(np.asarray(images.split("train").images[:1]))  # refuses what it cannot take
    folder, most = audit_folder(release, out), max_images or opened.most_compared
    with locked(folder, "audit"), progress("comparing images") as on_progress:
        result = assess(
            release,
            images,
            folder,
            segmenter=chosen,
            max_images=most,
            seed=seed,
            on_progress=on_progress,
        )
    Console().print(quality_table(result))
    linear = result.linear_separability
    say(
        f"A linear model that sees the noise alone is right for {linear.noise_acc:.1%} of {linear.held_out} held-out images "
        f"(most common class: {linear.majority:.1%})."
        if linear
        else "A linear model on the noise alone: too few images or classes to tell."
    )
    say(f"Results:  {folder}/quality.json\nPictures: {folder}/pictures ({command('tensorboard', '--logdir', folder / BOARD)})")
    say("Private:  the pictures show original images; they are not for publication")


def quality_table(result: Quality) -> Table:
    """Return a table of what ``quality.json`` holds on similarity and segmentation."""
    from rich.table import Table

    def figure(name: str, value: float) -> str:
        return f"{value:.1%}" if name in _SHARES else f"{value:.1f}" if name in ("psnr", "linf", "l0") else f"{value:.4f}"

    of = "" if result.images == result.protected_images else f" of {result.protected_images}"
    table = Table(title=f"{result.images}{of} protected images against their originals")
    which = "its file" if any(measure and measure.worst_file for measure in result.similarity.values()) else "its index"
    for heading in ("", "mean", "worst 5 %", "worst image", which):
        table.add_column(heading, justify="right" if heading else "left")
    sections: list[tuple[str, Mapping[str, str], Mapping[str, Any]]] = [("", _TITLES, result.similarity)]
    if result.segmentation is not None:
        sections.append((f"segmentation ({result.segmentation.segmenter})", _MASK_TITLES, vars(result.segmentation)))
    for heading, titles, measures in sections:
        if heading:
            table.add_section()
            table.add_row(f"[bold]{cell(heading)}")
        for name, title in titles.items():
            measure = measures[name]
            cells = (
                ["identical"] if measure is None else [figure(name, value) for value in (measure.mean, measure.p5, measure.worst)]
            )
            levels = f", of {result.white}" if name == "linf" else ""
            table.add_row(title + levels, *cells, *([cell(measure.worst_file or str(measure.worst_index))] if measure else []))
    return table
