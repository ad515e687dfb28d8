"""What countermeasures and networks are called for people, in pictures and reports."""

from __future__ import annotations

import re

from salm_lightning.audit.results import NONE

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
    "noaugment": "no augmentation",
    "medmnistrecipe": "MedMNIST's recipe",
    "adamwrecipe": "AdamW with strong augmentation",
    "logisticregression": "logistic regression",
    "randomforest": "random forest",
    "nearestneighbours": "nearest neighbours",
    "hogsvm": "HOG with a linear SVM",
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


def named(text: str) -> str:
    """Return a text of an audit with countermeasures and networks under their names, without options of the command line."""
    first, space, rest = text.partition(" ")
    text = _FIRST_WORDS.get(first, first) + space + rest
    return _NAMED.sub(lambda found: _NAMES[found[0]], _OPTIONS.sub("", text))
