"""Fine-tuning: a victim that already knows something."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from salm_lightning.countermeasures.base import Countermeasure
from salm_lightning.errors import DAMAGED, ConfigurationError

_PREFIX = "network."
"""What a ``VictimModule`` calls its classifier."""


class FineTune(Countermeasure):
    """Begin with the weights of a trained victim, such as one that has learnt from other images, instead of random ones.

    Architecture, width, channels and size have to be those of the checkpoint; the last layer begins anew where the classes differ in
    number. The learning rate is a tenth of that for training from scratch.

    Args:
        checkpoint: Path of a victim's ``.ckpt`` file.

    Raises:
        ConfigurationError: There is no such file.
    """

    optimizer: ClassVar[Mapping[str, Any] | None] = {
        "class_path": "torch.optim.SGD",
        "init_args": {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0005},
    }

    def __init__(self, checkpoint: str) -> None:
        if not Path(checkpoint).is_file():
            raise ConfigurationError(
                f"checkpoint={checkpoint} is no file; name a victim's checkpoint, such as lightning_logs/RUN/checkpoints/step=N.ckpt."
            )
        self.checkpoint = checkpoint

    def initialise(self, network: nn.Module) -> None:
        """Copy the weights.

        Raises:
            ConfigurationError: The file is no victim's checkpoint, or its network is another one.
        """
        saved, fresh = self._read(), network.state_dict()
        last = ["", *(name for name, layer in network.named_modules() if isinstance(layer, nn.Linear))][-1]
        replaced, shared = (f"{last}.weight", f"{last}.bias"), saved.keys() & fresh.keys()
        other = sorted(saved.keys() ^ fresh.keys())
        other += [name for name in shared if saved[name].shape != fresh[name].shape and name not in replaced]
        if other:
            raise ConfigurationError(
                f"checkpoint={self.checkpoint} holds another network: {len(other)} weights differ in name or shape, such as {other[0]}. "
                "Give the architecture, width, channels and image size that it was trained with."
            )
        fitting = {name: value for name, value in saved.items() if value.shape == fresh[name].shape}
        network.load_state_dict(fitting, strict=False)

    def _read(self) -> dict[str, Tensor]:
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
            found = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
        except DAMAGED as error:
            raise ConfigurationError(
                f"checkpoint={self.checkpoint} is damaged, or no checkpoint of this program ({error}); name a victim's .ckpt file."
            ) from error
        if not found:
            raise ConfigurationError(f"checkpoint={self.checkpoint} is no victim's; name the .ckpt file of a VictimModule's run.")
        return found
