"""Checkpoint files of a run: each holds the sum of its own bytes, and the newest one that is whole is taken."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from salm_lightning.console import say
from salm_lightning.errors import DAMAGED, ConfigurationError
from salm_lightning.files import file_sha256

_NAME = re.compile(r"step=(\d+)\.ckpt")
_OURS = re.compile(r"\.?step=\d+\.ckpt(\..+\.tmp)?")
_NOISE = re.compile(r"\.?rank=\d+\.(noise|indices)\.npy(\..+\.tmp)?")
_DIGITS = 64
_LENGTH = _DIGITS.to_bytes(2, "little")
_PARTS = {
    "state_dict": dict,
    "global_step": int,
    "epoch": int,
    "pytorch-lightning_version": str,
    "loops": dict,
    "callbacks": dict,
}
"""What Lightning takes from a checkpoint."""


def seal(path: Path) -> None:
    """Write the SHA-256 of a zip archive's bytes into its comment, which stands at the very end, after the comment's length."""
    digest = file_sha256(path).encode()
    with path.open("r+b") as file:
        file.seek(-len(_LENGTH), 2)
        file.write(_LENGTH + digest)


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a run's ``checkpoints`` folder, that of the most steps first."""
    found = {int(match[1]): path for path in folder.glob("step=*.ckpt") if (match := _NAME.fullmatch(path.name))}
    return [found[step] for step in sorted(found, reverse=True)]


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a folder that is whole, or ``None`` where there is none at all; say which ones are damaged.

    Raises:
        ConfigurationError: All are damaged.
    """
    faults: list[str] = []
    for path in checkpoints(folder):
        if not (fault := _fault(path) or _fault_of_noise(path)):
            if faults:
                say(f"{' '.join(faults)} The run goes on from {path.name}, the one before.")
            return path
        faults.append(fault)
    if faults:
        raise ConfigurationError(f"{' '.join(faults)} There is no other to go on from; begin anew, with --overwrite true.")
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, its tensors as parts of the file.

    Raises:
        ConfigurationError: It is damaged, or none that Lightning wrote.
    """
    if fault := _fault(path):
        raise ConfigurationError(
            f"--ckpt_path {fault} Name a run's folder, whose newest whole one is taken, or another .ckpt file."
        )
    return _load(path)


def clear_checkpoints(folder: Path, kept: Collection[Path] = ()) -> None:
    """Delete checkpoints but for those that are kept, every noise snapshot whose checkpoint is gone, and unfinished files."""
    for path in folder.glob("*step=*.ckpt*"):
        if path not in kept and _OURS.fullmatch(path.name):
            path.unlink()
    for snapshot in (folder / "noise").glob("step=*"):
        if snapshot.name not in {path.stem for path in kept}:
            for path in snapshot.iterdir():
                if _NOISE.fullmatch(path.name):
                    path.unlink()
            remove_empty(snapshot)
    for emptied in (folder / "noise", folder):
        remove_empty(emptied)


def remove_empty(folder: Path) -> None:
    """Remove a folder if nothing is left in it."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _load(path: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        wrong = [name for name, kind in _PARTS.items() if not isinstance(saved[name], kind)]
        wrong += [name for name, value in saved["state_dict"].items() if not isinstance(value, torch.Tensor)] if not wrong else []
        noise = saved.get("noise") or {"folder": "", "files": {}}
        "".join([noise["folder"], *noise["files"], *noise["files"].values()])  # raises where one is no text
        if wrong:
            raise ValueError(f"{wrong[0]} is of another kind")
    except DAMAGED as error:
        raise ConfigurationError(
            f"--ckpt_path {path} is damaged, or no checkpoint of this program ({error}); name another .ckpt file."
        ) from error
    return saved


def _fault(path: Path) -> str:
    """Say what is wrong with a checkpoint's bytes; of one without a sum of ours, those that the archive has of its parts are compared."""
    try:
        content = np.memmap(path, np.uint8, "r").data
        end = len(content) - _DIGITS
        digest = bytes(content[end:])
        if content[end - len(_LENGTH) : end] == _LENGTH and digest.isalnum():
            total = hashlib.sha256(content[: end - len(_LENGTH)])
            total.update(bytes(len(_LENGTH)))
            whole = total.hexdigest().encode() == digest
        else:
            with zipfile.ZipFile(path) as archive:
                whole = archive.testzip() is None
    except DAMAGED:
        whole = False
    return "" if whole else f"{path} is damaged: its bytes are not those that were saved."


def _fault_of_noise(path: Path) -> str:
    """Say whether noise that lies beside a checkpoint is another than the checkpoint names."""
    noise = _load(path).get("noise") or {"files": {}}
    folder = path.parent / "noise" / path.stem
    changed = [
        name for name, digest in noise["files"].items() if (folder / name).is_file() and file_sha256(folder / name) != digest
    ]
    return f"{folder / changed[0]} is not the file that {path.name} names (its SHA-256 differs)." if changed else ""
