"""Options of a cell's fits: composed of config files, a sweep's own options and grid values, and read as ``salm-cli fit`` does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from salm_lightning.cli.composition import merge
from salm_lightning.cli.config_files import read_config, resolve_config
from salm_lightning.cli.fit import SalmCLI
from salm_lightning.errors import ConfigurationError

OF_THE_SWEEP = ("run", "release", "overwrite", "ckpt_path")
"""Options of ``fit`` that a sweep settles for each of its runs."""


def compose(name: str, section: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a fit: those of its config files, then those of the section, then those of the grid; later ones win.

    Args:
        name: ``generator`` or ``victim``, for messages.
        section: Options of ``fit``, nested or with dotted names; ``config`` names config files.
        chosen: What the grid adds, by dotted name; its ``config`` comes after the section's.

    Raises:
        ConfigurationError: A config file does not exist or is no YAML, or an option is set that the sweep settles.
    """
    options: dict[str, Any] = {}
    for files in (section.get("config"), chosen.get("config")):
        for file in [files] if isinstance(files, str) else files or []:
            options = merge(options, read_config(resolve_config(file)))
    for option in OF_THE_SWEEP:
        options.pop(option, None)  # the config of a single run may name that run
    for given in (section, chosen):
        options = merge(options, {key: value for key, value in given.items() if key != "config"})
    if settled := [option for option in OF_THE_SWEEP if option in options]:
        raise ConfigurationError(f"{name}.{settled[0]} cannot be set: a sweep settles it for each of its runs, remove it.")
    return options


class FitOptions(SalmCLI):
    """Reads options as ``salm-cli fit`` does and runs nothing; the fits may be those of another machine.

    Args:
        options: What a config file of ``fit`` may hold.
        name: ``generator`` or ``victim``; messages put it before the name of an option.

    Raises:
        ConfigurationError: ``fit`` would refuse the options.
    """

    runs_here = False

    def __init__(self, options: Mapping[str, Any], name: str) -> None:
        super().__init__(["fit"], options, f"{name}.")

    def before_instantiate_classes(self) -> None:
        """Leave all folders alone."""

    def instantiate_classes(self) -> None:
        """Build nothing yet: the release that a victim trains on may not exist."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""

    def build(self) -> FitOptions:
        """Build the data and the module, which check their arguments, and return this object.

        Raises:
            SalmError: An argument cannot work.
        """
        super().instantiate_classes()
        return self

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Build no Trainer: its devices may be those of another machine."""

    def resolved(self) -> dict[str, Any]:
        """Return every option of ``fit`` with its value, defaults included, as JSON values; those that a sweep settles left out."""
        text = self._parser("fit").dump(self.config["fit"], skip_unset=False, format="json")
        return {name: value for name, value in json.loads(text).items() if name not in OF_THE_SWEEP}
