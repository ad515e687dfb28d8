"""What image countermeasures leave of a release's noise: its size, and how much it is still the same noise.

Protected images and originals are treated alike, and their difference is compared with the untreated one: *size* is the ratio of the root
mean squares, *likeness* the cosine between the two. Noise in colours alone does not survive ``Grey``, smooth noise survives every filter;
what a victim learns from what is left is for ``salm-cli audit`` to say. Example::

    python benchmarks/remnants.py lightning_logs/bloodmnist-em/protected --source bloodmnist
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from salm_lightning.audit.pairs import Pairs
from salm_lightning.audit.trials import title_of
from salm_lightning.countermeasures import (
    JPEG,
    BitDepth,
    Gaussian,
    Grey,
    ImageCountermeasure,
    Mean,
    Median,
    Resample,
    TotalVariation,
)
from salm_lightning.data.arrays import to_tensor
from salm_lightning.release import PoisonedDataModule

COUNTERMEASURES = (
    Grey(), JPEG(quality=10), JPEG(quality=50), JPEG(quality=90), BitDepth(), Mean(), Median(), Gaussian(), Resample(), TotalVariation()
)  # fmt: skip


def difference(originals: Tensor, protected: Tensor) -> Tensor:
    """Return the noise of images, in grey levels, as float64."""
    return protected.double() - originals.double()


def sums(countermeasure: ImageCountermeasure, originals: Tensor, protected: Tensor) -> Tensor:
    """Return the sums of squares of the noise and of what is left of it, and the sum of their products, float64 ``[3]``."""
    noise, left = (
        difference(originals, protected),
        difference(countermeasure.prepare(originals), countermeasure.prepare(protected)),
    )
    return torch.stack([noise.square().sum(), left.square().sum(), (noise * left).sum()])


def remnant(countermeasure: ImageCountermeasure, chunks: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Return size and likeness of what is left of the noise between originals and protected images, uint8 ``[B, C, H, W]``."""
    noise, left, products = torch.stack([sums(countermeasure, *chunk) for chunk in chunks]).sum(0)
    return float((left / noise).sqrt()), float(products / (left * noise).sqrt())


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("release", type=Path, help="Folder of the protected dataset.")
    parser.add_argument("--source", required=True, help="What it was made from: a MedMNIST name, an .npz file, or synthetic.")
    parser.add_argument("--images", type=int, default=2000, help="Random sample of at most so many images.")
    options = parser.parse_args()
    release = PoisonedDataModule(options.release)
    pairs = Pairs(options.release, release.open_original(options.source).load(), options.images)
    chunks = [(to_tensor(originals), to_tensor(protected)) for originals, protected in pairs.chunks()]
    squares = sum(float(difference(*chunk).square().sum()) for chunk in chunks)
    values = sum(originals.numel() for originals, _ in chunks)
    print(f"{len(pairs)} images, noise of {math.sqrt(squares / values):.2f} grey levels (rms)\n")
    print("| countermeasure | size | likeness |\n|---|---|---|")
    for countermeasure in COUNTERMEASURES:
        size, likeness = remnant(countermeasure, chunks)
        print(f"| {title_of(countermeasure)} | {size:.2f} | {likeness:.2f} |")


if __name__ == "__main__":
    main()
