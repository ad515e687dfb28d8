"""Show at which size noise for a folder of larger images is best made, and how it is best scaled up to them.

For each method and working size a noise generator is trained on the folder's training images, as ``salm-cli protect FOLDER`` trains it.
Its noise is scaled up to each file by each filter, bounded and rounded, and added to the decoded pixels. Victims then train on the
images as somebody who has them would, resized by Pillow to a size of the victim's own, and are measured on the originals. Containers are
left out: what JPEG keeps of the noise is another question (``benchmarks/jpeg.py``). A line of JSON is written for each victim as soon as
it is trained; a run that is stopped goes on. Example::

    python benchmarks/working_size.py FOLDER --out working_size
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
from lightning.pytorch import seed_everything
from numpy.typing import NDArray

from salm_lightning.data import FolderDataModule, ImageDataModule, formats
from salm_lightning.data.base import Split
from salm_lightning.data.working import at_working_size
from salm_lightning.noise import methods
from salm_lightning.noise.transforms import CropFlip
from salm_lightning.release.folder_manifest import Scaling
from salm_lightning.release.noisy_file import native_noise
from salm_lightning.release.parts import as_stored, parts_folder
from salm_lightning.runs.effort import Training
from salm_lightning.runs.generation import fingerprint_of, last_pass
from salm_lightning.runs.protection import Protection
from salm_lightning.runs.victims import VictimSettings, train_victim

Noise = NDArray[np.int16]
RADIUS = 8


class Resized(ImageDataModule):
    """Images as they are given, for a victim."""

    def __init__(self, info: Any, splits: dict[str, Split], **loading: Any) -> None:
        super().__init__(info, **loading)
        self._given = splits

    def load_splits(self) -> dict[str, Split]:
        """Return the images."""
        return self._given


def made_noise(folder: Path, size: int, method: methods.Method, out: Path, training: Training) -> Noise:
    """Train a noise generator, and return the noise of the training images, ``[N, size, size, C]``; what was made before is read."""
    saved = out / "noise.npy"
    if not saved.is_file():
        images = FolderDataModule(folder, size=size).load()
        trainer, module, checkpoint = Protection(images, out, method, training).train_generator(images, out)
        name = fingerprint_of(module, images, checkpoint)
        shape = images.split("train").images.shape[1:]
        blocks = last_pass(trainer, module, images, parts_folder(out / "protected"), checkpoint, name)
        noisy = np.concatenate([as_stored(block, shape) for block in blocks])
        np.save(saved, noisy.astype(np.int16) - images.split("train").images)
    noise: Noise = np.load(saved)
    return noise


def seen(images: FolderDataModule, sizes: list[int], noise: Noise | None = None, scaling: Scaling = "bilinear") -> dict[int, Any]:
    """Return the training images, with noise if any is given, at each of the sizes: uint8 ``[N, size, size, C]``."""
    found: dict[int, list[NDArray[np.uint8]]] = {size: [] for size in sizes}
    for at, row in enumerate(images.rows("train")):
        header = images.survey.headers[row]
        assert header.facts is not None
        pixels = formats.read(images.path / header.path)
        if noise is not None:
            native = native_noise(noise[at : at + 1], header.facts, scaling, 1.0, RADIUS)
            pixels = np.clip(pixels + native, 0, 255).astype(np.uint8)
        upright = formats.upright(pixels, header.facts.orientation)
        for size in sizes:
            found[size].append(at_working_size(upright, size, images.channels)[0])
    return {size: np.stack(rows) for size, rows in found.items()}


def trained(
    images: FolderDataModule, train: NDArray[np.uint8], out: Path, given: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Train a victim on images and return its accuracy on the originals, in percent."""
    clean = {name: images.split(name) for name in ("train", "val", "test")}
    splits = clean | {"train": Split(train, clean["train"].labels)}
    data = Resized(images.info, splits, batch_size=64, seed=seed)
    settings = VictimSettings(given.arch, given.width, given.victim_steps, given.precision, seed=seed)
    results = train_victim(settings, data, out, "victim", out / "run", accelerator="cpu").results
    return {"acc": round(100 * results["test"]["acc"], 1), "majority": round(100 * results["majority"], 1)}


def wanted(given: argparse.Namespace) -> Iterator[tuple[int, str, int, str]]:
    """Yield seed, method, working size and filter, the clean images first."""
    for seed in given.seeds:
        yield seed, "clean", 0, ""
        yield from product([seed], given.methods, given.sizes, given.scalings)


def main() -> None:
    """Train what has not been trained yet, a line for each victim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Folder of images, as salm-cli protect takes it.")
    parser.add_argument("--out", type=Path, default=Path("working_size"), help="Where results and noise are kept.")
    parser.add_argument("--methods", nargs="+", default=["EM", "SALM"], help="Methods by class name.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[28, 64, 128], help="Working sizes in pixels.")
    parser.add_argument("--scalings", nargs="+", choices=get_args(Scaling), default=list(get_args(Scaling)))
    parser.add_argument("--victims", type=int, nargs="+", default=[28, 64, 224], help="Sizes of the victims in pixels.")
    parser.add_argument("--resize", type=float, default=0.0, help="Share of the images that T scales while the noise is made.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=300, help="Training steps of the noise, in batches of 128.")
    parser.add_argument("--arch", default="resnet18", help="Architecture of the victims.")
    parser.add_argument("--width", type=float, default=0.25, help="Width factor of the victims.")
    parser.add_argument("--victim_steps", type=int, default=300, help="Training steps of each victim, in batches of 64.")
    parser.add_argument("--precision", default="32-true", help="Of the victims: 32-true or bf16-mixed.")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    lines = given.out / "results.jsonl"
    before = [json.loads(line) for line in lines.read_text().splitlines()] if lines.is_file() else []
    done = {tuple(line[name] for name in ("seed", "method", "resize", "made_at", "scaling", "victim")) for line in before}
    for seed, name, size, scaling in wanted(given):
        resize = 0.0 if name == "clean" else given.resize
        todo = [victim for victim in given.victims if (seed, name, resize, size, scaling, victim) not in done]
        if not todo:
            continue
        at_size = {victim: FolderDataModule(given.folder, size=victim).load() for victim in todo}
        noise = None
        if name != "clean":
            training = Training("quick", steps=given.steps, accelerator="cpu", seed=seed)
            seed_everything(seed, verbose=False)
            method = getattr(methods, name)(transform=CropFlip(resize=resize))
            noise = made_noise(given.folder, size, method, given.out / f"{name}-{resize}-{size}-{seed}", training)
        images = seen(at_size[todo[0]], todo, noise, scaling or "bilinear")
        for victim in todo:
            run = given.out / f"{name}-{resize}-{size}-{scaling}-{victim}-{seed}"
            result = trained(at_size[victim], images[victim], run, given, seed)
            line = {
                "seed": seed,
                "method": name,
                "resize": resize,
                "made_at": size,
                "scaling": scaling,
                "victim": victim,
                **result,
            }
            with lines.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            print(line, flush=True)


if __name__ == "__main__":
    main()
