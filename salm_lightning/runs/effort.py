"""How models are trained, as a user says it: efforts by name, and every option beside them. Light, because ``--help`` shows it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from salm_lightning.data.tables import FolderOptions
from salm_lightning.errors import require
from salm_lightning.models import Architecture

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Effort = Literal["quick", "normal", "paper"]


class Lengths(NamedTuple):
    """Source model and its first learning rate, width factor of it and the victims, steps and PGD steps a visit, steps of each victim."""

    source_model: str | dict  # type: ignore[type-arg]  # a class of torch's would load it
    width: float
    steps: int
    updates_per_visit: int | Literal["auto"]
    source_learning_rate: float | None
    victim_steps: int


EFFORTS: dict[Effort, Lengths] = {
    # Within half an hour on two CPU cores for each dataset of MedMNIST at 28 pixels: the last pass alone has ten gradients an image.
    "quick": Lengths("cnn", width=0.125, steps=600, updates_per_visit=15, source_learning_rate=0.02, victim_steps=1000),
    "normal": Lengths("cnn", width=0.5, steps=2000, updates_per_visit=15, source_learning_rate=0.02, victim_steps=5000),
    "paper": Lengths(
        "resnet18", width=1.0, steps=5000, updates_per_visit="auto", source_learning_rate=None, victim_steps=20000
    ),  # Section 4.1, Appendix B.2
}


@dataclass(frozen=True)
class Training:
    """How noise generators and victims are trained, on one device; ``salm-cli fit`` takes several.

    Args:
        effort: Sets source_model, width, steps, updates_per_visit, source_learning_rate and victim_steps together: ``quick``,
            ``normal`` or ``paper``, the paper's. By default ``normal`` on a GPU, else ``quick``. What is given beside it wins; with
            another source model the updates are ``auto`` and the learning rate is the architecture's.
        source_model: Architecture of the source model: a name, or the path of a class with its arguments. ``cnn`` takes a fraction of
            the time of the paper's ``resnet18``.
        width: Width factor of the source model and the victims.
        steps: Training steps of the noise generator, M.
        loop: ``persistent`` keeps each image's noise between visits; ``fresh``, the paper's way, starts anew at each step.
        updates_per_visit: PGD steps per visit of an image, or ``auto``.
        victim: Architecture of the victims, in the same way.
        victim_steps: Training steps of each victim.
        source_learning_rate: First learning rate of the source model; a smaller one leaves the noise more time to get ahead of what
            the source model learns of the images.
        learning_rate: First learning rate of the victims.
        accelerator: Lightning's accelerator: ``auto``, ``cpu`` or ``gpu``.
        precision: Numerical precision.
        seed: Settles everything random.

    Raises:
        ConfigurationError: A value is unknown or out of range.
    """

    effort: Effort | None = None
    source_model: str | dict | None = None  # type: ignore[type-arg]
    width: float | None = None
    steps: int | None = None
    loop: Literal["persistent", "fresh"] = "persistent"
    updates_per_visit: int | Literal["auto"] | None = None
    victim: str | dict = "resnet18"  # type: ignore[type-arg]
    victim_steps: int | None = None
    source_learning_rate: float | None = None
    learning_rate: float | None = None
    accelerator: str = "auto"
    precision: Precision = "32-true"
    seed: int = 0

    def __post_init__(self) -> None:
        for option in ("source_model", "victim"):
            if (given := getattr(self, option)) is not None:
                Architecture.parse(given, option)
        names = ("width", "steps", "updates_per_visit", "victim_steps", "source_learning_rate", "learning_rate")
        require_positive(**{name: getattr(self, name) for name in names if getattr(self, name) != "auto"})
        check_seed(self.seed)

    @property
    def lengths(self) -> Lengths:
        """What the options and the effort amount to on this machine."""
        chosen = EFFORTS[self._chosen]
        if self.source_model not in (None, chosen.source_model):  # whose updates and learning rate they are
            chosen = chosen._replace(updates_per_visit="auto", source_learning_rate=None)
        given = {name: value for name in Lengths._fields if (value := getattr(self, name)) is not None}
        return chosen._replace(**given)

    @property
    def _chosen(self) -> Effort:
        import torch

        return self.effort or ("normal" if self.accelerator != "cpu" and torch.cuda.is_available() else "quick")

    def settings(self) -> dict[str, Any]:
        """Return what shapes noise and victims, as JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "effort"}
        values |= self.lengths._asdict()
        return values | {option: Architecture.parse(values[option]).settings() for option in ("source_model", "victim")}

    def describe(self, proof: bool) -> str:
        """Return in words how long and how wide models are trained, the victims only if they are ``proof``."""
        lengths = self.lengths
        text = (
            f"width {lengths.width:g}, {lengths.steps} steps for the noise with {Architecture.parse(lengths.source_model).name}"
        )
        text += f", {lengths.victim_steps} for each victim" if proof else ""
        if None not in (self.source_model, self.width, self.steps, self.victim_steps):
            return text
        return f"{text} (effort {self._chosen}{'' if self.effort else ', the default here'})"


@dataclass(frozen=True)
class FolderTraining(FolderOptions, Training):
    """Options of a command that trains and takes folders; the classes that it is made of document them."""


def require_positive(**values: float | None) -> None:
    """Refuse numbers, by the names of their options, that are not above 0, with a ConfigurationError."""
    for name, value in values.items():
        require(name, value, value is None or value > 0, "give more than 0")


def check_seed(seed: int, name: str = "seed") -> None:
    """Refuse a seed that NumPy does not take, with a ConfigurationError."""
    require(name, seed, 0 <= seed < 2**32, f"give 0 to {2**32 - 1}")
