"""The commands of ``salm-cli``, and how one of them is run: what others need is neither imported nor built."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple, get_args, get_type_hints

from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]  # its __all__ is made at run time

from salm_lightning.cli.config_files import CONFIG_OPTIONS, parse_value, read_settings, resolve_configs
from salm_lightning.cli.parser import SalmArgumentParser, explain, salm_error_behind
from salm_lightning.errors import ConfigurationError
from salm_lightning.interruption import interruptible


class Command(NamedTuple):
    """A command.

    Attributes:
        function: Module and name of what runs it; the arguments of a function are the command's options.
        help: What it does: the first line of the function's docstring.
        example: A call that works, where one lacks an argument.
    """

    function: str
    help: str
    example: str = ""


_TRAINER = "salm_lightning.cli.fit:SalmCLI"
_RELEASE = "lightning_logs/pathmnist-salm/protected"

COMMANDS = {
    "fit": Command(_TRAINER, "Train a noise generator and write the protected dataset, or train a victim."),
    "validate": Command(_TRAINER, "Measure a checkpoint on the clean validation split."),
    "test": Command(_TRAINER, "Measure a checkpoint on the clean test split."),
    "predict": Command(_TRAINER, "Write the protected dataset from a generator's checkpoint, or a victim's predictions."),
    "protect": Command(
        "salm_lightning.commands.protect:protect",
        "Protect a dataset: train the noise, write the protected copy, and prove it on a victim.",
        "salm-cli protect pathmnist",
    ),
    "classwise": Command(
        "salm_lightning.scenarios.classwise:classwise",
        "Protect a dataset class by class, each among support classes from another dataset (paper: Section 7.1).",
        "salm-cli classwise dermamnist pathmnist",
    ),
    "sweep": Command(
        "salm_lightning.commands.sweep:sweep",
        "Make releases and train victims for every combination of settings, and put the results into one table.",
        "salm-cli sweep --config sweep/methods.yaml",
    ),
    "reproduce": Command(
        "salm_lightning.commands.reproduce:reproduce",
        "Run a table, figure or case study of the paper at its settings, and show ours beside its numbers.",
        "salm-cli reproduce table1 --dry_run",
    ),
    "verify": Command(
        "salm_lightning.commands.verify:verify",
        "Check a protected dataset and print one line per check.",
        f"salm-cli verify {_RELEASE}",
    ),
    "audit": Command(
        "salm_lightning.commands.audit:audit",
        "Train models on a release, under what a determined user would try, and say whether the protection holds.",
        f"salm-cli audit {_RELEASE} --source pathmnist",
    ),
    "quality": Command(
        "salm_lightning.commands.quality:quality",
        "Measure whether protected images are still useful: similarity, segmentation, pictures.",
        f"salm-cli quality {_RELEASE} --source pathmnist",
    ),
    "report": Command(
        "salm_lightning.commands.report:report",
        "Write one HTML file that tells what was protected, how, and whether it holds.",
        f"salm-cli report {_RELEASE}",
    ),
}
"""All commands by name."""
_WITHOUT_TORCH = ("verify", "report")
_BOOLEANS = ("true", "false", "yes", "no")


def overview() -> str:
    """Return the help of ``salm-cli`` itself, as wide as the terminal."""
    width = shutil.get_terminal_size().columns
    lines = [
        textwrap.fill(command.help, width, initial_indent=f"  {name:10s}", subsequent_indent=" " * 12)
        for name, command in COMMANDS.items()
    ]
    closing = (
        "salm-cli COMMAND --help lists a command's options; COMMAND --print_config shows what they amount to; "
        "salm-cli --version names this version."
    )
    opening = "usage: salm-cli COMMAND [OPTIONS]\n\nMake medical image datasets unlearnable.\n\ncommands:"
    return "\n".join([opening, *lines, "", textwrap.fill(closing, width), ""])


def function_of(name: str) -> Callable[..., Any]:
    """Import what runs a command."""
    module, _, function = COMMANDS[name].function.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found


def of_trainer(name: str) -> bool:
    """Return whether a command is one of the Trainer's, which LightningCLI reads."""
    return name in COMMANDS and COMMANDS[name].function == _TRAINER


def run(name: str, args: Sequence[str]) -> int:
    """Read a command's arguments, run it, and return its exit code.

    Raises:
        SalmError: An argument is wrong, or the command fails.
    """
    function = function_of(name)
    if of_trainer(name):
        _prefer_tensor_cores()
        function(resolve_configs([name, *args]))
        return 0

    parser = SalmArgumentParser(prog=f"salm-cli {name}", description=COMMANDS[name].help)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with any of the options below.")
    parser.add_function_arguments(function, as_positional=True)
    args = resolve_configs([_spelled(arg, parser) for arg in args])
    typed_by_user, args = args, _switches(function, args)
    settings = read_settings(args)  # a config file that is no YAML is refused in clear words
    for action in parser._actions:
        given = settings.children.get(action.dest)
        if given is not None and given.value is not None and hasattr(action.default, "class_path"):
            # Else the chosen class would take over options of the same name, such as a step size, from the default one.
            parser.set_defaults({action.dest: None})
    typed, below = _take_below(function, _files_first(args))
    try:
        config = parser.parse_args(typed)
    except ConfigurationError as error:
        raise _not_boolean(function, typed_by_user, error) or explain(
            parser, args, error, example=COMMANDS[name].example
        ) from error
    try:
        values = parser.instantiate(config)
    except ValueError as error:
        raise salm_error_behind(error) from error
    values.pop("config", None)
    arguments = values.as_dict()
    for argument, options in below.items():
        arguments[argument] = {**(arguments[argument] or {}), **options}
    if name not in _WITHOUT_TORCH:
        _prefer_tensor_cores()
    with interruptible():
        return int(function(**arguments))


def _prefer_tensor_cores() -> None:
    """Let float32 products be made of TF32 ones where a device has them."""
    import torch

    torch.set_float32_matmul_precision("high")


def _spelled(arg: str, parser: ArgumentParser) -> str:
    """Return an argument, the name of an option with underscores: ``--dry-run`` is ``--dry_run``."""
    option, equals, value = arg.partition("=")
    name = option.replace("-", "_").replace("__", "--", 1)
    return name + equals + value if name.partition(".")[0] in parser._option_string_actions else arg


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
