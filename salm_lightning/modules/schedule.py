"""The paper's learning-rate schedule, stated as shares of the training length (paper: Section 4.1)."""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from salm_lightning.countermeasures import Countermeasure
from salm_lightning.errors import ConfigurationError
from salm_lightning.models import Architecture
from salm_lightning.models.architecture import PAPER_SGD


class FractionalStepLR(LRScheduler):
    """Multiply the learning rate by ``gamma`` when given shares of the training steps have passed.

    Args:
        optimizer: What to schedule.
        fractions: Shares of the training length in (0, 1], ascending.
        gamma: Factor at each of them.
        total_steps: Training length M; ``None`` waits for the module, which takes it from the Trainer.

    Raises:
        ConfigurationError: ``fractions`` are not ascending in (0, 1].
    """

    def __init__(
        self, optimizer: Optimizer, fractions: Sequence[float] = (0.4, 0.8), gamma: float = 0.1, total_steps: int | None = None
    ) -> None:
        if sorted(fractions) != list(fractions) or any(not 0 < fraction <= 1 for fraction in fractions):
            raise ConfigurationError(f"fractions={list(fractions)} must ascend within (0, 1], such as [0.4, 0.8].")
        self.fractions = tuple(fractions)
        self.gamma = gamma
        self.total_steps = total_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rate of every parameter group at the current step."""
        total = self.total_steps or 0
        passed = sum(total > 0 and self.last_epoch >= round(fraction * total) for fraction in self.fractions)
        return [float(base) * self.gamma**passed for base in self.base_lrs]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the step that was reached; shares, factor and length stay those given now, as the run may have become longer."""
        super().load_state_dict(state_dict | {"fractions": self.fractions, "gamma": self.gamma, "total_steps": self.total_steps})
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def default_optimizer(
    arch: Architecture, countermeasure: Countermeasure | None = None, learning_rate: float | None = None
) -> OptimizerCallable:
    """Return the builder of the optimiser that a network has unless another one is chosen, perhaps with another first learning rate.

    The architecture's own has the say, as that of the transformer, which SGD hardly trains; then the countermeasure's, such as
    fine-tuning's with a smaller rate; then the paper's SGD.
    """
    options: Mapping[str, Any] = arch.optimizer or (countermeasure.optimizer if countermeasure else None) or PAPER_SGD
    arguments = options["init_args"] if learning_rate is None else {**options["init_args"], "lr": learning_rate}
    return partial(pkgutil.resolve_name(options["class_path"]), **arguments)


def automatic_updates(noises: int, steps: int, batch_size: int) -> int:
    """Return the PGD steps per visit, 1 to 10, that give each of so many noises about 30 over a training."""
    return min(10, max(1, math.ceil(30 * noises / (steps * batch_size))))


def training_length(trainer: Trainer, needed_by: str, instead: str) -> int:
    """Return the steps of a whole training, whether they or the epochs are given; the Trainer has its data.

    Raises:
        ConfigurationError: The training ends by the clock alone, or never.
    """
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise ConfigurationError(
            f"{needed_by} needs the training length: give trainer.max_steps or max_epochs, or {instead}; a max_time alone does not tell it."
        )
    return int(steps)


def warn_of_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Say which settings of a resumed run differ from its checkpoint's, and what of them counts."""
    changed = [key for key in before if key in now and before[key] != now[key]]
    if changed:
        kept = ", but the optimiser goes on as it was saved" if "optimizer" in changed else ""
        listed = "; ".join(f"{key}: {before[key]!r} in the checkpoint, {now[key]!r} now" for key in changed)
        rank_zero_warn(f"Resuming with other settings than the checkpoint's; those given now are used{kept}. {listed}.")
