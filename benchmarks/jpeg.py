"""Show what is left of noise in JPEG files that are written back, and by how much decoders' values change then.

Files are written with coarse noise of one working size, scaled up, and read by Pillow, by OpenCV, and by a plain decoder that
works in floats, and whose colours are not smoothed. Example::

    python benchmarks/jpeg.py ../shared/data/pbc_folder/train --images 40 --working_size 64 --kernel linear
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import scipy.fft
from numpy.typing import NDArray
from PIL import Image

from salm_lightning.data import formats
from salm_lightning.data.formats.huffman import ZIGZAG
from salm_lightning.data.formats.jpeg import _read_frame, _walk

KERNELS = {"nearest": cv2.INTER_NEAREST, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}


def plain(path: Path) -> NDArray[np.float64]:
    """Decode in floats, rounded at the end, with each colour repeated over the pixels that share it."""
    frame = _read_frame(_walk(path.read_bytes())[0])
    first, planes = frame.components[0], []
    for component in frame.components:
        waves = np.zeros(component.blocks.shape)
        waves[..., ZIGZAG] = component.blocks * frame.quantisation[component.table]
        blocks = scipy.fft.idctn(waves.reshape(*waves.shape[:2], 8, 8), axes=(2, 3), norm="ortho")
        plane = blocks.swapaxes(1, 2).reshape(blocks.shape[0] * 8, -1)
        plane = plane.repeat(first.down // component.down, axis=0).repeat(first.across // component.across, axis=1)
        planes.append(plane[: frame.height, : frame.width])
    if len(planes) == 1:
        return np.rint(np.clip(planes[0] + 128, 0, 255))
    light, blue, red = planes
    colours = (light + 1.402 * red, light - 0.344136 * blue - 0.714136 * red, light + 1.772 * blue)
    return np.rint(np.clip(np.stack(colours, axis=-1) + 128, 0, 255))


DECODERS = {
    "Pillow": lambda path: np.asarray(Image.open(path)).astype(float),
    "OpenCV": lambda path: cv2.imread(str(path), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION).astype(float),
    "plain": plain,
}


def main() -> None:
    """Write and read the files, and print a line for each way of sampling."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--working_size", type=int, default=64)
    parser.add_argument("--kernel", choices=KERNELS, default="linear")
    parser.add_argument("--radius", type=int, default=8)
    options = parser.parse_args()
    paths = sorted(options.folder.rglob("*.jpg"))
    known = {path: formats.facts(path).detail for path in paths}
    rng, rows = np.random.default_rng(0), []
    chosen = Counter[str]()
    for number in rng.permutation(len(paths)):
        path = paths[number]
        chosen[known[path]] += 1
        if chosen[known[path]] > options.images:
            continue
        pixels = formats.read(path)
        size = (options.working_size, options.working_size, pixels.shape[-1])
        noise = rng.choice(np.array([-options.radius, options.radius], np.float32), size)
        noise = cv2.resize(noise, pixels.shape[2:0:-1], interpolation=KERNELS[options.kernel]).reshape(pixels.shape)
        noise = np.clip(np.rint(noise), -options.radius, options.radius)
        noisy = np.clip(pixels + noise, 0, 255).astype(np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            target, begin = Path(folder, "image.jpg"), time.process_time()
            written = formats.write(path, noisy, target, options.radius)
            seconds = time.process_time() - begin
            largest = [np.abs(decode(target) - decode(path)).max() for decode in DECODERS.values()]
            rows.append((known[path], written.noise_kept, target.stat().st_size / path.stat().st_size, seconds, *largest))
    print(
        f"{'sampling':10}{'files':>6}{'kept':>7}{'size':>7}{'s':>7}"
        + "".join(f"{name + ' at most':>17}{'within':>8}" for name in DECODERS)
    )
    for detail in sorted({row[0] for row in rows}):
        table = np.array([row[1:] for row in rows if row[0] == detail])
        mean = table[:, :3].mean(axis=0)
        print(f"{detail:10}{len(table):6}{mean[0]:7.2f}{mean[1]:7.2f}{mean[2]:7.2f}", end="")
        for largest in table[:, 3:].T:
            print(f"{largest.max():17.1f}{np.mean(largest <= options.radius + 1e-6):8.0%}", end="")
        print()


if __name__ == "__main__":
    main()
