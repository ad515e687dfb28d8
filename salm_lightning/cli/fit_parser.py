"""The parser of ``fit``, ``validate``, ``test`` and ``predict``: what options stand for, their defaults, and what depends on several."""

from __future__ import annotations

from inspect import signature
from typing import Any, get_args

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from salm_lightning.cli.composition import DEFAULT, Rules, Setting, same_class
from salm_lightning.cli.messages import imported
from salm_lightning.cli.parser import SalmArgumentParser
from salm_lightning.cli.refusals import refuse
from salm_lightning.data.original import Kind, kind_of
from salm_lightning.models.architecture import PAPER_SGD, Architecture
from salm_lightning.modules import NoiseGeneratorModule, VictimModule
from salm_lightning.release import PoisonedDataModule
from salm_lightning.release.protected_folder import ProtectedFolderDataModule
from salm_lightning.runs.trainers import FROM_DATA

LINKED = {
    **{f"model.{name}": "it is taken from the data, remove it" for name in FROM_DATA},
    **{f"{owner}.seed": "use --seed_everything" for owner in ("model", "data")},
}
"""Options that are settled by others, so that a value for them would be replaced silently; and what to do instead."""


def _data(word: str) -> Any:
    """Return the class and options of the data that a user's word stands for, or the word where it is a class's name."""
    kind: Any = kind_of(word)
    if kind is None:
        return word
    name, parameter = next(iter(signature(kind).parameters.items()))
    return {"class_path": kind.__name__, "init_args": {name: word} if parameter.default is parameter.empty else {}}


RULES = Rules({"model.optimizer": PAPER_SGD, "model.lr_scheduler": {"class_path": "FractionalStepLR"}}, {"data": _data})
"""What options of the optimiser and the schedule belong to until a class is named (paper: Section 4.1), and what words for data mean."""
DATA = (*get_args(Kind), PoisonedDataModule, ProtectedFolderDataModule)
"""What ``--data`` takes by name, which is every subclass that has been imported."""

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_steps": 5000,
    "max_epochs": -1,
    "check_val_every_n_epoch": None,
    "val_check_interval": 250,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
}
"""Training is counted in steps, as in the paper; the loaders shard by themselves."""


class FitParser(SalmArgumentParser, LightningArgumentParser):
    """LightningCLI's parser as :class:`SalmArgumentParser`; LightningCLI calls it by names that jsonargparse has deprecated."""

    rules, taken, example = RULES, LINKED, "salm-cli fit --config method/salm.yaml --config dataset/pathmnist.yaml"
    runs_here = True
    parent_parser: LightningArgumentParser
    subcommand: str

    def parse_composed(self, args: list[str]) -> Namespace:
        """Parse the composed command line as that of one of LightningCLI's commands."""
        found: Namespace = self.parent_parser.parse_args([self.subcommand, *args])
        return found

    def settle(self, settings: Setting) -> None:
        """Refuse what cannot work, and settle what depends on several settings: optimiser, and validations by epochs."""
        refuse(settings, self.runs_here)
        _own_optimizer(settings)
        epochs, interval = (settings.find(f"trainer.{name}") for name in ("check_val_every_n_epoch", "val_check_interval"))
        if epochs is not None and epochs.value is not None and (interval is None or (epochs.typed and not interval.typed)):
            settings.put({"trainer": {"val_check_interval": 1.0}}, DEFAULT)

    def instantiate_classes(self, cfg: Namespace, **kwargs: Any) -> Namespace:
        """Instantiate the classes of a configuration."""
        made: Namespace = self.instantiate(cfg, **kwargs)
        return made

    def save(self, *args: Any, skip_none: bool = True, **kwargs: Any) -> None:
        """Write a configuration to a file."""
        super().save(*args, skip_unset=skip_none, **kwargs)


def _own_optimizer(settings: Setting) -> None:
    """Spell out the optimiser and the schedule that are not named: those of the architecture, or of the countermeasure."""
    model = settings.find("model")
    if model is None or not any(same_class(str(model.value), kind.__name__) for kind in (NoiseGeneratorModule, VictimModule)):
        return
    for name in ("optimizer", "lr_scheduler"):
        if name not in model.children:
            settings.put({f"model.{name}": {}}, DEFAULT)
    named = [(setting.options(), name) for name in ("arch", "source") if (setting := settings.find(f"model.{name}"))]
    word = str(setting.value) if (setting := model.children.get("countermeasure")) else ""
    kind = imported(word) or imported(f"salm_lightning.countermeasures.{word}")
    shares = getattr(kind, "milestones", None)
    own = {
        "optimizer": (Architecture.parse(*named[0]).optimizer if named else None) or getattr(kind, "optimizer", None),
        "lr_scheduler": shares and {"class_path": "FractionalStepLR", "init_args": {"fractions": list(shares)}},
    }
    for name, value in own.items():
        given = model.children[name]
        if value and given.origin == DEFAULT:
            options = {key: child.options() for key, child in given.children.items() if not child.origin.startswith(DEFAULT)}
            given.put(value, DEFAULT)
            given.put(options, DEFAULT)
