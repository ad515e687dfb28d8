from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Slurm, missing

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def _daemons() -> Iterator[Slurm]:
    if reason := missing():
        if os.environ.get("CI"):
            pytest.fail(f"no SLURM, and this is CI: {reason}")
        pytest.skip(f"no SLURM: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # not pytest's own, whose names are too long for a socket
    slurm = Slurm(folder)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()
        if os.environ.get("CI"):
            for log in sorted(folder.glob("*.log")):
                print(f"== {log.name}\n{log.read_text()[-2000:]}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def slurm(_daemons: Slurm, workplace: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """A SLURM without jobs, which the working directory's commands and this package's find."""
    for name, value in (_daemons.environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    yield _daemons
    _daemons.clear()
