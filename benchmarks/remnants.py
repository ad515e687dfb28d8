"""What image treatments leave of a release's noise: its size, and how much it is still the same noise.

Protected images and originals are treated alike, and their difference is compared with the untreated one: *size* is the ratio of the root
mean squares, *likeness* the cosine between the two. Noise in colours alone does not survive ``Grey``, smooth noise survives every filter;
what a victim learns from what is left is for ``salm-cli audit`` to say. Example::

    python benchmarks/remnants.py lightning_logs/bloodmnist-em/protected --source bloodmnist
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

from salm_lightning.audit.cells import title_of
from salm_lightning.audit.originals import require_original
from salm_lightning.audit.pairs import Pairs
from salm_lightning.data.arrays import to_tensor
from salm_lightning.release import PoisonedDataModule
from salm_lightning.training import open_original
from salm_lightning.treatments import JPEG, BitDepth, Gaussian, Grey, ImageTreatment, Mean, Median, Resample, TotalVariation

TREATMENTS = (
    Grey(), JPEG(quality=10), JPEG(quality=50), JPEG(quality=90), BitDepth(), Mean(), Median(), Gaussian(), Resample(), TotalVariation()
)  # fmt: skip


def remnant(treatment: ImageTreatment, originals: Tensor, protected: Tensor) -> tuple[float, float]:
    """Return size and likeness of what a treatment leaves of the noise between two stacks of images, uint8 ``[B, C, H, W]``."""
    noise = protected.float() - originals.float()
    left = treatment.prepare(protected).float() - treatment.prepare(originals).float()
    size = left.norm() / noise.norm()
    return float(size), float((left * noise).sum() / (left.norm() * noise.norm()))


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
    source = open_original(options.source, None, release.manifest)
    require_original(source, release)
    pairs = Pairs(options.release, source, options.images)
    originals, protected = (to_tensor(images) for images in pairs.at(slice(None)))
    print(
        f"{len(pairs)} images, noise of {(protected.float() - originals.float()).square().mean().sqrt():.2f} grey levels (rms)\n"
    )
    print("| treatment | size | likeness |\n|---|---|---|")
    for treatment in TREATMENTS:
        size, likeness = remnant(treatment, originals, protected)
        print(f"| {title_of(treatment)} | {size:.2f} | {likeness:.2f} |")


if __name__ == "__main__":
    main()
