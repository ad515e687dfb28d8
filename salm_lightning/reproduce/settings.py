"""The paper's settings (Section 4.1, Appendix B.2) as options of ``salm-cli fit``, and what may be changed about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from salm_lightning.data import MEDMNIST, MedMNISTDataModule
from salm_lightning.errors import ConfigurationError, DataError, look_up
from salm_lightning.runs.effort import Precision, check_seed, require_positive

METHODS = ("tap", "em", "sp", "salm")
"""The paper's methods; in capitals their classes."""
_VICTIM_STEPS = 20_000
"""Training steps of a victim (Appendix B.2)."""
_STEPS = {28: 5000, 224: 3000}
"""Training steps of a generator by size (M)."""
_CHECKS, _VICTIM_CHECKS = {28: 250, 224: 500}, 500
"""Steps between two looks at the clean images."""


@dataclass(frozen=True)
class Dataset:
    """One of MedMNIST's 2-D datasets, by its name there, at one size of the paper: height and width of 28 or 224 pixels."""

    name: str
    size: int = 28

    @classmethod
    def named(cls, name: str) -> Dataset:
        """Return what a name such as ``pathmnist`` or ``pathmnist_224`` means.

        Raises:
            ConfigurationError: There is no such dataset, or the paper has nothing at that size.
        """
        base = look_up("datasets", name, [*MEDMNIST, *(f"{known}_224" for known in MEDMNIST)])
        return cls(base.removesuffix("_224"), 224 if base.endswith("_224") else 28)

    def __str__(self) -> str:
        return self.name if self.size == 28 else f"{self.name}_{self.size}"


@dataclass(frozen=True)
class Settings:
    """How and where a table or figure is reproduced; as it stands, the paper's way.

    Args:
        scale: Factor on the training steps of generators and victims.
        width: Width factor of all models.
        seeds: Seeds of releases and victims.
        root: Folder of MedMNIST's files; ``None`` is ``SALM_DATA_ROOT``, else ``~/.medmnist``.
        accelerator: Lightning's accelerator: ``auto``, ``cpu`` or ``gpu``.
        precision: Numerical precision.
        out: Folder of all runs; tables and figures share them.
        workers: Runs at a time.
        general: Folder with one subfolder of general images per class, for support classes.
        download: Whether missing datasets are downloaded; if not, nothing needs them, as in a dry run.

    Raises:
        ConfigurationError: A value is out of range.
    """

    scale: float = 1.0
    width: float = 1.0
    seeds: Sequence[int] = (0,)
    root: Path | None = None
    accelerator: str = "auto"
    precision: Precision = "32-true"
    out: Path = Path("lightning_logs/reproduce")
    workers: int = 1
    general: Path | None = None
    download: bool = True
    _reasons: dict[Dataset, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_positive(scale=self.scale, width=self.width)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigurationError(f"seeds={list(self.seeds)} has to name one or more seeds, each once, such as [0, 1].")
        for seed in self.seeds:
            check_seed(seed, "seeds")

    @property
    def labels(self) -> dict[str, str]:
        """What tells results with these settings from others, as text by column; the machine is not part of it."""
        numbers = {"scale": f"{self.scale:g}", "width": f"{self.width:g}"}
        return {**numbers, "precision": self.precision, "seeds": " ".join(map(str, self.seeds))}

    def missing(self, dataset: Dataset) -> str:
        """Return why a dataset cannot be used, or an empty string; it is downloaded if need be."""
        if self.download and dataset not in self._reasons:
            self._reasons[dataset] = ""
            try:
                self.data(dataset).prepare_data()
            except DataError as error:
                self._reasons[dataset] = str(error)
        return self._reasons.get(dataset, "")

    def steps(self, size: int) -> int:
        """Return the training steps of a noise generator, the paper's M times the scale."""
        return max(1, round(_STEPS[size] * self.scale))

    @property
    def victim_steps(self) -> int:
        """Training steps of a victim."""
        return max(1, round(_VICTIM_STEPS * self.scale))

    def data(self, dataset: Dataset) -> MedMNISTDataModule:
        """Return a dataset."""
        return MedMNISTDataModule(dataset.name, dataset.size, self.root)

    def generator(self, dataset: Dataset) -> dict[str, Any]:
        """Return options of ``fit`` for a noise generator; the paper's loop starts afresh at each step (``docs/method.md``)."""
        root = {} if self.root is None else {"root": str(self.root)}
        model = {"method": "SALM", "loop": "fresh", "width": self.width}
        return {
            "data": {"class_path": "MedMNISTDataModule", "init_args": {"name": dataset.name, **root}},
            "model": {"class_path": "NoiseGeneratorModule", "init_args": model},
            "trainer": self._trainer(self.steps(dataset.size), _CHECKS[dataset.size]),
        }

    def victim(self) -> dict[str, Any]:
        """Return options of ``fit`` for a victim."""
        return {
            "model": {"class_path": "VictimModule", "init_args": {"width": self.width}},
            "trainer": self._trainer(self.victim_steps, _VICTIM_CHECKS),
        }

    def _trainer(self, steps: int, check_interval: int) -> dict[str, Any]:
        return {
            "max_steps": steps,
            "val_check_interval": max(1, min(check_interval, steps // 10)),  # a short run has a learning curve too
            "accelerator": self.accelerator,
            "devices": 1,
            "precision": self.precision,
        }
