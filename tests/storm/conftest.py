from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def repetitions() -> int:
    """How often each command is struck: ``STORM=60 pytest -m slow tests/storm``; ``STORM=0`` strikes at every change."""
    return int(os.environ.get("STORM", "3"))
