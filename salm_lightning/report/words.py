"""What a report says in plain words about verdicts, methods, measures, networks and countermeasures."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from salm_lightning.audit.results import CARELESS, FAILS, NONE, NOT_JUDGED, PROTECTS, UNTRIED

MISSING = "n/a"
"""Stands where there is no number."""


@dataclass(frozen=True)
class Verdict:
    """A verdict as people read it.

    Attributes:
        heading: The verdict.
        tone: Its colour: ``good``, ``part``, ``bad`` or ``open``.
        meaning: What it says.
        steps: What to do, in sentences.
    """

    heading: str
    tone: str
    meaning: str
    steps: tuple[str, ...]


_KEEP = "Keep the originals to yourself: whoever gets them can train on them, whatever becomes of this copy."
_ANEW = "Protect anew, with noise that is trained longer, a larger change per pixel, or another method; then audit again."
NOT_AUDITED = Verdict(
    "none yet",
    "open",
    "This release has not been audited. Nothing on this page shows that it protects.",
    ("Do not publish on the strength of this page.", "Have the release audited, and make this report again.", _KEEP),
)
VERDICTS = {
    PROTECTS: Verdict(
        PROTECTS,
        "good",
        "Nothing that was tried made the protected images useful for training.",
        (
            "Read what this page does not show. If that is acceptable, this copy can be published.",
            "Publish it under a licence that forbids training: the noise does not replace it.",
            _KEEP,
        ),
    ),
    UNTRIED: Verdict(
        UNTRIED,
        "part",
        "The protected images are of little use to somebody who trains on them as they are. Whether somebody who knows of the noise gets "
        "around it has not been tried.",
        ("Before you publish, have it tried what somebody does who knows of the noise: a longer audit does that.", _KEEP),
    ),
    CARELESS: Verdict(
        CARELESS,
        "part",
        "The protected images are of little use to somebody who trains on them as they are. Somebody who knows of the noise and takes the "
        "steps named below can learn from them.",
        (
            "Publish this copy only if careless use is all that you want to stop.",
            f"Against people who make an effort do not rely on it. {_ANEW}",
            _KEEP,
        ),
    ),
    FAILS: Verdict(
        FAILS,
        "bad",
        "A model that trains on the protected images as they are becomes useful. Do not rely on this release.",
        ("Do not publish this copy as protected.", _ANEW, _KEEP),
    ),
    NOT_JUDGED: Verdict(
        NOT_JUDGED,
        "open",
        "The audit has not come to a verdict. Nothing on this page shows that this release protects.",
        (
            "Do not publish on the strength of this page.",
            "Let the audit run to its end, with the originals and with models that are trained longer: it can judge only if a model learns "
            "something from the originals.",
            _KEEP,
        ),
    ),
}
"""Verdicts by the audit's word."""

_COUNTERMEASURES = {
    NONE: "no countermeasure",
    "mean": "mean filter",
    "median": "median filter",
    "gaussian": "Gaussian filter",
    "grey": "greyscale",
    "resample": "scaling down and up",
}
"""Countermeasures whose names are words of any language: they are replaced at the beginning of a title alone."""
_NAMES = {
    "jpeg": "JPEG compression",
    "centercrop": "cropping",
    "bitdepth": "fewer grey levels",
    "cutmix": "CutMix",
    "strongaugment": "strong augmentation",
    "uerasermax": "UEraser-Max",
    "adversarialtraining": "adversarial training",
    "orthogonalprojection": "orthogonal projection",
    "totalvariation": "total variation denoising",
    "finetune": "fine-tuning",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "densenet121": "DenseNet-121",
    "vgg11": "VGG-11",
    "vit": "vision transformer",
    "otsu": "Otsu's threshold",
}
_NAMED = re.compile(rf"\b({'|'.join(_NAMES)})\b")
_OPTIONS = re.compile(r" \(--\w+\)|, with --\w+ if it did not name them")


def named(text: str) -> str:
    """Return a text of an audit with countermeasures and networks under their names, without options of the command line."""
    first, space, rest = text.partition(" ")
    text = _COUNTERMEASURES.get(first, first) + space + rest
    return _NAMED.sub(lambda found: _NAMES[found[0]], _OPTIONS.sub("", text))


@dataclass(frozen=True)
class Paper:
    """A method as people know it.

    Attributes:
        title: Its name.
        idea: What it does, in a sentence.
        reference: Where it was published.
        url: Where that can be read.
    """

    title: str
    idea: str
    reference: str
    url: str


METHODS = {
    "salm": Paper(
        "SALM (Sparsity-Aware Local Masking)",
        "Each image gets its own noise, which makes the image too easy to learn: a model that trains on it picks up the noise instead of "
        "the medical content. Every step of making the noise moves only the part of the image that matters most to a model.",
        "Sun, Liu, Yan, Xu and Sun: Medical Unlearnable Examples: Securing Medical Data from Unauthorized Training via Sparsity-Aware "
        "Local Masking (2024), arXiv 2403.10573",
        "https://arxiv.org/abs/2403.10573",
    ),
    "em": Paper(
        "EM (error-minimising noise)",
        "Noise makes the images too easy to learn: a model that trains on them picks up the noise instead of the medical content.",
        "Huang, Ma, Erfani, Bailey and Wang: Unlearnable Examples: Making Personal Data Unexploitable (ICLR 2021), arXiv 2101.04898",
        "https://arxiv.org/abs/2101.04898",
    ),
    "tap": Paper(
        "TAP (targeted adversarial poisoning)",
        "Each image gets noise that shows a model features of another class, so that a model that trains on it learns wrong features.",
        "Fowl, Goldblum, Chiang, Geiping, Czaja and Goldstein: Adversarial Examples Make Strong Poisons (NeurIPS 2021), arXiv 2106.10807",
        "https://arxiv.org/abs/2106.10807",
    ),
    "sp": Paper(
        "SP (linearly separable patches)",
        "Each image gets a faint pattern of squares whose colours are a code of its class, so that a model learns the code instead of the "
        "medical content.",
        "Yu, Zhang, Chen, Yin and Liu: Availability Attacks Create Shortcuts (KDD 2022), arXiv 2111.00898",
        "https://arxiv.org/abs/2111.00898",
    ),
    "random": Paper(
        "Random noise",
        "Each image gets noise that knows nothing of models. It stands for comparison only and is not expected to protect.",
        "Sun, Liu, Yan, Xu and Sun (2024), arXiv 2403.10573, which compares with it",
        "https://arxiv.org/abs/2403.10573",
    ),
}
"""The methods of the package by the name that manifests give them."""


@dataclass(frozen=True)
class Measure:
    """A measure of similarity.

    Attributes:
        title: Its name.
        meaning: What it says, in plain words.
        better: What is better for the use of the images: ``higher`` or ``lower``.
        show: Writes a value.
    """

    title: str
    meaning: str
    better: str
    show: Callable[[float], str]


def percent(value: float | None, digits: int = 1) -> str:
    """Write a share, such as ``61.6 %``."""
    return MISSING if value is None else f"{100 * value:.{digits}f}\u202f%"


def decimals(value: float | None, digits: int = 3) -> str:
    """Write a number, such as ``0.944``."""
    return MISSING if value is None else f"{value:.{digits}f}"


_HASH = (
    "64 yes-or-no features of the image, {}; the share that original and copy have in common. Unrelated images share about half."
)

MEASURES = {
    "ssim": Measure(
        "SSIM (structural similarity)",
        "Compares brightness, contrast and structure in small windows instead of pixel by pixel. 1 means identical, 0 means nothing in "
        "common.",
        "higher",
        lambda value: f"{value:.4f}",
    ),
    "psnr": Measure(
        "PSNR (peak signal-to-noise ratio)",
        "How faint the noise is beside the brightest possible value. Every 6 dB more halve the noise; there is no upper end.",
        "higher",
        lambda value: f"{value:.1f}\u202fdB",
    ),
    "ahash": Measure("aHash (average hash)", _HASH.format("lighter or darker than the average"), "higher", percent),
    "phash": Measure("pHash (perceptual hash)", _HASH.format("taken from its coarse structure"), "higher", percent),
    "dhash": Measure("dHash (difference hash)", _HASH.format("lighter or darker than the neighbour"), "higher", percent),
    "nmi": Measure(
        "NMI (normalised mutual information)",
        "How much the copy's grey levels tell about those of the original. 1 means everything, 0 means nothing.",
        "higher",
        lambda value: f"{value:.3f}",
    ),
    "linf": Measure(
        "Largest change (l-inf)",
        "The largest change of any value of an image, in grey levels. There are 255 between black and white.",
        "lower",
        lambda value: f"{value:.1f}".removesuffix(".0"),
    ),
    "l0": Measure(
        "Changed pixels (l0)",
        "How many pixels of an image differ at all, however little.",
        "lower",
        lambda value: f"{value:.1f}".removesuffix(".0"),
    ),
    "changed_share": Measure("Share of pixels changed", "The same as a share of all pixels of the image.", "lower", percent),
}
"""The measures of ``quality.json`` in the order in which they are shown."""
DICE = Measure("Dice", "How well the outlines of original and copy overlap. 100 % means they are the same.", "higher", percent)
RESEGMENTED = Measure(
    "Share of pixels that change sides",
    "Pixels that are foreground in one and background in the other. 0 % means the outlines are the same.",
    "lower",
    percent,
)
