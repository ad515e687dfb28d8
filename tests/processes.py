"""Runs of ``salm-cli`` in processes of their own, which a test can kill at a chosen point.

They are forked, which spares the seconds that an import takes. Ranks find each other through the environment, as under torchrun.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from salm_lightning.main import main
from salm_lightning.modules import NoiseGeneratorModule, VictimModule

TIMEOUT = 120.0
"""Seconds after which a run counts as hanging."""

Patch = Callable[[int], None]
"""Changes a forked process, of a given rank, before it starts."""


def run(args: list[str], log: Path, ranks: int = 1, patch: Patch | None = None) -> list[int]:
    """Run ``salm-cli`` and return each rank's exit code, negative for the signal that killed it.

    Args:
        args: Command-line arguments.
        log: Gets the output, ``log`` with the rank as suffix.
        ranks: Processes; more than one make up a ddp job.
        patch: What to change in them.

    Raises:
        TimeoutError: A process hangs; all are killed.
    """
    if ranks > 1:
        args = [*args, "--trainer.devices", str(ranks), "--trainer.strategy", "ddp"]
    port = _free_port()
    children = [fork(args, log.with_suffix(f".{rank}"), rank, ranks, port, patch) for rank in range(ranks)]
    return wait(children)


def kill_at(count: int, number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """Return a function that sends this process a signal when it is called for the ``count``-th time."""
    calls = [0]

    def strike() -> None:
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), number)

    return strike


def before(owner: Any, name: str, action: Callable[[], None]) -> None:
    """Make ``owner.name`` call ``action`` first."""
    original = getattr(owner, name)

    def changed(*args: Any, **kwargs: Any) -> Any:
        action()
        return original(*args, **kwargs)

    setattr(owner, name, changed)


def after(owner: Any, name: str, action: Callable[[], None]) -> None:
    """Make ``owner.name`` call ``action`` last."""
    original = getattr(owner, name)

    def changed(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        action()
        return result

    setattr(owner, name, changed)


def record_calls(path: Path) -> Patch:
    """Return a patch that notes in ``path`` (one JSON line each) the batches trained on, the validations and the chunks made."""

    def note(kind: str, detail: Any) -> None:
        with path.open("a") as stream:
            stream.write(json.dumps([kind, detail]) + "\n")

    def patch(rank: int) -> None:
        for module in (NoiseGeneratorModule, VictimModule):
            for kind, name in (("train", "training_step"), ("chunk", "predict_step")):
                _note_batches(module, name, lambda step, indices, kind=kind: note(kind, [rank, step, indices]))
            _note_validations(module, lambda step: note("val", [rank, step]))

    return patch


def recorded(path: Path, kind: str) -> list[Any]:
    """Return what :func:`record_calls` noted of one kind."""
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [detail for found, detail in entries if found == kind]


def combine(*patches: Patch) -> Patch:
    """Return a patch that applies several."""

    def patch(rank: int) -> None:
        for single in patches:
            single(rank)

    return patch


def final_state(run_folder: Path) -> dict[str, Any]:
    """Return a run's only checkpoint, with the noise of all ranks keyed by the global index under ``noise``."""
    (path,) = (run_folder / "checkpoints").glob("*.ckpt")
    state: dict[str, Any] = torch.load(path, weights_only=True)
    if state.get("noise"):
        folder = path.parent / "noise" / state["noise"]["folder"]
        state["noise"] = dict(sorted(noise_by_index(folder).items()))
    return state


def noise_by_index(folder: Path) -> dict[int, bytes]:
    """Return the noise in a snapshot by global sample index; fails if an index is there twice."""
    found: dict[int, bytes] = {}
    for path in sorted(folder.glob("rank=*.indices.npy")):
        noise = np.load(path.with_name(path.name.replace("indices", "noise")))
        for index, image in zip(np.load(path).tolist(), noise, strict=True):
            assert index not in found
            found[index] = image.tobytes()
    return found


def same(left: Any, right: Any) -> bool:
    """Return whether two nested values are equal, tensors bit by bit."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def files(folder: Path) -> set[str]:
    """Return the paths of all files in a folder, relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _note_batches(module: Any, name: str, note: Callable[[int, list[int]], None]) -> None:
    original = getattr(module, name)

    def changed(self: Any, batch: Any, batch_idx: int) -> Any:
        note(self.global_step, batch.indices.tolist())
        return original(self, batch, batch_idx)

    setattr(module, name, changed)


def _note_validations(module: Any, note: Callable[[int], None]) -> None:
    original = module.on_validation_epoch_end

    def changed(self: Any) -> None:
        original(self)
        note(self.global_step)

    module.on_validation_epoch_end = changed


def fork(args: list[str], log: Path, rank: int = 0, ranks: int = 1, port: int = 0, patch: Patch | None = None) -> int:
    """Start a rank of ``salm-cli`` and return its process."""
    child = os.fork()
    if not child:
        _become(args, log, rank, ranks, port, patch)
    return child


def _become(args: list[str], log: Path, rank: int, ranks: int, port: int, patch: Patch | None) -> NoReturn:
    code = 70
    try:
        with log.open("w") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if ranks > 1:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
        if patch is not None:
            patch(rank)
        code = main(args)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(children: list[int]) -> list[int]:
    """Return the exit codes of what was started."""
    codes: dict[int, int] = {}
    end = time.monotonic() + TIMEOUT
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[child] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            ended = [codes.get(child) for child in children]
            for child in set(children) - codes.keys():
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            raise TimeoutError(f"hangs; exit codes by rank: {ended}")
        time.sleep(0.02)
    return [codes[child] for child in children]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
