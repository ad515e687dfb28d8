"""MedMNIST's ``.npz`` layout: reading with every check before training, unpacking what is too large for memory, conversions."""

from __future__ import annotations

import hashlib
import math
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salm_lightning.data.base import ARRAYS, SPLITS, DatasetInfo, Split, Task
from salm_lightning.data.mapped import RESIDENT_LIMIT
from salm_lightning.data.npz import ArraySpec, NpzReader
from salm_lightning.errors import DAMAGED, DataError
from salm_lightning.files import building, cache_root, flush, one_at_a_time
from salm_lightning.tensors import Tensor, torch

_HEAD = 512
_KINDS = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"GIF8": "a GIF image",
    b"BM": "a BMP image",
    b"\x93NUMPY": "an .npy file with a single array",
    b"\x89HDF": "an HDF5 file",
    b"%PDF": "a PDF file",
    b"\x1f\x8b": "a gzip file",
}
"""What a file is, by its first bytes."""


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Copy stored images, uint8 ``[B, H, W]`` (grey) or ``[B, H, W, C]``, into a contiguous tensor, uint8 ``[B, C, H, W]``."""
    planes = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.array(planes, order="C", copy=True))


def to_array(images: Tensor) -> NDArray[np.uint8]:
    """Return a tensor uint8 ``[B, C, H, W]`` as images are stored: ``[B, H, W]`` (grey) or ``[B, H, W, C]``."""
    planes: NDArray[np.uint8] = images.numpy(force=True)
    return planes[:, 0] if planes.shape[1] == 1 else planes.transpose(0, 2, 3, 1)


def labels_to_tensor(labels: NDArray[np.integer], task: Task) -> Tensor:
    """Return stored labels ``[B, 1]`` or ``[B, L]`` as the loss takes them: int64 ``[B]``, or for multi-label tasks float32 ``[B, L]``."""
    if task is Task.MULTI_LABEL:
        return torch.from_numpy(labels.astype(np.float32))
    return torch.from_numpy(labels[:, 0].astype(np.int64))


def infer_info(path: str | Path, task: Task | None = None) -> DatasetInfo:
    """Find out from an archive what it holds.

    Args:
        path: An ``.npz`` file in MedMNIST's layout.
        task: What is predicted; ``None`` infers it: several label columns make it multi-label, two classes binary, more
            classes multi-class (ordinal classes cannot be told from plain ones).

    Returns:
        The description: the name is the file's stem, classes are named by their number.

    Raises:
        DataError: The file is missing, damaged or not in MedMNIST's layout, or its labels do not fit ``task``.
    """
    path = Path(path)
    with open_archive(path) as archive:
        for split in SPLITS:
            _check_label_layout(path, split, archive.specs[f"{split}_labels"])
        shape = archive.specs["train_images"].shape
        _check_image_layout(path, "train_images", shape)
        labels = {split: archive.read(f"{split}_labels") for split in SPLITS}
    columns = labels["train"].shape[1]
    classes = columns if columns > 1 else int(max(values.max(initial=0) for values in labels.values())) + 1
    if columns > 1 and task not in (None, Task.MULTI_LABEL):
        raise DataError(
            f"{path}: train_labels has {columns} columns, which is multi-label, not task={str(task)!r}. One class an image is one column: "
            "store labels.argmax(axis=1)[:, None]."
        )
    if task is None:
        if columns > 1 and all((values.sum(axis=1) == 1).all() for values in labels.values()):
            warnings.warn(
                f"{path}: every image has exactly one of {columns} labels; they are taken as several labels per image (multi-label). If "
                "they are one-hot classes, store labels.argmax(axis=1)[:, None]; --data.task multi-label says that they are not.",
                stacklevel=2,
            )
        task = Task.MULTI_LABEL if columns > 1 else Task.BINARY if classes <= 2 else Task.MULTI_CLASS
    elif task is Task.MULTI_LABEL and columns == 1:
        classes = 1
    if task is not Task.MULTI_LABEL:
        _check_classes(path, labels, classes)
    names = tuple(map(str, range(classes if task is Task.MULTI_LABEL else max(classes, 2))))
    return DatasetInfo(path.stem, task, names, channels=1 if len(shape) == 3 else shape[3], size=shape[1])


def read_npz(
    path: str | Path, info: DatasetInfo, resident_limit: int = RESIDENT_LIMIT, splits: Sequence[str] = SPLITS
) -> dict[str, Split]:
    """Return the splits, by name, of an archive in MedMNIST's layout, checked; arrays that the layout does not know are ignored.

    Args:
        path: The ``.npz`` file.
        info: What the file must hold.
        resident_limit: Bytes of images up to which they are read into memory. A larger archive is unpacked once into the
            cache folder (``SALM_CACHE_DIR``, else ``~/.cache/salm_lightning``) and memory-mapped read-only.
        splits: What is read.

    Raises:
        DataError: The file is missing, damaged, lacks an array, or an array has the wrong type, shape, length or values.
    """
    path = Path(path)
    with open_archive(path, splits) as archive:
        for split in splits:
            _check_specs(path, split, archive.specs, info)
        labels = {split: archive.read(f"{split}_labels") for split in splits}
        for split in splits:
            _check_label_values(path, split, labels[split], info)
        names = [f"{split}_images" for split in splits]
        total = sum(math.prod(archive.specs[name].shape) for name in names)
        images = _unpack(archive, names) if total > resident_limit else [archive.read(name) for name in names]
        if archive.objects:
            warnings.warn(
                f"{path}: {', '.join(archive.objects)} hold Python objects (pickle), which are never read: a release is made without "
                "them. Store them as numbers or text to have them copied.",
                stacklevel=2,
            )
    return {split: Split(stored, labels[split]) for split, stored in zip(splits, images, strict=True)}


def open_archive(path: Path, splits: Sequence[str] = SPLITS) -> NpzReader:
    """Open an archive in MedMNIST's layout that holds some splits.

    Raises:
        DataError: The file is missing, damaged or something else, or lacks an array of the layout.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder; an .npz archive in MedMNIST's layout is taken, or the name of a MedMNIST dataset.")
    if not path.is_file():
        raise DataError(f"{path}: no such file. Give the path of an .npz archive in MedMNIST's layout.")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not an .npz archive{_what_it_is(path)} np.savez_compressed writes such archives.")
    archive = NpzReader(path, DataError, ARRAYS)
    wanted = [name for name in ARRAYS if name.partition("_")[0] in splits]
    missing = [name for name in wanted if name not in archive.specs]
    if missing:
        archive.close()
        found = ", ".join(sorted(archive.specs)) or "nothing"
        raise DataError(f"{path} lacks {', '.join(missing)}. MedMNIST's layout has {', '.join(wanted)}; found: {found}.")
    return archive


def _what_it_is(path: Path) -> str:
    """Say what a file that is no zip archive looks like, and what to do."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    text = b"\0" not in head and all(byte >= 32 or byte in b"\t\r\n" for byte in head)
    kinds = (kind for start, kind in _KINDS.items() if head.startswith(start))
    kind = next(kinds, "a DICOM file" if head[128:132] == b"DICM" else "a text file" if text else None)
    if kind is None or not head:
        return ", or only part of one. Download or copy it again;"
    return (
        f", but {kind}. Put all images and their labels into one archive, {', '.join(ARRAYS)} (MedMNIST's layout; images uint8 [N, H, H] "
        "or [N, H, H, 3], labels [N, 1]);"
    )


def _check_image_layout(path: Path, name: str, shape: tuple[int, ...]) -> None:
    advice = "images must be square, [N, H, H] or [N, H, H, 3]"
    if len(shape) == 4 and shape[1] == shape[2] and shape[3] == 1:
        advice = f"grey images have no last axis: store {name}[..., 0]"
    elif len(shape) == 4 and shape[1] in (1, 3) and shape[2] == shape[3]:
        axes = "[:, 0]" if shape[1] == 1 else ".transpose(0, 2, 3, 1)"
        advice = f"channels come last: store {name}{axes}"
    elif len(shape) > 2 and 0 in shape[1:]:
        advice = "images need at least one pixel"
    elif len(shape) in (3, 4) and shape[1] == shape[2] and shape[3:] in ((), (3,)):
        return
    raise DataError(f"{path}: {name} has shape {shape}; {advice}.")


def _check_specs(path: Path, split: str, specs: dict[str, ArraySpec], info: DatasetInfo) -> None:
    images, labels = specs[f"{split}_images"], specs[f"{split}_labels"]
    if images.dtype != "|u1":
        raise DataError(f"{path}: {split}_images has dtype {np.dtype(images.dtype)}; MedMNIST's layout has uint8 (0 to 255).")
    expected = (info.size, info.size) if info.channels == 1 else (info.size, info.size, info.channels)
    if images.shape[1:] != expected:
        if images.shape[3:] == (1,):
            _check_image_layout(path, f"{split}_images", images.shape)
        raise DataError(
            f"{path}: {split}_images has shape {images.shape}, but {info.name} with size={info.size} and "
            f"{info.channels} channel(s) has [N, {', '.join(map(str, expected))}]. Choose the size and dataset of this file."
        )
    _check_label_layout(path, split, labels)
    columns = info.num_classes if info.task is Task.MULTI_LABEL else 1
    if labels.shape[1] != columns:
        raise DataError(f"{path}: {split}_labels has shape {labels.shape}; a {info.task} dataset has [N, {columns}] here.")
    if images.shape[0] != labels.shape[0]:
        raise DataError(f"{path}: {split} has {images.shape[0]} images but {labels.shape[0]} labels; they must be aligned.")


def _check_label_layout(path: Path, split: str, labels: ArraySpec) -> None:
    shape, dtype = labels.shape, np.dtype(labels.dtype)
    if dtype.kind not in "iu":
        raise DataError(f"{path}: {split}_labels has dtype {dtype}; MedMNIST's layout has integer class numbers.")
    if len(shape) != 2 or shape[1] == 0:
        raise DataError(
            f"{path}: {split}_labels has shape {shape}; MedMNIST's layout has [N, 1] (or [N, L] for L labels), N and L from 1."
        )
    if shape[0] == 0:
        raise DataError(f"{path}: {split} is empty; each of {', '.join(SPLITS)} needs at least one image.")


def _check_classes(path: Path, splits: Mapping[str, NDArray[np.integer]], classes: int) -> None:
    """Refuse labels that cannot be class numbers, and warn of classes that no training image has."""
    labels = splits["train"][:, 0]
    present = np.unique(labels)
    first = min(int(values.min()) for values in splits.values() if values.size)
    if first > 0:
        raise DataError(
            f"{path}: the smallest label is {first}, so that there would be {first} class(es) without any image; number the classes from "
            f"0: store labels - {first}."
        )
    if len(present) < 2:
        raise DataError(
            f"{path}: all training images have the label {present.tolist()}; there is nothing to learn to tell apart."
        )
    if classes > len(labels):
        raise DataError(
            f"{path}: the largest label is {classes - 1}, which would make {classes} classes of {len(labels)} training images; "
            "number the classes from 0."
        )
    absent = np.setdiff1d(np.arange(classes), present)
    if len(absent):
        shown = ", ".join(map(str, absent[:10])) + (", ..." if len(absent) > 10 else "")
        warnings.warn(f"{path}: no training image has label {shown} of 0 to {classes - 1}.", stacklevel=3)


def _check_label_values(path: Path, split: str, labels: NDArray[Any], info: DatasetInfo) -> None:
    highest = 1 if info.task is Task.MULTI_LABEL else info.num_classes - 1
    wrong = np.flatnonzero(((labels < 0) | (labels > highest)).any(axis=1))
    if len(wrong):
        raise DataError(
            f"{path}: {split}_labels has {len(wrong)} value(s) outside 0..{highest}, the first at index {wrong[0]}: "
            f"{labels[wrong[0]].tolist()}. {info.name} ({info.task}) has {info.num_classes} classes."
        )


def _unpack(archive: NpzReader, names: Sequence[str]) -> list[NDArray[np.uint8]]:
    """Unpack the images beside each other and map them; a finished folder appears in one rename or not at all."""
    path, stat = archive.path, archive.path.stat()
    identity = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"  # another size or time of change is another file
    folder = cache_root() / f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    with ExitStack() as held:
        if not folder.is_dir():
            held.enter_context(one_at_a_time(path))  # ranks come here together
        if not folder.is_dir():
            _unpack_into(folder, archive, names)
    try:
        return [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names]
    except DAMAGED as error:
        raise DataError(f"The unpacked copy {folder} is damaged ({error}); delete that folder and run again.") from error


def _unpack_into(folder: Path, archive: NpzReader, names: Sequence[str]) -> None:
    try:
        with building(folder) as unpacked:
            for name in names:
                _unpack_member(archive, name, unpacked)
            unpacked.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process finished it first
            raise DataError(
                f"{archive.path} cannot be unpacked into {folder.parent} ({error}). Set SALM_CACHE_DIR to a writable folder with room for "
                "the unpacked images."
            ) from error


def _unpack_member(archive: NpzReader, name: str, folder: Path) -> None:
    with (folder / f"{name}.npy").open("wb") as target:
        for block in archive.stored(name, f"Unpacking {name}"):
            target.write(block)
    flush(folder / f"{name}.npy")
