"""Show that memory is bounded by the batch and not by the dataset: the peak anonymous memory of 224-pixel runs of two sizes.

Fake grey images in MedMNIST's layout are written, then ``salm-cli fit`` runs on each file: a few training steps, the last pass over
all images, the release. The peak of ``RssAnon`` is read from ``/proc`` (Linux) ten times a second. Example::

    python benchmarks/memory.py --images 2000 20000 --width 0.125
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

SIZE, BATCH = 224, 64


def write_fake(path: Path, images: int) -> None:
    """Write an archive in the layout of PneumoniaMNIST, block by block, so that this script stays small itself."""
    with zipfile.ZipFile(path, "w") as archive:
        for split, count in (("train", images), ("val", BATCH), ("test", BATCH)):
            rng = np.random.default_rng(count)
            with archive.open(f"{split}_images.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array_header_1_0(
                    stream, {"descr": "|u1", "fortran_order": False, "shape": (count, SIZE, SIZE)}
                )
                for start in range(0, count, BATCH):
                    rows = min(BATCH, count - start)
                    stream.write(rng.integers(0, 256, (rows, SIZE, SIZE), dtype=np.uint8).tobytes())
            with archive.open(f"{split}_labels.npy", "w") as stream:
                np.lib.format.write_array(stream, (np.arange(count) % 2).astype(np.uint8)[:, None])


def anonymous_memory(process: int) -> int:
    """Return the anonymous resident memory of a process and its children, in bytes."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
        except OSError:  # it has ended
            continue
        if process in (int(status["Pid"]), int(status["PPid"])) and "RssAnon" in status:
            total += int(status["RssAnon"].split()[0]) * 1024
    return total


def measure(folder: Path, images: int, steps: int, width: float) -> tuple[float, float]:
    """Run a fit with its release and return the peak in GB and the seconds it took."""
    source = folder / "pneumonia224.npz"
    write_fake(source, images)
    command = [
        sys.executable, "-m", "salm_lightning", "fit", "--data", "NpzDataModule", "--data.path", str(source),
        "--data.batch_size", str(BATCH), "--data.resident", "mapped", "--data.chunk_size", str(BATCH),
        "--model", "NoiseGeneratorModule", "--model.method", "SALM", "--model.width", str(width),
        "--model.last_pass_steps", "1", "--trainer.max_steps", str(steps), "--trainer.accelerator", "cpu",
        "--trainer.default_root_dir", str(folder), "--run", str(images),
    ]  # fmt: skip
    begin, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_memory(process.pid))
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"fit failed with exit code {process.returncode}")
    return peak / 1e9, time.perf_counter() - begin


def main() -> None:
    """Measure each size and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--steps", type=int, default=20, help="Training steps.")
    parser.add_argument("--width", type=float, default=0.125)
    options = parser.parse_args()
    print("| images of 224 px | uint8 in all, GB | peak anonymous memory, GB | seconds |\n|---|---|---|---|", flush=True)
    for images in options.images:
        with tempfile.TemporaryDirectory() as folder:
            peak, seconds = measure(Path(folder), images, options.steps, options.width)
        print(f"| {images} | {images * SIZE**2 / 1e9:.2f} | {peak:.2f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
