"""The functions behind the subcommands of ``salm-cli`` that are not the Trainer's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jsonargparse import ActionConfigFile

from salm_lightning.commands.protect import protect
from salm_lightning.commands.verify import verify
from salm_lightning.parser import SalmArgumentParser

COMMANDS: dict[str, Callable[..., int]] = {"protect": protect, "verify": verify}
"""Subcommands by name; each function's arguments are the subcommand's options."""


def run(name: str, args: Sequence[str]) -> int:
    """Parse a subcommand's arguments, run it, and return its exit code."""
    function = COMMANDS[name]
    parser = SalmArgumentParser(prog=f"salm-cli {name}", description=(function.__doc__ or "").splitlines()[0])
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with any of the options below.")
    parser.add_function_arguments(function, as_positional=True)
    config = parser.instantiate_classes(parser.parse_args(list(args)))
    config.pop("config", None)
    return function(**config.as_dict())


def overview() -> str:
    """Return the description of ``salm-cli`` with the subcommands that LightningCLI does not list."""
    lines = [f"  {name:10s}{(function.__doc__ or '').splitlines()[0]}" for name, function in COMMANDS.items()]
    return "Make medical image datasets unlearnable. Beside the subcommands below there are:" + "".join(lines)
