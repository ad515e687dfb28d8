"""One fit of a sweep: its files, what became of it, and how it is run, on this machine or on a node of a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from salm_lightning.callbacks.saved import checkpoints
from salm_lightning.files import locked, write_text
from salm_lightning.modules.base import LEFT_TO_SWEEP
from salm_lightning.release.manifest import MANIFEST
from salm_lightning.runs.estimate import Work
from salm_lightning.runs.folder import clear_run
from salm_lightning.runs.record import DONE, FAILED, INTERRUPTED, OPEN, Run, read_run
from salm_lightning.runs.victims import RESULTS
from salm_lightning.version import __version__

FIXED = ("dataset", "trained_on", "arch", "seed")
"""Columns that every result has before those of the grid."""
_TAIL = 2**16
"""Bytes of a log in which its error is looked for."""
_STARTING = threading.Lock()


class Cost(NamedTuple):
    """What a run does, one work after the other on one device."""

    works: tuple[Work, ...]
    accelerator: str
    precision: str


@dataclass(frozen=True, eq=False)
class Job:
    """A ``salm-cli fit`` in a run folder that is named after all its settings.

    Attributes:
        out: Folder of the sweep.
        name: Of the run folder.
        settings: Options of ``fit``.
        needs: The job whose release a victim trains on.
        makes_release: Whether it is a noise generator; else it is a victim.
        values: What tells a victim from others, by column: :data:`FIXED`, then the grid's keys; empty where a key does not concern it.
        identity: All that it depends on: settings, and checksums of the files that they name.
        cost: For an estimate of time and disk.
        version: Of the package that planned it; the fit refuses another one, as a node may have it.
    """

    out: Path
    name: str
    settings: dict[str, Any]
    needs: Job | None = None
    makes_release: bool = False
    values: Mapping[str, str] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)
    cost: Cost | None = None
    version: str = __version__

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.out / self.name

    @property
    def release(self) -> Path:
        """The release, if it makes one."""
        return self.folder / "protected"

    @property
    def product(self) -> Path:
        """The file that stands there once the fit has done all its work."""
        return self.release / MANIFEST if self.makes_release else self.folder / RESULTS

    @property
    def config(self) -> Path:
        """Its settings as a config file of ``fit``."""
        return self.out / "jobs" / f"{self.name}.yaml"

    @property
    def log(self) -> Path:
        """What the fit prints."""
        return self.config.with_suffix(".log")

    def state(self) -> Run:
        """Return what became of it, as its files say."""
        run = self.noted()
        if self.product.is_file() and run.status != FAILED:
            return replace(run, status=DONE, why="")  # also if the sweep was killed before it could note it
        return replace(run, status=OPEN) if run.is_done else run

    def noted(self) -> Run:
        """Return what was noted of it last."""
        found = read_run(self.config.with_suffix(".json"))
        return found if found and found.identity == self.identity else Run(self.identity)

    def note(self, status: str, seconds: float, why: str = "") -> None:
        """Keep what became of it, and the seconds that it took over all its starts."""
        Run(self.identity, status, why, seconds).write(self.config.with_suffix(".json"))

    def prepare(self) -> None:
        """Write its settings as a config file."""
        write_text(self.config, yaml.safe_dump(self.settings, sort_keys=False))


_DEAF_TO_PREEMPTION = ("sh", "-c", "trap '' USR2; exec \"$@\"", "sh")
"""Before SLURM takes a node away it sends the signal that submitit asks for to all processes of a job. submitit answers it by having the
fit terminated, which saves its state; the fit itself would be killed by it."""


def work(
    job: Job,
    environment: Mapping[str, str] | None = None,
    started: Callable[[subprocess.Popen[bytes]], None] = lambda process: None,
) -> None:
    """Run a job's fit in a process of its own, from its last checkpoint if it was interrupted, and note what became of it.

    ``environment`` are variables beside those of this process; ``started`` is given the fit's as soon as it runs.

    Raises:
        OutputExistsError: Another process is at work on the run; nothing of that is touched.
    """
    before = job.state()
    resumes = before.status != FAILED and bool(checkpoints(job.folder / "checkpoints"))
    earlier = before.seconds if resumes else 0.0
    command = [sys.executable, "-m", "salm_lightning", "fit", "--config", str(job.config), "--run", str(job.folder.resolve())]
    begin = time.monotonic()
    with ExitStack() as held:
        with _STARTING:  # or a fit that another thread starts would inherit the lock
            with locked(job.folder, f"run={job.folder}"):  # for a moment: the fit takes it for itself
                if not resumes:
                    clear_run(job.folder)
            job.note(OPEN, earlier)
            log = held.enter_context(job.log.open("ab" if resumes else "wb"))
            process = subprocess.Popen(
                [*_DEAF_TO_PREEMPTION, *command, *(["--ckpt_path", str(job.folder)] if resumes else [])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**_of_single_process(), **_same_package(), LEFT_TO_SWEEP: job.version, **(environment or {})},
                start_new_session=True,  # Ctrl-C is for the sweep, which passes it on
                close_fds=False,  # the sweep's lock stays with it
            )
        started(process)
        code = process.wait()
    seconds = earlier + time.monotonic() - begin
    number = -code if code < 0 else code - 128  # the signal that ended it, as its parent or a shell reports it
    if number in (signal.SIGINT, signal.SIGTERM):
        job.note(INTERRUPTED, seconds)
    elif number in signal.valid_signals():
        killed = f"killed by signal {number} ({signal.strsignal(number)}); if that was for memory, give a smaller batch_size"
        job.note(INTERRUPTED, seconds, f"{killed} (log: {job.log})")
    elif code == 0 and job.product.is_file():
        job.note(DONE, seconds)
    else:
        job.note(FAILED, seconds, f"{_reason(code, job.log)} (log: {job.log})")


def _of_single_process() -> dict[str, str]:
    """Return this process's variables without those by which Lightning takes a fit for a task of a SLURM job, and requeues that itself."""
    return {name: value for name, value in os.environ.items() if name not in ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")}


def _same_package() -> dict[str, str]:
    """Return variables with which Python finds the package that runs here, and none of the working directory."""
    root = str(Path(__file__).parents[2])
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if root not in (*paths, sysconfig.get_path("purelib")):  # it was found in the working directory
        paths.append(root)
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(paths)}


def _reason(code: int, log: Path) -> str:
    """Return why a fit failed: the error that it printed, or else the last line."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _TAIL))
        lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith("salm-cli: error: ")]
    return (marked or lines or [f"exit code {code}"])[-1].removeprefix("salm-cli: error: ")
