from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Bytes are promised for one thread; it is also the fastest on images this small.
torch.set_num_threads(1)

_LONG = ("test_audit.py", "test_sweep.py", "test_readme.py", "test_real_data.py", "test_startup.py", "test_reproduce.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: each is one process's, and what is left at the end should be short."""
    items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture(autouse=True)
def _own_folders_in_tmp(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep unpacked archives out of the user's cache, and the key of seals out of the user's state."""
    monkeypatch.setenv("SALM_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("SALM_STATE_DIR", str(tmp_path_factory.getbasetemp() / "state"))


@pytest.fixture(autouse=True)
def _own_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget the modules that a test wrote and imported: another test's, of the same name, is another one."""
    before = set(sys.modules)
    yield
    written = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(written):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _short_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time the steps of an estimate on a few images: nearly every command estimates, and few tests look at what comes out."""
    monkeypatch.setattr("salm_lightning.runs.estimate._PATIENCE", 0.0)
    monkeypatch.setattr("salm_lightning.runs.estimate._CEILING", 0.0)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder that is also the root of the datasets, and print as a run under CI does, in wide lines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("SALM_DATA_ROOT", str(tmp_path))


@pytest.fixture(scope="session")
def real_data_root() -> Path:
    """Folder of real MedMNIST files."""
    root = os.environ.get("SALM_DATA_ROOT")
    if not root:
        pytest.skip("SALM_DATA_ROOT is not set; it names a folder with breastmnist.npz, retinamnist.npz and bloodmnist.npz")
    return Path(root)
