"""Show how long ``salm-cli inspect`` or ``protect`` takes on folders of many images, and that memory and time per image do not grow.

Made-up images (grey noise, each another one) are written as PNG into class folders with splits above, then the command runs on each folder;
``protect`` with 20 steps and without a proof. The peak of the resident memory (Linux) is that of the process and its workers, each by
itself, and the largest counts. Examples::

    python benchmarks/folder.py --images 10000 100000
    python benchmarks/folder.py --command protect --images 2000 20000 --size 512
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

OPTIONS = {"inspect": [], "protect": ["--out", "result", "--steps", "20", "--proof", "false"]}
CLASSES, SPLITS = 10, {"train": 0.7, "val": 0.1, "test": 0.2}


def write_images(folder: Path, images: int, size: int) -> None:
    """Write images of noise, so that no two are the same."""
    rng, number = np.random.default_rng(0), 0
    for split, share in SPLITS.items():
        for count in range(round(share * images)):
            place = folder / split / f"class{count % CLASSES}"
            if count < CLASSES:
                place.mkdir(parents=True)
            picture = Image.fromarray(rng.integers(0, 256, (size, size), np.uint8))
            picture.save(place / f"{number}.png", compress_level=0)
            number += 1


def main() -> None:
    """Time the command on each folder and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", choices=list(OPTIONS), default="inspect")
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10000], help="Images of each folder.")
    parser.add_argument("--size", type=int, default=64, help="Height and width in pixels.")
    given = parser.parse_args()
    for images in given.images:
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            write_images(place / "scans", images, given.size)
            begin = time.perf_counter()
            command = [sys.executable, "-m", "salm_lightning", given.command, str(place / "scans"), *OPTIONS[given.command]]
            environment = os.environ | {"SALM_CACHE_DIR": str(place / "cache")}
            done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment)
            seconds = time.perf_counter() - begin
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(
            f"{images} images: {seconds:.1f} s, {1000 * seconds / images:.2f} ms an image, at most {most:.0f} MB a process",
            flush=True,
        )


if __name__ == "__main__":
    main()
