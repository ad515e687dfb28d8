"""The learning-rate schedule against PyTorch's own at the steps that the shares mean."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import MultiStepLR

from salm_lightning.data import Task
from salm_lightning.errors import ConfigurationError, DivergedError
from salm_lightning.models import Architecture
from salm_lightning.modules.base import TrainedModule
from salm_lightning.modules.schedule import FractionalStepLR


def sgd(*rates: float) -> Optimizer:
    return SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates], lr=0.1)


def rates(scheduler: Any, steps: int) -> list[list[float]]:
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize(
    ("total", "fractions", "milestones"),
    [(10, (0.4, 0.8), [4, 8]), (5000, (0.4, 0.8), [2000, 4000]), (7, (0.4, 0.8), [3, 6]), (20, (0.25,), [5]), (12, (), []),
     (8, (0.5, 1.0), [4, 8])],
)  # fmt: skip
@pytest.mark.parametrize("gamma", [0.1, 0.5])
def test_rates_equal_those_of_multi_step_lr(
    total: int, fractions: tuple[float, ...], milestones: list[int], gamma: float
) -> None:
    made = rates(FractionalStepLR(sgd(0.1, 0.02), fractions, gamma, total), total)
    expected = rates(MultiStepLR(sgd(0.1, 0.02), milestones, gamma), total)
    torch.testing.assert_close(torch.tensor(made), torch.tensor(expected), rtol=1e-6, atol=0)


def test_the_papers_schedule_is_the_default() -> None:
    made = [rate for (rate,) in rates(FractionalStepLR(sgd(0.1), total_steps=5000), 5000)]
    assert made[0] == made[1999] == 0.1
    assert made[2000] == made[3999] == pytest.approx(0.01)
    assert made[4000] == made[4999] == pytest.approx(0.001)


def test_without_a_length_the_rate_stays() -> None:
    assert rates(FractionalStepLR(sgd(0.1)), 50) == [[0.1]] * 50


def test_a_resumed_schedule_goes_on() -> None:
    whole = rates(FractionalStepLR(sgd(0.1), total_steps=20), 20)
    first = FractionalStepLR(sgd(0.1), total_steps=20)
    begun = rates(first, 11)
    optimizer = sgd(0.1)
    second = FractionalStepLR(optimizer, total_steps=20)
    optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert begun + rates(second, 9) == whole


@pytest.mark.parametrize(("before", "now", "reached"), [(10, 40, 9), (10, 20, 10), (40, 20, 10), (20, 20, 17)])
def test_a_resumed_schedule_follows_the_length_given_now(before: int, now: int, reached: int) -> None:
    first = FractionalStepLR(sgd(0.1, 0.02), total_steps=before)
    rates(first, reached)
    optimizer = sgd(0.1, 0.02)
    second = FractionalStepLR(optimizer, total_steps=now)
    optimizer.load_state_dict(first.optimizer.state_dict())  # in this order, as Lightning does
    second.load_state_dict(first.state_dict())
    milestones = [round(0.4 * now), round(0.8 * now)]
    expected = rates(MultiStepLR(sgd(0.1, 0.02), milestones), now)[reached:]
    assert second.get_last_lr() == pytest.approx(expected[0])
    torch.testing.assert_close(torch.tensor(rates(second, now - reached)), torch.tensor(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("fractions", [(0.8, 0.4), (0.0, 0.5), (0.5, 1.1), (-0.1,), (float("nan"),)])
def test_fractions_that_do_not_ascend_within_the_training_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"fractions=.*must ascend"):
        FractionalStepLR(sgd(0.1), fractions)


class Module(TrainedModule):
    """A module whose Trainer knows the training length."""

    global_step = 3

    class trainer:
        estimated_stepping_batches = 40

    def __init__(self, optimizer: Any, scheduler: Any) -> None:
        super().__init__(Architecture("linear"), 2, Task.MULTI_CLASS, optimizer, scheduler, 0)
        self.network = torch.nn.Linear(1, 1)

    def settings(self) -> dict[str, Any]:
        return self.training_settings()


def of_sgd(scheduler: Any) -> Module:
    return Module(lambda p: SGD(p, lr=0.1), scheduler)


@pytest.mark.parametrize("total", [None, 10])
def test_the_trainers_length_is_taken_unless_one_is_given(total: int | None) -> None:
    module = of_sgd(lambda o: FractionalStepLR(o, total_steps=total))
    made: Any = module.configure_optimizers()
    assert made["lr_scheduler"]["interval"] == "step"
    assert made["optimizer"].param_groups[0]["params"] == list(module.network.parameters())
    seen = [rate for (rate,) in rates(made["lr_scheduler"]["scheduler"], total or 40)]
    assert seen.index(pytest.approx(0.01)) == 0.4 * (total or 40)


def test_a_training_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Module.trainer, "estimated_stepping_batches", float("inf"))
    with pytest.raises(ConfigurationError, match=r"needs the training length: give trainer\.max_steps"):
        of_sgd(None).configure_optimizers()


def test_other_schedulers_are_left_alone() -> None:
    made: Any = of_sgd(lambda o: MultiStepLR(o, [3])).configure_optimizers()
    assert isinstance(made["lr_scheduler"]["scheduler"], MultiStepLR)


@pytest.mark.parametrize(
    ("optimizer", "scheduler", "expected"),
    [
        (
            lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
            lambda o: FractionalStepLR(o, (0.5,), 0.2),
            ({"class": "SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False},
             {"class": "FractionalStepLR", "fractions": [0.5], "gamma": 0.2, "total_steps": None}),
        ),
        (
            lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.5), betas=(0.8, 0.9)),
            lambda o: MultiStepLR(o, [3, 5]),
            ({"class": "AdamW", "lr": 0.5, "betas": [0.8, 0.9]},
             {"class": "MultiStepLR", "milestones": {"3": 1, "5": 1}, "gamma": 0.1}),
        ),
    ],
)  # fmt: skip
def test_optimiser_and_schedule_are_told_as_json(optimizer: Any, scheduler: Any, expected: tuple[Any, Any]) -> None:
    told = Module(optimizer, scheduler).training_settings()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    for found, wanted in zip((told["optimizer"], told["lr_scheduler"]), expected, strict=True):
        assert {key: found[key] for key in wanted} == wanted
    assert told["lr_scheduler"].keys() == expected[1].keys()


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_diverged_loss_stops_the_training(loss: float) -> None:
    module = of_sgd(None)
    module.require_finite(torch.tensor(1e30))
    module.require_finite()
    with pytest.raises(DivergedError, match="loss is not finite at step 3"):
        module.require_finite(torch.tensor(loss))
    module.network.bias.data.fill_(loss)
    with pytest.raises(DivergedError, match="weights are not finite at step 3"):
        module.require_finite()
