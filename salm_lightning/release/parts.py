"""Finished chunks of the last pass: what an interrupted run has already protected and need not do again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from salm_lightning.errors import DAMAGED, ReleaseError
from salm_lightning.files import LOCK, remove, replacing, write_bytes

HEADER = "header.json"
_ANNOUNCED = "announced"


class Parts:
    """A folder of finished chunks, one file each, shared by all ranks.

    Chunk ``k`` holds the samples from ``k * chunk_size`` on; the last chunk is shorter. Every run that must give other images
    has another fingerprint and so its own subfolder: parts of another run are stale and removed, and ranks that start at
    different moments cannot remove each other's work.

    Args:
        folder: Where the chunks are kept; made when missing.
        fingerprint: Names everything the images depend on (checkpoint, settings, seed, data).
        num_samples: Number of images in all.
        chunk_size: Images per chunk.
        image_shape: ``(H, W)`` or ``(H, W, C)``, as the dataset stores an image.
    """

    def __init__(
        self, folder: Path | str, fingerprint: str, num_samples: int, chunk_size: int, image_shape: tuple[int, ...]
    ) -> None:
        self.num_samples = num_samples
        self.chunk_size = chunk_size
        self.image_shape = tuple(image_shape)
        header = json.dumps(
            {"fingerprint": fingerprint, "num_samples": num_samples, "chunk_size": chunk_size, "image_shape": self.image_shape},
            sort_keys=True,
        )
        root = Path(folder)
        self._fingerprint = fingerprint
        self.folder = root / hashlib.sha256(header.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        _clear(root, self.folder)
        if not (self.folder / HEADER).exists():
            write_bytes(self.folder / HEADER, header.encode())

    @property
    def num_chunks(self) -> int:
        """Number of chunks in all."""
        return -(-self.num_samples // self.chunk_size)

    def rows(self, chunk: int) -> range:
        """Return the sample indices of a chunk, without padding.

        Raises:
            ReleaseError: There is no such chunk.
        """
        if not 0 <= chunk < self.num_chunks:
            raise ReleaseError(f"chunk={chunk} does not exist; there are {self.num_chunks} chunks, counted from 0.")
        return range(chunk * self.chunk_size, min((chunk + 1) * self.chunk_size, self.num_samples))

    def save(self, chunk: int, images: NDArray[np.uint8] | Tensor) -> None:
        """Store the images of a finished chunk, completely or not at all; padding after the last sample is cut off.

        They are uint8, as the dataset stores them or ``[B, C, H, W]``.

        Raises:
            ReleaseError: The images have another type or shape than this folder is for.
        """
        count = len(self.rows(chunk))
        stored = as_stored(images, self.image_shape)
        if len(stored) not in (count, self.chunk_size):
            raise ReleaseError(f"chunk={chunk} has {len(stored)} images, expected {count} (or {self.chunk_size} with padding).")
        with replacing(self._path(chunk)) as temporary, temporary.open("wb") as file:
            np.save(file, np.ascontiguousarray(stored[:count]))

    def pending(self) -> list[int]:
        """Return the chunks that are still to be done, in order; a file that is cut short counts as not done."""
        return [chunk for chunk in range(self.num_chunks) if not self._is_done(chunk)]

    def read(self, chunk: int) -> NDArray[np.uint8]:
        """Return the images of a finished chunk, uint8 as the dataset stores them, without padding.

        Raises:
            ReleaseError: The chunk is not done or damaged.
        """
        count = len(self.rows(chunk))
        path = self._path(chunk)
        try:
            images: NDArray[np.uint8] = np.load(path, allow_pickle=False)
        except DAMAGED as error:
            raise ReleaseError(f"chunk={chunk} is not done or damaged ({path}: {error}); run the last pass again.") from error
        if images.dtype != np.uint8 or images.shape != (count, *self.image_shape):
            raise ReleaseError(f"chunk={chunk} is damaged ({path} holds {images.dtype} {images.shape}); delete that file.")
        return images

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield all chunks in the order of the sample indices, reading one at a time."""
        return (self.read(chunk) for chunk in range(self.num_chunks))

    def announce(self, manifest: str) -> None:
        """Note which release, by the text of its manifest, the chunks make up, before it gets its name; see :func:`is_announced`."""
        write_bytes(self.folder.parent / _ANNOUNCED, _announcement(self._fingerprint, manifest))

    def remove(self) -> None:
        """Delete the chunks, once the release is written; what was announced stays."""
        remove(self.folder)

    def _path(self, chunk: int) -> Path:
        return self.folder / f"chunk-{chunk:06d}.npy"

    def _is_done(self, chunk: int) -> bool:
        try:
            images = np.load(self._path(chunk), mmap_mode="r", allow_pickle=False)
        except DAMAGED:
            return False
        return bool(images.shape == (len(self.rows(chunk)), *self.image_shape))


def parts_folder(release: Path) -> Path:
    """Return where the chunks of a release are kept until it stands: beside it."""
    return release.with_name(f".{release.name}.parts")


def clear_chunks(release: Path) -> None:
    """Delete the chunks of a release, as a run that was killed after that stood has left them; what was announced stays."""
    if parts_folder(release).is_dir():
        _clear(parts_folder(release))


def clear_parts(release: Path) -> None:
    """Delete all that is kept for a release."""
    folder = parts_folder(release)
    if folder.is_dir():
        _clear(folder)
        for name in (_ANNOUNCED, LOCK):
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _clear(root: Path, kept: Path | None = None) -> None:
    for entry in root.iterdir():
        if entry != kept and (entry / HEADER).is_file():  # only what Parts has made: a folder with a header
            shutil.rmtree(entry, ignore_errors=True)


def is_announced(folder: Path, fingerprint: str, manifest: str) -> bool:
    """Return whether parts that were kept in ``folder`` made up the release with this text as manifest: nothing is left to do."""
    path = folder / _ANNOUNCED
    return path.is_file() and path.read_bytes() == _announcement(fingerprint, manifest)


def as_stored(images: NDArray[np.uint8] | Tensor, image_shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return images in the layout of the dataset, uint8 ``[B, *image_shape]``.

    Args:
        images: uint8 ``[B, *image_shape]`` or ``[B, C, H, W]``, an array or a tensor on any device.
        image_shape: ``(H, W)`` or ``(H, W, C)``.

    Raises:
        ReleaseError: The type or shape is another one.
    """
    array: NDArray[Any] = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    channels = image_shape[2] if len(image_shape) == 3 else 1
    if array.dtype == np.uint8 and array.shape[1:] == tuple(image_shape):
        return array
    if array.dtype == np.uint8 and array.shape[1:] == (channels, *image_shape[:2]):
        return array[:, 0] if len(image_shape) == 2 else array.transpose(0, 2, 3, 1)
    raise ReleaseError(f"images are {array.dtype} {list(array.shape)}, expected uint8 [B, {', '.join(map(str, image_shape))}].")


def _announcement(fingerprint: str, manifest: str) -> bytes:
    return f"{fingerprint} {hashlib.sha256(manifest.encode()).hexdigest()}\n".encode()
