"""What a scheduler and several ranks need of a run that stops: that it is gone in time, and that no rank waits for another in vain."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from salm_lightning.errors import ConfigurationError
from salm_lightning.interruption import Interruption, _Vote
from salm_lightning.modules import NoiseGeneratorModule, VictimModule
from salm_lightning.noise.methods import EM

SLOW_TO_END = """
import sys, time
from types import SimpleNamespace
from salm_lightning import main
from salm_lightning.interruption import Interruption

def stop(arguments):
    try:
        Interruption().stop(SimpleNamespace(is_global_zero=True, strategy=None))
    finally:
        print("tearing down", flush=True)
        time.sleep(60)

main._answer = stop
sys.argv = ["salm-cli", "fit"]
main.main()
"""


def test_a_program_is_gone_soon_after_its_state_is_saved() -> None:
    program = subprocess.Popen([sys.executable, "-c", SLOW_TO_END], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "tearing down\n"
    begin = time.monotonic()
    _, said = program.communicate(timeout=30)
    assert time.monotonic() - begin < 10, "a second, on a machine that has time"
    assert program.returncode == 143
    assert said == "salm-cli: interrupted; the state is saved. Go on with --ckpt_path and the run's folder.\n"


@pytest.fixture
def group(tmp_path: Path) -> Any:
    """A process group of one."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_ranks_on_devices_hear_of_a_stop_at_the_next_step(group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Device(str):
        type = "some"

    monkeypatch.setattr("salm_lightning.interruption._Vote", lambda aye, device: _Vote(aye, torch.device("cpu")))
    asked: list[bool] = []
    strategy = SimpleNamespace(root_device=Device(), reduce_boolean_decision=lambda aye, all: asked.append(aye) or aye)
    trainer: Any = SimpleNamespace(world_size=2, strategy=strategy)
    interruption = Interruption()
    assert [interruption.agreed(trainer, at_once=False) for _ in range(2)] == [False, False]
    interruption._received = 15
    assert [interruption.agreed(trainer, at_once=False) for _ in range(2)] == [False, True]
    assert asked == [], "Lightning's question waits for the device"
    assert interruption.agreed(trainer)
    assert asked == [True]


@pytest.mark.parametrize(
    ("precision", "world", "refused"), [("16-mixed", 2, True), ("16-mixed", 1, False), ("bf16-mixed", 2, False)]
)
def test_a_rank_cannot_repeat_a_forward_pass_whose_statistics_are_those_of_all(precision: str, world: int, refused: bool) -> None:
    module = NoiseGeneratorModule(EM(), 3, width=0.125, batch_norm="batch")
    module._trainer = SimpleNamespace(world_size=world, precision=precision)  # type: ignore[assignment]
    if refused:
        with pytest.raises(ConfigurationError, match=r"batch_norm=batch with precision=16-mixed on 2 devices"):
            module.setup("predict")
    else:
        module.setup("predict")


def test_statistics_that_are_the_same_on_every_rank_are_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src: sent.append(tensor.numel()))
    module = VictimModule(3, width=0.125)
    module._trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
    module.share_statistics()
    assert sent == [sum(buffer.numel() for buffer in module.network.buffers() if buffer.is_floating_point())]
    module.network = nn.SyncBatchNorm.convert_sync_batchnorm(module.network)
    module.share_statistics()
    assert len(sent) == 1
