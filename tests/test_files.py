"""Files and folders in which somebody else may have laid links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from salm_lightning.errors import OutputExistsError
from salm_lightning.files import locked, write_text


def test_a_temporary_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / f".a.txt.{os.getpid()}.tmp").symlink_to("theirs")
    write_text(tmp_path / "a.txt", "ours")
    assert ((tmp_path / "theirs").read_text(), (tmp_path / "a.txt").read_text()) == ("theirs", "ours")


def test_a_lock_refuses_links_that_lead_out(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "inside").mkdir(parents=True)
    (folder / "inside/link").symlink_to("../inside")
    with locked(folder, "sweep"):
        pass
    (folder / "inside/other").symlink_to("../../outside")
    with pytest.raises(OutputExistsError, match="inside/other is a link that leads out"), locked(folder, "sweep"):
        pass
