"""The functions behind the subcommands of ``salm-cli`` that are not the Trainer's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]  # its __all__ is made at run time

from salm_lightning.commands.protect import protect
from salm_lightning.commands.verify import verify
from salm_lightning.config_files import CONFIG_OPTIONS, read_settings
from salm_lightning.errors import ConfigurationError
from salm_lightning.parser import SalmArgumentParser, explain, own_error

COMMANDS: dict[str, Callable[..., int]] = {"protect": protect, "verify": verify}
"""Subcommands by name; each function's arguments are the subcommand's options."""
_EXAMPLES = {"protect": "salm-cli protect pathmnist", "verify": "salm-cli verify lightning_logs/pathmnist-salm/protected"}


def run(name: str, args: Sequence[str]) -> int:
    """Parse a subcommand's arguments, run it, and return its exit code.

    Raises:
        SalmError: An argument is wrong, or the command fails.
    """
    function = COMMANDS[name]
    read_settings(args)  # a config file that is no YAML is refused in clear words
    parser = SalmArgumentParser(prog=f"salm-cli {name}", description=_first_line(function))
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with any of the options below.")
    parser.add_function_arguments(function, as_positional=True)
    try:
        config = parser.parse_args(_files_first(args))
    except ConfigurationError as error:
        raise explain(parser, args, error, example=_EXAMPLES[name]) from error
    try:
        values = parser.instantiate(config)
    except ValueError as error:
        raise own_error(error) from error
    values.pop("config", None)
    return function(**values.as_dict())


def overview(others: Mapping[str, str]) -> str:
    """Return the help of ``salm-cli`` itself.

    Args:
        others: What the remaining subcommands do, by name.
    """
    lines = {**others, **{name: _first_line(function) for name, function in COMMANDS.items()}}
    commands = "\n".join(f"  {name:10s}{text}" for name, text in lines.items())
    return (
        "usage: salm-cli COMMAND [OPTIONS]\n\nMake medical image datasets unlearnable.\n\n"
        f"commands:\n{commands}\n\n"
        "salm-cli COMMAND --help lists a command's options; COMMAND --print_config shows what they amount to.\n"
    )


def _files_first(args: Sequence[str]) -> list[str]:
    """Return the arguments with the config files in front, so that what is typed wins, the data's name included."""
    files: list[str] = []
    typed: list[str] = []
    for position, arg in enumerate(args):
        of_file = arg.partition("=")[0] in CONFIG_OPTIONS or (position > 0 and args[position - 1] in CONFIG_OPTIONS)
        (files if of_file else typed).append(arg)
    return files + typed


def _first_line(function: Callable[..., int]) -> str:
    return (function.__doc__ or "").splitlines()[0]
