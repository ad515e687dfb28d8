"""How numbers and names are written for people."""

from __future__ import annotations

import re

from salm_lightning.audit.results import NONE

MISSING = "n/a"
"""Stands where there is no number."""
_FIRST_WORDS = {
    NONE: "no countermeasure",
    "mean": "mean filter",
    "median": "median filter",
    "gaussian": "Gaussian filter",
    "grey": "greyscale",
    "resample": "scaling down and up",
}
"""Countermeasures whose names any text may hold: they are replaced at the beginning of a title alone."""
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
    "cnn": "tiny CNN",
    "otsu": "Otsu's threshold",
}
_NAMED = re.compile(rf"\b({'|'.join(_NAMES)})\b")
_OPTIONS = re.compile(r" \(--\w+\)|, with --\w+ if it did not name them")


def percent(value: float | None, digits: int = 1) -> str:
    """Write a share, such as ``61.6 %``."""
    return MISSING if value is None else f"{100 * value:.{digits}f}\u202f%"


def decimals(value: float | None, digits: int = 3) -> str:
    """Write a number, such as ``0.944``."""
    return MISSING if value is None else f"{value:.{digits}f}"


def measured(value: float | None, measure: str) -> str:
    """Write a metric: an AUC as a number, all others as shares."""
    return decimals(value) if measure == "auc" else percent(value)


def named(text: str) -> str:
    """Return a text of an audit with countermeasures and networks under their names, without options of the command line."""
    first, space, rest = text.partition(" ")
    text = _FIRST_WORDS.get(first, first) + space + rest
    return _NAMED.sub(lambda found: _NAMES[found[0]], _OPTIONS.sub("", text))
