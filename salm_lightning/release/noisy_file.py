"""A file of a folder with noise: brought from the working size to its own, added to the integers that are stored, written by its codec."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from salm_lightning.data import formats
from salm_lightning.data.formats import Facts
from salm_lightning.data.keep_out import Region, mask_of, together
from salm_lightning.errors import ReleaseError
from salm_lightning.files import file_sha256
from salm_lightning.release.folder_manifest import FileRecord, Scaling

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


class FileJob(NamedTuple):
    """A file to be written with noise: where the original and its copy lie, what it is, its noise at the working size, and its sum.

    ``factor`` and ``bound`` are those of :func:`native_noise`; new identifiers are made of ``secret``, and pixels
    of ``regions`` keep their values.
    """

    root: Path
    tree: Path
    path: str
    facts: Facts
    noise: NDArray[np.int16]
    scaling: Scaling
    factor: float
    bound: int
    sum: str
    secret: bytes
    regions: tuple[Region, ...]


def native_noise(noise: NDArray[np.int16], facts: Facts, scaling: Scaling, factor: float, bound: int) -> NDArray[np.int32]:
    """Return noise for a file's pixels as they are stored, int32 ``[pages, H, W, C]``.

    Args:
        noise: At the working size, in 255ths of the range, ``[pages, S, S]`` or ``[pages, S, S, 3]``, for upright images.
        facts: Of the file.
        scaling: How it is scaled.
        factor: Stored integers for a 255th of the range; negative where higher ones are darker.
        bound: Largest value in stored integers.
    """
    planes = noise[..., None] if noise.ndim == 3 else noise
    if facts.channels == 1 and planes.shape[-1] == 3:
        planes = planes.mean(axis=-1, keepdims=True)
    turned = facts.orientation in (5, 6, 7, 8)
    size = (facts.height, facts.width) if turned else (facts.width, facts.height)
    scaled = formats.by_plane(planes.astype(np.float32), partial(_scaled, size=size, scaling=scaling))
    whole = np.clip(np.rint(scaled * factor), -bound, bound).astype(np.int32)
    return np.broadcast_to(formats.stored(whole, facts.orientation), facts.shape)


def _scaled(plane: NDArray[np.float32], size: tuple[int, int], scaling: Scaling) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(size, _FILTERS[scaling]), dtype=np.float32)


def write_file(job: FileJob) -> FileRecord:
    """Write a file with noise, read it back, and say what became of it.

    Raises:
        ReleaseError: The original is not the file that was decoded.
        UnsupportedImage: It cannot be written within the bound.
    """
    original, target = job.root / job.path, job.tree / job.path
    before, still = formats.pixels_and_kept(original)
    if file_sha256(original) != job.sum:
        raise ReleaseError(f"{original} was changed while the command ran; leave the folder alone, and repeat the command.")
    noise = native_noise(job.noise, job.facts, job.scaling, job.factor, job.bound)
    still = together(still, mask_of(job.regions, job.facts))
    pixels = formats.added(before, noise, job.facts, formats.without_noise(job.facts, still))
    target.parent.mkdir(parents=True, exist_ok=True)
    written = formats.write(original, pixels, target, job.bound, job.secret, still)
    return FileRecord(
        file=job.path,
        format=job.facts.container,
        before=job.sum,
        after=file_sha256(target),
        bound=job.bound,
        largest=written.largest,
        changed_share=written.changed_share,
        kept_out=0 if still is None else int(still.sum()),
        noise_kept=round(written.noise_kept, 4),
        also="; ".join(written.changed),
    )
