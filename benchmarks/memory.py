"""Show that memory is bounded by the batch and not by the dataset: the peak anonymous memory of 224-pixel runs of two sizes.

Fake RGB images in MedMNIST's layout are written, then ``salm-cli fit`` runs on each file: training steps that visit every image
once, a checkpoint with all their noise, the last pass, the release. Where images and noise live is left to the package. The peak of
``RssAnon`` (Linux) is read ten times a second, of the process alone and summed with its workers', where what they share with the
process is counted for each. With ``--victims`` an audit trains so many instead, and its anonymous memory is read after each of them::

    python benchmarks/memory.py --images 2000 20000 --width 0.125
    python benchmarks/memory.py --victims 40 --width 0.5
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

SIZE, CHANNELS = 224, 3
IMAGE_BYTES = CHANNELS * SIZE**2
LARGEST_BATCH, SMALLEST_BATCH, HELD_OUT = 128, 32, 64
START_SECONDS, SECONDS_PER_IMAGE = 30, 0.1  # two cores, width 0.125
COPIES = 6  # on disk: the archive, unpacked, its noise, the noise's snapshot, finished chunks, the release


def write_fake(path: Path, images: int) -> None:
    """Write an archive in MedMNIST's layout with two classes, block by block, so that this script stays small itself."""
    with zipfile.ZipFile(path, "w") as archive:
        for split, count in (("train", images), ("val", HELD_OUT), ("test", HELD_OUT)):
            rng = np.random.default_rng(count)
            with archive.open(f"{split}_images.npy", "w", force_zip64=True) as stream:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, SIZE, SIZE, CHANNELS)}
                np.lib.format.write_array_header_1_0(stream, header)
                for _ in range(count):
                    stream.write(rng.bytes(IMAGE_BYTES))
            with archive.open(f"{split}_labels.npy", "w") as stream:
                np.lib.format.write_array(stream, (np.arange(count) % 2).astype(np.uint8)[:, None])


def anonymous_memory(process: int) -> tuple[int, int]:
    """Return the anonymous resident memory of a process, and that with its children's, in bytes."""
    own, total = 0, 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
        except OSError:  # it has ended
            continue
        if process in (int(status["Pid"]), int(status["PPid"])) and "RssAnon" in status:
            used = int(status["RssAnon"].split()[0]) * 1024
            total += used
            own += used if process == int(status["Pid"]) else 0
    return own, total


def common_batch(sizes: list[int]) -> int:
    """Return the largest batch size that divides all sizes, so that a pass over the data leaves no image out."""
    divisor = math.gcd(*sizes)
    return max(size for size in range(1, LARGEST_BATCH + 1) if divisor % size == 0)


def measure(folder: Path, images: int, batch: int, width: float) -> tuple[float, float, float]:
    """Run a fit with its release and return the peaks in GB, without and with workers, and the seconds it took."""
    source, steps = folder / "fake224.npz", images // batch
    write_fake(source, images)
    command = [
        sys.executable, "-m", "salm_lightning", "fit", "--data", "NpzDataModule", "--data.path", str(source),
        "--data.batch_size", str(batch), "--model", "NoiseGeneratorModule", "--model.method", "SALM", "--model.width", str(width),
        "--model.updates_per_visit", "1", "--model.last_pass_steps", "1", "--trainer.max_steps", str(steps),
        "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(folder), "--run", "run",
    ]  # fmt: skip
    begin, peaks = time.perf_counter(), (0, 0)
    environment = os.environ | {"SALM_CACHE_DIR": str(folder / "cache")}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        while process.poll() is None:
            own, total = anonymous_memory(process.pid)
            peaks = max(peaks[0], own), max(peaks[1], total)
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"fit failed with exit code {process.returncode}")
    seconds = time.perf_counter() - begin
    visited = np.load(folder / f"lightning_logs/run/checkpoints/noise/step={steps}/rank=0.indices.npy", allow_pickle=False)
    if len(visited) != images:
        raise SystemExit(f"the checkpoint holds noise of {len(visited)} images, not of all {images}")
    return peaks[0] / 1e9, peaks[1] / 1e9, seconds


def measure_victims(victims: int, width: float) -> None:
    """Run an audit of so many victims on drawn images and print what memory it has after each."""
    print("| victims trained | anonymous memory, MB |\n|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        salm = [sys.executable, "-m", "salm_lightning"]
        common = ["--width", str(width), "--accelerator", "cpu"]
        environment = os.environ | {"SALM_CACHE_DIR": f"{folder}/cache", "SALM_STATE_DIR": f"{folder}/state", "CI": "true"}
        protect = [*salm, "protect", "synthetic", "--out", folder, "--method", "Random", "--proof", "false", *common]
        subprocess.run(protect, check=True, env=environment, stdout=subprocess.DEVNULL)
        tried = ["--countermeasures", "[none]", "--seeds", str(list(range(victims))), "--victim_steps", "3"]
        command = [*salm, "audit", f"{folder}/protected", *tried, *common]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment | {"PYTHONUNBUFFERED": "1"}, text=True) as process:
            for line in process.stdout or ():
                if ended := re.match(r"\[(\d+)/", line):
                    print(f"| {ended[1]} | {anonymous_memory(process.pid)[0] / 1e6:.0f} |", flush=True)
    if process.returncode:
        raise SystemExit(f"audit failed with exit code {process.returncode}")


def main() -> None:
    """Measure each size and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 20000], help="Training images of each run.")
    parser.add_argument("--width", type=float, default=0.125, help="Width factor of the models.")
    parser.add_argument("--victims", type=int, default=0, help="Victims of an audit, in place of fits.")
    options = parser.parse_args()
    if options.victims:
        measure_victims(options.victims, options.width)
        return
    batch = common_batch(options.images)
    if batch < SMALLEST_BATCH:
        parser.error(
            f"--images {options.images}: give multiples of one number from {SMALLEST_BATCH} to {LARGEST_BATCH}, the batch size"
        )
    seconds = len(options.images) * START_SECONDS + sum(options.images) * SECONDS_PER_IMAGE
    disk = COPIES * max(options.images) * IMAGE_BYTES / 1e9
    print(f"Batches of {batch}; about {seconds / 60:.0f} minutes on two cores and {disk:.1f} GB in {tempfile.gettempdir()}.\n")
    print("| RGB images of 224 px | uint8 in all, GB | peak anonymous memory, GB | with workers, GB | seconds |")
    print("|---|---|---|---|---|", flush=True)
    for images in options.images:
        with tempfile.TemporaryDirectory() as folder:
            own, total, seconds = measure(Path(folder), images, batch, options.width)
        print(f"| {images} | {images * IMAGE_BYTES / 1e9:.2f} | {own:.2f} | {total:.2f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
