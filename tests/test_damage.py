"""Files that anybody may have changed: an error of ours or a right result, nothing else, in bounded memory."""

from __future__ import annotations

import io
import json
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FAKE_MANIFEST, fake_arrays, write_fake_npz

from salm_lightning.callbacks.saved import latest_checkpoint, read_checkpoint, seal
from salm_lightning.checked import read_json
from salm_lightning.data import DatasetInfo, NpzDataModule, Task
from salm_lightning.data.original import images_of_release
from salm_lightning.errors import DataError, SalmError
from salm_lightning.files import read_csv
from salm_lightning.main import main
from salm_lightning.noise.store import snapshot_folder
from salm_lightning.release import Manifest
from salm_lightning.runs.record import read_run

INFO = DatasetInfo("tiny", Task.BINARY, ("a", "b"), channels=1, size=8)
CASES = 2000
ROOM = 2**29
"""Bytes that all cases together may add to this process's largest size."""
NUMBERS = (0, 1, 2, 3, -1, 255, 2**31, 2**40, 2**62, 2**64, 10**30)
WORDS = (
    b"",
    b"None",
    b"True",
    b"[]",
    b"{}",
    b"'",
    b"\\x00",
    b"\xff\xfe",
    b"NaN",
    b"1e999",
    b"9" * 5000,
    b"[" * 3000,
    "é".encode(),
)
CHECKPOINT = {
    "state_dict": {"weight": torch.ones(2)}, "global_step": 3, "epoch": 0, "pytorch-lightning_version": "2.6.6", "loops": {},
    "callbacks": {}, "optimizer_states": [], "lr_schedulers": [], "noise": None,
}  # fmt: skip
RECORD = {"identity": {"seed": 0}, "status": "done", "why": "", "seconds": 1.0, "results": {}}


def archive(rng: np.random.Generator) -> bytes:
    """Return an archive in which the head of an array may be forged."""
    arrays, forged = fake_arrays(INFO, (6, 3, 3)), rng.integers(8)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if rng.integers(2) else zipfile.ZIP_STORED) as file:
        for number, (name, array) in enumerate(arrays.items()):
            content = io.BytesIO()
            np.save(content, array)
            file.writestr(f"{name}.npy", forge_header(rng, array) if number == forged else content.getvalue())
    return stream.getvalue()


def forge_header(rng: np.random.Generator, array: np.ndarray) -> bytes:
    shape = tuple(int(rng.choice(np.array(NUMBERS, object))) if rng.integers(2) else size for size in array.shape)
    shape = shape[: rng.integers(1, len(shape) + 1)] if rng.integers(4) == 0 else shape
    descr = str(rng.choice(["|u1", "<i8", "<f8", "|O", "|S0", "|V3", "<U4", ">u2", "<m8[s]", "?", "x"]))
    text = repr(
        {"descr": descr if rng.integers(3) == 0 else array.dtype.str, "fortran_order": bool(rng.integers(2)), "shape": shape}
    )
    head = change(rng, text.encode()) if rng.integers(3) == 0 else text.encode()
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + array.tobytes()


def change(rng: np.random.Generator, content: bytes) -> bytes:
    """Return bytes with a few changes: flipped, cut out, doubled, replaced by words that formats stumble over."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(len(changed) + 1))
        end = min(len(changed), start + int(rng.integers(1, 20)))
        kind = rng.integers(5)
        if kind == 0 and start < len(changed):
            changed[start] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del changed[start:]
        elif kind == 2:
            changed[start:end] = changed[start:end] * 2
        else:
            changed[start:end] = WORDS[rng.integers(len(WORDS))]
    return bytes(changed)


def replace_value(rng: np.random.Generator, values: Any) -> Any:
    """Return JSON values, or those of a checkpoint, of which one is another."""
    odd = [None, "", "x", -1, 2**70, 1.5, [], {}, [[]], {"a": 1}, True, "../../x", torch.ones(1)]
    if isinstance(values, dict) and values and rng.integers(4):
        name = list(values)[rng.integers(len(values))]
        if rng.integers(4) == 0:
            return {key: value for key, value in values.items() if key != name}
        return values | {name: replace_value(rng, values[name])}
    return odd[rng.integers(len(odd))]


def as_json(values: Any) -> bytes:
    return json.dumps(values, default=str).encode()


def open_images(path: Path) -> None:
    data = NpzDataModule(path)
    assert len(data.split("train")) == len(data.split("train").labels)


def open_checkpoint(path: Path) -> None:
    saved = path.with_name("step=3.ckpt")
    path.replace(saved)
    assert isinstance(read_checkpoint(saved)["state_dict"], dict)
    assert latest_checkpoint(saved.parent) == saved


def saved(rng: np.random.Generator, path: Path) -> bytes:
    torch.save(replace_value(rng, CHECKPOINT), path)
    if rng.integers(2):
        seal(path)
    return path.read_bytes()


KINDS: dict[str, tuple[Callable[[np.random.Generator, Path], bytes], Callable[[Path], Any]]] = {
    "archive": (lambda rng, path: archive(rng), open_images),
    "manifest": (
        lambda rng, path: as_json(replace_value(rng, json.loads(FAKE_MANIFEST.to_json()))),
        lambda path: Manifest.read(path.parent),
    ),
    "checkpoint": (saved, open_checkpoint),
    "record": (lambda rng, path: as_json(replace_value(rng, RECORD)), read_run),
    "json": (lambda rng, path: as_json(replace_value(rng, RECORD)), read_json),
    "table": (lambda rng, path: b"dataset,acc\nd,0.5\n", read_csv),
    "name": (lambda rng, path: b"step=12", lambda path: snapshot_folder(path, path.read_bytes().decode(errors="replace"))),
}
FILES = {"archive": "tiny.npz", "manifest": "manifest.json"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_in_words(kind: str, tmp_path: Path) -> None:
    make, read = KINDS[kind]
    cases, refused = CASES // len(KINDS) + 1, 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(cases):
        rng = np.random.default_rng(seed)
        path = tmp_path / FILES.get(kind, "file")
        content = make(rng, path)
        path.write_bytes(change(rng, content) if rng.integers(2) else content)
        try:
            read(path)
        except SalmError:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    assert refused or kind == "record"
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < ROOM


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"train_images": np.zeros((4, 0, 0), np.uint8)}, "images need at least one pixel"),
        ({"val_labels": np.zeros((3, 0), np.uint8)}, "val_labels has shape"),
        ({"val_labels": np.zeros((0, 2**40), np.uint8)}, "val is empty"),
    ],
)
def test_empty_axes_are_refused(tmp_path: Path, replaced: dict[str, Any], message: str) -> None:
    write_fake_npz(tmp_path / "tiny.npz", INFO, (4, 3, 3), **replaced)
    with pytest.raises(DataError, match=message):
        NpzDataModule(tmp_path / "tiny.npz")


@pytest.mark.parametrize("missing", ["seed", "num_samples", "train"])
def test_drawn_images_need_what_they_were_drawn_with(missing: str) -> None:
    counts = {name: 4 for name in ("train", "val", "test") if name != missing}
    dataset = {"size": 28, "task": "multi-class", "class_names": ["a", "b"], "num_samples": counts}
    with pytest.raises(SalmError, match=f"lacks '{missing}'"):
        images_of_release(
            "synthetic",
            {name: value for name, value in dataset.items() if name != missing},
            {name: 0 for name in ("seed",) if name != missing},
        )


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("loops", {"fit_loop": {}}),
        ("callbacks", {"RunCheckpoint": 3}),
        ("pytorch-lightning_version", "x"),
        ("optimizer_states", [{}]),
    ],
)
def test_a_forged_checkpoint_is_refused_in_words(
    workplace: None, capsys: pytest.CaptureFixture[str], part: str, value: Any
) -> None:
    write_fake_npz(Path("tiny.npz"), INFO, (16, 8, 8))
    fit = ["fit", "--data", "tiny.npz", "--data.batch_size", "8", "--model", "VictimModule", "--model.arch", "linear"]
    fit += ["--trainer.accelerator", "cpu", "--trainer.max_steps", "2"]
    assert main([*fit, "--run", "v"]) == 0
    path = Path("lightning_logs/v/checkpoints/step=2.ckpt")
    torch.save(torch.load(path, weights_only=True) | {part: value}, path)
    seal(path)
    code = main([*fit, "--trainer.max_steps", "3", "--ckpt_path", str(path)])
    assert code == 0 or (code == 2 and f"--ckpt_path {path} is damaged" in capsys.readouterr().err)


@pytest.mark.parametrize("content", [b"", b"PK", b"x" * 200])
def test_a_checkpoint_that_was_cut_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "step=3.ckpt").write_bytes(content)
    with pytest.raises(SalmError, match=r"step=3\.ckpt is damaged"):
        latest_checkpoint(tmp_path)
