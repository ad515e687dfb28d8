"""Commands that are struck while they write: every change of a file that Python makes is counted, and at one of them something happens."""

from __future__ import annotations

import csv
import ctypes
import fcntl
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import processes
from fakes import write_fake_npz
from PIL import Image

from salm_lightning.data import MEDMNIST
from salm_lightning.files import LOCK
from salm_lightning.release import verify_release
from salm_lightning.release.verify_folder import verify_folder

processes.TIMEOUT = 900.0  # other work may take nearly all of a machine
ROOT = Path(__file__).parents[2]
_CHANGES = {
    "os.rename": (1, 3),
    "os.link": (1, 3),
    "os.mkdir": (0, 2),
    "os.remove": (0, 1),
    "os.rmdir": (0, 1),
    "os.truncate": (0, 0),
}
"""What Python tells before it changes a folder, and where among the arguments the path stands, and the folder that it starts from."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_TIMES = re.compile(r"seconds|time|^date$|^seal$")
_HASH = re.compile(r"(?<=-)[0-9a-f]{16}(?=/|$)")
_OWN = re.compile(r"events\.out\.tfevents\..*")

Strike = Callable[[str, Path], None]
"""What happens before a change, of a kind and a path."""


def strike_at(place: Path, count: int, strike: Strike, log: Path | None = None) -> processes.Patch:
    """Return a patch that strikes before the ``count``-th change below a folder, and notes each change in a log before it is made."""

    def patch(rank: int) -> None:
        made, within = [0], place.resolve()
        noted = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

        def change(kind: str, path: Path) -> None:
            if not path.is_relative_to(within):
                return
            made[0] += 1
            if noted is not None:
                os.write(noted, f"{kind} {path.relative_to(within)}\n".encode())
            if made[0] == count:
                strike(kind, path)

        def hear(event: str, args: tuple[Any, ...]) -> None:
            if event == "open" and not isinstance(args[0], int) and args[2] & _WRITES:
                change("open", _place(args[0], -1))
            elif event in _CHANGES and not isinstance(args[0], int):
                path, start = (args[place] for place in _CHANGES[event])
                change(event, _place(path, start if isinstance(start, int) else -1))
            elif event == "ctypes.dlsym" and args[1] == "renameat2":
                change("exchange", within)

        sync = os.fsync

        def fsync(descriptor: int) -> None:
            change("fsync", Path(f"/proc/self/fd/{descriptor}").readlink())
            sync(descriptor)

        os.fsync = fsync
        sys.addaudithook(hear)

    return patch


def kill(kind: str, path: Path) -> None:
    """End the process as a machine without memory does; of a file whose bytes are about to reach the disk, half are lost."""
    if kind == "fsync" and path.is_file():
        os.truncate(path, path.stat().st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def _place(path: Any, folder: int) -> Path:
    above = Path(f"/proc/self/fd/{folder}").readlink() if folder >= 0 else Path.cwd()
    return Path(os.path.normpath(above / os.fsdecode(path)))


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
        line: The command line.
        before: Command lines that make what it works on.
        again: Returns from the folder what repeats it; by default the same command line.
        release: Where the release is that it makes, or works on; the result, of a folder of images.
    """

    line: str
    before: tuple[str, ...] = ()
    again: Callable[[Path], str] | None = None
    release: str = "out/protected"

    def prepare(self, folder: Path) -> Path:
        """Make what the command works on in a folder."""
        folder.mkdir(parents=True)
        write_fake_npz(folder / "mine.npz", MEDMNIST["breastmnist"], (20, 8, 10))
        write_fake_npz(folder / "bloodmnist.npz", MEDMNIST["bloodmnist"], (40, 16, 16))
        for name in ("cat", "dog"):
            (folder / "photos" / name).mkdir(parents=True)
            for number in range(6):
                pixels = np.random.default_rng(number).integers(0, 256, (28, 28, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
        (folder / "sweep.yaml").write_text(SWEEP)
        for line in self.before:
            assert run(folder, line) == 0, said(folder)
        return folder

    def repeat(self, folder: Path) -> int:
        """Wait until nobody works there any more, give the command again, and return its exit code."""
        for lock in folder.rglob(LOCK):
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # a killed sweep's fits end their work
        return run(folder, self.again(folder) if self.again else self.line)


def run(folder: Path, line: str, patch: processes.Patch | None = None) -> int:
    """Run a command in a folder and return its exit code."""
    return processes.wait([start(folder, line, patch)])[0]


def start(folder: Path, line: str, patch: processes.Patch | None = None, log: str = "") -> int:
    """Start a command in a folder, which also has its cache and its state, and return its process."""

    def inside(rank: int) -> None:
        os.chdir(folder)
        os.environ |= {
            "SALM_CACHE_DIR": str(folder / "cache"),
            "SALM_STATE_DIR": str(folder / "state"),
            "SALM_DATA_ROOT": str(folder),
            "PYTHONPATH": str(ROOT),
            "CI": "true",
            "COLUMNS": "200",
        }
        if patch:
            patch(rank)

    return processes.fork(shlex.split(line), _log(folder, log), patch=inside)


def meet(folder: Path, first: str, count: int, second: str) -> tuple[int, int]:
    """Run two commands in a folder: the first waits before its ``count``-th change until the second has ended."""
    here, ended = folder.with_suffix(".here"), folder.with_suffix(".ended")
    for path in (here, ended):
        path.unlink(missing_ok=True)

    def stay(kind: str, path: Path) -> None:
        here.touch()
        while not ended.exists():
            time.sleep(0.01)

    waiting = start(folder, first, strike_at(folder, count, stay), "-first")
    while not here.exists() and os.waitid(os.P_PID, waiting, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.01)
    code = run(folder, second)
    ended.touch()
    return processes.wait([waiting])[0], code


def said(folder: Path, log: str = "") -> str:
    """Return what the latest command in a folder has printed."""
    return _log(folder, log).read_text(errors="replace")


def errors(folder: Path, log: str = "") -> list[str]:
    """Return the lines that say what was wrong.

    Raises:
        AssertionError: There is a traceback.
    """
    shown = said(folder, log)
    assert "Traceback" not in shown, shown
    return [line for line in shown.splitlines() if line.startswith("salm-cli: error: ")]


def _log(folder: Path, log: str) -> Path:
    beside = folder.parent if not folder.parent.is_mount() else folder.parent.parent  # which is not the disk that fills
    return beside / f"{folder.name}{log}.log"


def difference(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Return the paths of files that are too many, are lacking, or hold something else."""
    return sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))


def changes(command: Command, folder: Path) -> list[str]:
    """Run a command to its end in a new folder and return the changes that it made."""
    log = folder.with_suffix(".changes")
    command.prepare(folder)
    assert run(folder, command.line, strike_at(folder, 0, kill, log)) == 0, said(folder)
    return log.read_text().splitlines()


def copy(prepared: Path, folder: Path) -> Path:
    """Return a new folder with what was prepared."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prepared, folder, symlinks=True)
    return folder


def content(folder: Path) -> dict[str, str]:
    """Return what runs have made of a folder by path: the sum of each file, without the times that it tells."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = _HASH.sub("", path.relative_to(folder).as_posix())  # of a folder's place, among others
        if _OWN.fullmatch(path.name):  # one for each start
            found[f"{name.removesuffix(path.name)}events"] = ""
        elif path.is_dir():
            found[f"{name}/"] = ""
        elif path.is_file():
            found[name] = hashlib.sha256(_timeless(path).replace(os.fsencode(folder), b"")).hexdigest() if _counts(name) else ""
    return found


def _counts(name: str) -> bool:
    """Return whether the bytes of a file are those of every run: no checkpoint's, and none in the cache, which tells places and times."""
    return name.endswith((".npz", ".json", ".csv", ".npy", ".png", "datamodule.yaml")) and not name.startswith("cache/")


def _timeless(path: Path) -> bytes:
    if path.suffix == ".json":
        return json.dumps(_without_times(json.loads(path.read_text())), sort_keys=True).encode()
    if path.suffix == ".csv":
        lines = csv.DictReader(io.StringIO(path.read_text()))
        return json.dumps(_without_times(list(lines))).encode()
    return path.read_bytes()


def _without_times(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _without_times(value) for key, value in values.items() if not _TIMES.search(key)}
    return [_without_times(value) for value in values] if isinstance(values, list) else values


def whole(release: Path) -> str:
    """Return the sum of a release that is whole, or nothing where there is none.

    Raises:
        AssertionError: It is not whole.
    """
    of_folder = release.name != "protected"
    if not (release / "protected" if of_folder else release).exists():
        return ""
    checks = verify_folder(release) if of_folder else verify_release(release)
    assert all(check.ok for check in checks), checks
    return hashlib.sha256((release / ("release/files.csv" if of_folder else "manifest.json")).read_bytes()).hexdigest()


def spread(count: int, repetitions: int) -> Sequence[int]:
    """Return numbers from 1 to ``count``, so many, evenly spread, or all for 0."""
    number = min(repetitions or count, count)
    return sorted({1 + (count - 1) * place // max(1, number - 1) for place in range(number)})


def deprive() -> None:
    """Let this process, though it is root's, respect the modes of files, as Linux has it."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Data(ctypes.Structure):
        _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))

    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capset(ctypes.byref(Header(0x20080522, 0)), ctypes.byref((Data * 2)())) == 0, os.strerror(ctypes.get_errno())


SHORT = "--width 0.125 --batch_size 8 --accelerator cpu"
PROTECT = f"protect mine.npz --out out --steps 3 --victim_steps 3 {SHORT}"
MADE = f"protect mine.npz --out out --method Random --proof false {SHORT}"
AUDIT = f"audit out/protected --source mine.npz --countermeasures [none] --seeds 0 --victim_steps 3 {SHORT}"
FIT = (
    "fit --data NpzDataModule --data.path mine.npz --data.batch_size 8 --trainer.accelerator cpu --trainer.max_steps 3 --run r "
    "--trainer.callbacks RunCheckpoint --trainer.callbacks.every_n_steps 1 --model"
)
SWEEP = """
out: out
generator:
  data: {class_path: SyntheticDataModule, init_args: {size: 16, train_size: 20, val_size: 8, test_size: 10, batch_size: 8}}
  model: {class_path: NoiseGeneratorModule, init_args: {method: Random, width: 0.125}}
  trainer: {max_steps: 1, accelerator: cpu}
victim:
  model: {class_path: VictimModule, init_args: {width: 0.125}}
  trainer: {max_steps: 1, accelerator: cpu}
clean: false
"""


def _go_on(line: str) -> Callable[[Path], str]:
    """Return how a fit goes on, as it is told to: from a checkpoint where there is one, else anew."""

    def again(folder: Path) -> str:
        saved = list((folder / "lightning_logs/r/checkpoints").glob("step=*.ckpt"))
        return f"{line} --ckpt_path lightning_logs/r" if saved else f"{line} --overwrite true"

    return again


GENERATOR, VICTIM = (
    f"{FIT} NoiseGeneratorModule --model.method SALM --model.width 0.125",
    f"{FIT} VictimModule --model.width 0.125",
)
COMMANDS = {
    "protect": Command(PROTECT),
    "protect-over": Command(f"{PROTECT} --seed 1 --overwrite true", (MADE,)),
    "protect-folder": Command(f"protect photos --out out --size 28 --steps 2 --victim_steps 2 {SHORT}", release="out"),
    "fit": Command(GENERATOR, again=_go_on(GENERATOR), release="lightning_logs/r/protected"),
    "fit-victim": Command(VICTIM, again=_go_on(VICTIM)),
    "classwise": Command(
        "classwise bloodmnist photos --classes [0,3] --out out --batch_size 16 --training.steps 2 --training.victim_steps 2 "
        "--training.width 0.125 --training.accelerator cpu"
    ),
    "audit": Command(AUDIT, (MADE,)),
    "quality": Command("quality out/protected --source mine.npz", (MADE,)),
    "report": Command("report out/protected", (MADE, AUDIT)),
    "sweep": Command("sweep --config sweep.yaml"),
    "reproduce": Command(
        "reproduce table5 --datasets [bloodmnist] --methods [sp] --scale 0.0004 --width 0.125 --accelerator cpu --out out"
    ),
}
"""Every command that writes, on a few tiny images."""
