"""The commands of ``salm-cli``, and how one of them is run: what others need is neither imported nor built."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]  # its __all__ is made at run time

from salm_lightning.cli.parser import SalmArgumentParser, parse, salm_error_behind
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
        "salm_lightning.commands.classwise:classwise",
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
        function([name, *args])
        return 0

    parser = SalmArgumentParser(prog=f"salm-cli {name}", description=COMMANDS[name].help)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with any of the options below.")
    parser.add_function_arguments(function, as_group=False, as_positional=True)
    config = parse(parser, [_spelled(arg, parser) for arg in args], example=COMMANDS[name].example)
    try:
        values = parser.instantiate(config)
    except ValueError as error:
        raise salm_error_behind(error) from error
    values.pop("config", None)
    if name not in _WITHOUT_TORCH:
        _prefer_tensor_cores()
    with interruptible():
        return int(function(**values.as_dict()))


def _prefer_tensor_cores() -> None:
    """Let float32 products be made of TF32 ones where a device has them."""
    import torch

    torch.set_float32_matmul_precision("high")


def _spelled(arg: str, parser: ArgumentParser) -> str:
    """Return an argument, the name of an option with underscores: ``--dry-run`` is ``--dry_run``."""
    option, equals, value = arg.partition("=")
    name = option.replace("-", "_").replace("__", "--", 1)
    return name + equals + value if name.partition(".")[0] in parser._option_string_actions else arg
