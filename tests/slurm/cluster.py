"""A SLURM of two nodes on this machine, for the tests alone: a controller, two node daemons, munge, no database, no systemd.

All that it makes lies in one folder, and its ports are free ones, so that neither a SLURM of the machine's own nor another test run is
touched; but the names of its nodes have to be known to the machine, and are put into ``/etc/hosts``.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
"""What Debian and Ubuntu call what this needs."""
NODES = tuple(f"salm-{os.getpid()}-{number}" for number in (1, 2))
_HOSTS = Path("/etc/hosts")
_CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
KillWait=10
MinJobAge=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=4 RealMemory=16000 Gres=gpu:4
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=4 RealMemory=16000 Gres=gpu:4
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=closed Nodes=ALL MaxTime=INFINITE State=INACTIVE
"""


def missing() -> str:
    """Return why there can be no SLURM here; nothing if there can."""
    programs = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name, path=_path()) is None]
    if programs:
        return f"{', '.join(programs)} not found; as root: apt-get install --no-install-recommends {' '.join(PACKAGES)}"
    return "" if os.geteuid() == 0 else "the daemons of a SLURM need root"


class Slurm:
    """A running SLURM; its commands find it by the variables in ``environment``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the daemons and wait until both nodes take jobs."""
        self.folder.chmod(0o755)  # or munge takes its socket for one that nobody can reach
        ports = _free_ports(3)
        (self.folder / "state").mkdir()
        settings = _CONFIGURATION.format(
            folder=self.folder,
            host=socket.gethostname().partition(".")[0],
            nodes=NODES,
            controller=ports[0],
            first=ports[1],
            second=ports[2],
        )
        (self.folder / "slurm.conf").write_text(settings)
        for number in range(4):
            (self.folder / f"gpu{number}").touch()
        (self.folder / "gres.conf").write_text(f"NodeName={','.join(NODES)} Name=gpu File={self.folder}/gpu[0-3]\n")
        if f" {NODES[0]} " not in _HOSTS.read_text():
            with _HOSTS.open("a") as hosts:
                hosts.write(f"127.0.0.1 {' '.join(NODES)} # for the tests of salm_lightning\n")
        self._start_munge()
        self._start(["slurmctld", "-D"])
        for node in NODES:
            self._start(["slurmd", "-D", "-N", node])
        assert all(daemon.poll() is None for daemon in self._daemons), (self.folder / "daemons.log").read_text()
        wait(lambda: self.run("sinfo", "-h", "-t", "idle", "-p", "main", "-o", "%D").strip() == "2", "nodes that are idle", 30)

    def _start_munge(self) -> None:
        place = self.folder / "munge"
        place.mkdir(mode=0o755)
        key = place / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed", "key-file": "key"}
        self._start(["munged", "--foreground", *(f"--{option}={place / name}" for option, name in files.items())])
        wait(lambda: (place / "socket").exists() or self._daemons[0].poll() is not None, "munge", 10)

    def _start(self, command: Sequence[str]) -> None:
        with (self.folder / "daemons.log").open("ab") as log:
            self._daemons.append(
                subprocess.Popen(
                    command,
                    env=os.environ | self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def stop(self) -> None:
        """End the daemons, and the jobs with them."""
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        hosts = _HOSTS.read_text().splitlines(keepends=True)
        _HOSTS.write_text("".join(line for line in hosts if f" {NODES[0]} " not in line))

    def clear(self) -> None:
        """End all jobs."""
        self.run("scontrol", "update", "PartitionName=main", "State=UP")
        self.run("scancel", "--user=root", "--state=PENDING")
        for _ in range(3):
            self.run("scancel", "--user=root", "--signal=KILL", "--full")
            self.run("scancel", "--user=root")
        wait(lambda: not self.jobs(), "the end of all jobs", 40)

    def run(self, *command: str, folder: Path | None = None) -> str:
        """Run one of its commands and return what that prints; an error shows in the test."""
        done = subprocess.run(
            command,
            env=os.environ | self.environment,
            cwd=folder,
            timeout=60,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            print(done.stdout, file=sys.stderr)
        return done.stdout

    def submit(self, *arguments: str, folder: Path | None = None) -> str:
        """Submit a job, and return its id."""
        return self.run("sbatch", "--parsable", *arguments, folder=folder).strip()

    def jobs(self) -> dict[str, tuple[str, str]]:
        """Return state and name of the jobs that wait or run, by id."""
        lines = self.run("squeue", "-h", "-o", "%A %T %j").splitlines()
        return {number: (state, name) for number, state, name in (line.split(maxsplit=2) for line in lines)}

    def details(self, job: str) -> dict[str, str]:
        """Return what SLURM tells of a job: its ``JobState``, ``Restarts`` and all the rest."""
        words = self.run("scontrol", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


def wait(until: Callable[[], object], what: str, seconds: float = 240) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"waited {seconds} s in vain for {what}"
        time.sleep(0.1)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
