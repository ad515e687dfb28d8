"""The functions behind the subcommands of ``salm-cli`` that are not the Trainer's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_type_hints

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]  # its __all__ is made at run time

from salm_lightning.cli.config_files import CONFIG_OPTIONS, parse_value, read_settings
from salm_lightning.cli.parser import SalmArgumentParser, explain, salm_error_behind
from salm_lightning.commands.audit import audit
from salm_lightning.commands.protect import protect
from salm_lightning.commands.quality import quality
from salm_lightning.commands.report import report
from salm_lightning.commands.reproduce import reproduce
from salm_lightning.commands.sweep import sweep
from salm_lightning.commands.verify import verify
from salm_lightning.errors import ConfigurationError
from salm_lightning.scenarios.classwise import classwise

COMMANDS: dict[str, Callable[..., int]] = {
    "protect": protect,
    "classwise": classwise,
    "sweep": sweep,
    "reproduce": reproduce,
    "verify": verify,
    "audit": audit,
    "quality": quality,
    "report": report,
}
"""Subcommands by name; each function's arguments are the subcommand's options."""
_EXAMPLES = {
    "protect": "salm-cli protect pathmnist",
    "classwise": "salm-cli classwise dermamnist pathmnist",
    "sweep": "salm-cli sweep --config sweep/methods.yaml",
    "reproduce": "salm-cli reproduce table1 --dry_run true",
    "verify": "salm-cli verify lightning_logs/pathmnist-salm/protected",
    "audit": "salm-cli audit lightning_logs/pathmnist-salm/protected --source pathmnist",
    "quality": "salm-cli quality lightning_logs/pathmnist-salm/protected --source pathmnist",
    "report": "salm-cli report lightning_logs/pathmnist-salm/protected",
}

_BOOLEANS = ("true", "false", "yes", "no")


def run(name: str, args: Sequence[str]) -> int:
    """Parse a subcommand's arguments, run it, and return its exit code.

    Raises:
        SalmError: An argument is wrong, or the command fails.
    """
    function = COMMANDS[name]
    typed_by_user, args = args, _switches(function, args)
    settings = read_settings(args)  # a config file that is no YAML is refused in clear words
    parser = SalmArgumentParser(prog=f"salm-cli {name}", description=_first_line(function))
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with any of the options below.")
    parser.add_function_arguments(function, as_positional=True)
    for action in parser._actions:
        given = settings.children.get(action.dest)
        if given is not None and given.value is not None and hasattr(action.default, "class_path"):
            # Else the chosen class would take over options of the same name, such as a step size, from the default one.
            parser.set_defaults({action.dest: None})
    typed, below = _take_below(function, _files_first(args))
    try:
        config = parser.parse_args(typed)
    except ConfigurationError as error:
        raise _not_boolean(function, typed_by_user, error) or explain(parser, args, error, example=_EXAMPLES[name]) from error
    try:
        values = parser.instantiate(config)
    except ValueError as error:
        raise salm_error_behind(error) from error
    values.pop("config", None)
    arguments = values.as_dict()
    for argument, options in below.items():
        arguments[argument] = {**(arguments[argument] or {}), **options}
    return function(**arguments)


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


def _switches(function: Callable[..., int], args: Sequence[str]) -> list[str]:
    """Return the arguments with ``true`` after a switch that stands by itself, such as ``--quick``."""
    names = _switch_names(function)
    return [f"{arg}=true" if arg in names and after.lower() not in _BOOLEANS else arg for arg, after in _with_next(args)]


def _not_boolean(function: Callable[..., int], args: Sequence[str], error: ConfigurationError) -> ConfigurationError | None:
    """Return what is wrong if the parser could not place a word because it stands after a switch, such as ``--quick maybe``."""
    names = _switch_names(function)
    found = [(arg, after) for arg, after in _with_next(args) if arg in names and after and not after.startswith("-")]
    wrong = next(((arg, after) for arg, after in found if after.lower() not in _BOOLEANS and after in str(error)), None)
    if wrong is None or "unrecognized" not in str(error).lower():
        return None
    return ConfigurationError(f"{wrong[0]}={wrong[1]}: expected true or false.")


def _switch_names(function: Callable[..., int]) -> set[str]:
    return {f"--{name}" for name, hint in get_type_hints(function).items() if hint is bool}


def _with_next(args: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(args, [*args, ""][1:], strict=False))  # without arguments nothing follows


def _take_below(function: Callable[..., int], args: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Return the arguments without those below a mapping, such as ``--grid.seed [0]``, and these by mapping and dotted name.

    jsonargparse would replace the mappings on the way to such an option.
    """
    mappings = [name for name, hint in get_type_hints(function).items() if dict in get_args(hint)]
    rest: list[str] = []
    below: dict[str, dict[str, Any]] = {name: {} for name in mappings}
    remaining = iter(args)
    for arg in remaining:
        option, equals, value = arg.partition("=")
        mapping, dot, name = option.removeprefix("--").partition(".")
        if not (dot and option.startswith("--") and mapping in below):
            rest.append(arg)
            continue
        below[mapping][name] = parse_value(value if equals else next(remaining, ""))
    return rest, {name: options for name, options in below.items() if options}


def _first_line(function: Callable[..., int]) -> str:
    return (function.__doc__ or "").splitlines()[0]
