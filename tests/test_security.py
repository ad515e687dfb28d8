"""What ``docs/security.md`` says is code is code, and what it says is none runs nothing."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from salm_lightning.cli.config_files import resolve_checkpoint
from salm_lightning.data import NpzDataModule
from salm_lightning.errors import DataError
from salm_lightning.main import main


class Evil:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


def test_a_module_that_a_config_names_is_imported_before_its_class_is_refused(
    workplace: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    Path("named_by_a_config.py").write_text("open('ran', 'w')\nclass Net: pass\n")
    Path("given.yaml").write_text("model: {class_path: named_by_a_config.Net}\n")
    assert main(["fit", "--config", "given.yaml"]) == 2
    assert "named_by_a_config.Net" in capsys.readouterr().err
    assert Path("ran").exists()


def test_pickles_in_archives_and_checkpoints_are_not_run(workplace: None) -> None:
    pickle.loads(pickle.dumps(Evil()))
    Path("ran").unlink()  # it would
    np.savez("evil.npz", train_images=np.array([Evil()], dtype=object))
    with pytest.raises(DataError, match="pickle"):
        NpzDataModule("evil.npz").setup()
    torch.save({"state_dict": Evil()}, "evil.ckpt")
    assert resolve_checkpoint("evil.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load("evil.ckpt", weights_only=True)
    config = (
        "--config victim.yaml --data SyntheticDataModule --model.width 0.0625 --trainer.max_steps 1 --trainer.accelerator cpu"
    )
    assert main(["fit", *config.split(), "--ckpt_path", "evil.ckpt"]) == 2
    assert not Path("ran").exists()
