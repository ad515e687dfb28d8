"""Which network is trained: one of the names, or any class of networks with its arguments; nothing here loads torch before it builds."""

from __future__ import annotations

import inspect
import json
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from salm_lightning.errors import ConfigurationError, look_up, require
from salm_lightning.tensors import torch

if TYPE_CHECKING:
    from torch import nn

    from salm_lightning.models.backbones import Classifier

ARCHITECTURES = ("vgg11", "resnet18", "resnet50", "densenet121", "vit", "cnn", "linear")
"""Names of the networks in :mod:`salm_lightning.models.backbones`."""
_FROM_RUN = ("num_classes", "channels", "image_size", "width")
"""Arguments that a class gets where its constructor has them."""
PAPER_SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0005}}
"""What trains every network in the paper (Section 4.1)."""
_ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001, "weight_decay": 0.05}}
"""The transformer's: SGD needs a rate of 0.01 and learns less in the same number of steps; at 0.1 it may learn nothing."""


class NetworkFactory(Protocol):
    """What builds a network, with the arguments that the run settles left open; on the command line a class path with options."""

    def __call__(self, *, num_classes: int, channels: int, image_size: int, width: float) -> nn.Module:
        """Return a network that takes normalised images ``[B, channels, H, W]`` and returns logits ``[B, num_classes]``."""


@dataclass(frozen=True)
class Architecture:
    """A kind of network, without its weights.

    Attributes:
        path: One of :data:`ARCHITECTURES`, or the path of a class, such as ``my_nets.TinyNet``.
        init_args: Arguments of the class beside those that the run settles, as JSON values.
    """

    path: str
    init_args: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, value: Architecture | NetworkFactory | Mapping[str, Any] | str, argument: str = "arch") -> Architecture:
        """Return what a user names, checked.

        Args:
            value: A name in any case, a class path, ``{class_path, init_args}``, or from Python a class or ``functools.partial`` of one.
            argument: What the user calls it.

        Raises:
            ConfigurationError: The name is unknown, the class cannot be imported or is no network's, or its arguments do not fit.
        """
        if isinstance(value, str):
            return cls(value.lower() if value.lower() in ARCHITECTURES else value)._checked(argument)
        if isinstance(value, Architecture):
            return value._checked(argument)
        if isinstance(value, Mapping):
            path, init_args = value.get("class_path"), value.get("init_args") or {}
            if value.keys() - {"class_path", "init_args"} or not isinstance(path, str) or not isinstance(init_args, Mapping):
                raise ConfigurationError(
                    f"{argument}={dict(value)} is no architecture; give one of {', '.join(ARCHITECTURES)}, or class_path and init_args."
                )
            return cls(path, init_args)._checked(argument)
        parts = (value.func, *value.args) if isinstance(value, partial) else (value,)
        named = next((part for part in parts if isinstance(part, type)), type(value))
        options = value.keywords if isinstance(value, partial) else {}
        return cls(f"{named.__module__}.{named.__qualname__}", options)._checked(argument)

    @property
    def is_ours(self) -> bool:
        """Whether it is one of :data:`ARCHITECTURES`."""
        return self.path in ARCHITECTURES

    @property
    def name(self) -> str:
        """A short name for files and tables: the architecture's, or that of the class with its arguments."""
        if self.is_ours:
            return self.path
        parts = [self.path.rpartition(".")[2].lower(), *(f"{key}={value}" for key, value in self.init_args.items())]
        return re.sub(r"[^\w.=-]+", "_", "-".join(parts))

    @property
    def optimizer(self) -> Mapping[str, Any] | None:
        """Class and arguments of its own optimiser, for a class ``default_optimizer`` if it has that; ``None`` is the paper's SGD."""
        if self.is_ours:
            return _ADAMW if self.path == "vit" else None
        own: Mapping[str, Any] | None = getattr(self._class("arch"), "default_optimizer", None)
        return own

    def settings(self) -> str | dict[str, Any]:
        """Return it as JSON holds it: the name, or ``class_path`` and ``init_args``, of which the class's defaults are left out."""
        return self.path if self.is_ours else {"class_path": self.path, "init_args": dict(self.init_args)}

    def build(
        self, num_classes: int, channels: int = 3, image_size: int = 28, width: float = 1.0, seed: int = 0, as_rgb: bool = False
    ) -> Classifier:
        """Build a classifier with fresh weights.

        Args:
            num_classes: Length of the logits.
            channels: 1 (grey) or 3 (RGB).
            image_size: Height and width in pixels; up to 64 px the stem keeps the resolution, above it is torchvision's own.
            width: Factor on the number of channels of every layer; 0.25 makes a ResNet-18 that trains in minutes on a CPU.
            seed: Of the weights; torch's global generator is left as it was.
            as_rgb: Whether grey images go through a network of three channels, which see the same: noise on the one channel is then
                tied over the three. Images with colours stay as they are.

        Raises:
            ConfigurationError: An argument is out of range, or the class does not build a classifier from them.
        """
        from salm_lightning.models import backbones
        from salm_lightning.models.backbones import Classifier

        require("width", width, width > 0, "give a factor above 0, such as 0.25 or 1")
        require("num_classes", num_classes, num_classes >= 1, "give 1 or more")
        grey_as_rgb = as_rgb and channels == 1
        given = (num_classes, 3 if grey_as_rgb else channels, image_size, width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if not self.is_ours:
                return self._from_class(dict(zip(_FROM_RUN, given, strict=True)), grey_as_rgb)
            network = getattr(backbones, self.path)(*given)
        return Classifier(network, min_size=32 if self.path == "vgg11" else 0, as_rgb=grey_as_rgb)

    def __call__(self, *, num_classes: int, channels: int, image_size: int, width: float) -> nn.Module:
        """Build it, as any :class:`NetworkFactory` does."""
        return self.build(num_classes, channels, image_size, width)

    def __hash__(self) -> int:
        return hash(json.dumps(self.settings(), sort_keys=True))

    def _checked(self, argument: str) -> Architecture:
        """Return it with JSON values that differ from the class's defaults, so that it is the same however it was spelled."""
        if "." not in self.path:
            try:
                look_up(argument, self.path, ARCHITECTURES)
            except ConfigurationError as error:
                raise ConfigurationError(f"{error} Or give the path of a class, such as my_nets.TinyNet.") from None
        if self.is_ours:
            if self.init_args:
                raise ConfigurationError(
                    f"{argument}={self.path} takes no init_args; leave them out, or give the path of a class."
                )
            return self
        signature = inspect.signature(self._class(argument))
        parameters = signature.parameters
        try:
            values: dict[str, Any] = json.loads(json.dumps(dict(self.init_args)))
            signature.bind(**dict.fromkeys(name for name in _FROM_RUN if name in parameters), **values)
        except TypeError as error:
            own = ", ".join(name for name in parameters if name not in _FROM_RUN) or "none"
            raise ConfigurationError(
                f"{argument}={self.path} does not take init_args={dict(self.init_args)} ({error}). Its arguments, given as plain values "
                f"and beside those that the run settles ({', '.join(_FROM_RUN)}): {own}."
            ) from None
        usual = {name: json.dumps(parameter.default, default=repr) for name, parameter in parameters.items()}
        return Architecture(self.path, {key: value for key, value in values.items() if usual.get(key) != json.dumps(value)})

    def _class(self, argument: str) -> type[nn.Module]:
        from torch import nn

        try:
            found = pkgutil.resolve_name(self.path)
        except Exception as error:  # whatever a module of the user's raises
            raise ConfigurationError(
                f"{argument}={self.path} cannot be imported ({error}); give the path of a class, and its folder in PYTHONPATH."
            ) from error
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise ConfigurationError(
                f"{argument}={self.path} is no torch.nn.Module; give a class of networks. One around what a function makes is in "
                "docs/extending.md."
            )
        return found

    def _from_class(self, given: Mapping[str, Any], as_rgb: bool) -> Classifier:
        """Build a class and look at what it makes of two images, before any work with it."""
        from salm_lightning.models.backbones import Classifier

        kind, size = self._class("arch"), given["image_size"]
        takes = inspect.signature(kind).parameters
        try:
            network = kind(**{key: value for key, value in given.items() if key in takes}, **self.init_args)
            classifier = Classifier(network, as_rgb=as_rgb).eval()
            with torch.no_grad():
                logits = classifier(torch.zeros(2, 1 if as_rgb else given["channels"], size, size))
        except Exception as error:  # whatever a class of the user's raises
            raise ConfigurationError(f"arch={self.path} fails with {dict(given)}: {type(error).__name__}: {error}") from error
        shape, expected = getattr(logits, "shape", type(logits).__name__), (2, given["num_classes"])
        if shape != expected:
            raise ConfigurationError(
                f"arch={self.path} returns {shape} for two images; it has to return logits of the shape {expected}."
            )
        return classifier.train()
