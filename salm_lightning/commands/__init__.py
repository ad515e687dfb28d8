"""The commands of ``salm-cli``, and how one of them is run: what others need is neither imported nor built."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Sequence
from importlib import import_module
from keyword import iskeyword
from typing import NamedTuple

from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]  # its __all__ is made at run time

from salm_lightning.cli.parser import SalmArgumentParser, salm_error_behind
from salm_lightning.interruption import interruptible


class Command(NamedTuple):
    """A command: what it does, as the first line of its function's docstring, the arguments of a call that works, if it needs some.

    Options that are ``repeated`` add to what was given before, instead of taking its place.
    """

    help: str
    example: str = ""
    repeated: tuple[str, ...] = ()


TRAINERS = ("fit", "validate", "test", "predict")
"""The Trainer's commands, which LightningCLI reads; each of the others is the function of its name, whose arguments are its options."""
_RELEASE = "lightning_logs/pathmnist-salm/protected"
COMMANDS = {
    "fit": Command("Train a noise generator and write the protected dataset, or train a victim."),
    "validate": Command("Measure a checkpoint on the clean validation split."),
    "test": Command("Measure a checkpoint on the clean test split."),
    "predict": Command("Write the protected dataset from a generator's checkpoint, or a victim's predictions."),
    "inspect": Command("Say what a folder of images is taken for, and what stands in the way of protecting it.", "scans"),
    "protect": Command("Protect a dataset: train the noise, write the protected copy, and prove it on a victim.", "pathmnist"),
    "classwise": Command(
        "Protect a dataset class by class, each among support classes from another dataset (paper: Section 7.1).",
        "dermamnist pathmnist",
    ),
    "sweep": Command(
        "Make releases and train victims for every combination of settings, and put the results into one table.",
        "--config sweep/methods.yaml",
    ),
    "reproduce": Command(
        "Run a table, figure or case study of the paper at its settings, and show ours beside its numbers.", "table1 --dry_run"
    ),
    "verify": Command("Check a protected dataset and print one line per check.", _RELEASE),
    "audit": Command(
        "Train models on a release, under what a determined user would try, and say whether the protection holds.",
        f"{_RELEASE} --source pathmnist",
    ),
    "quality": Command(
        "Measure whether protected images are still useful: similarity, segmentation, pictures.", f"{_RELEASE} --source pathmnist"
    ),
    "key": Command(
        "Make a key: a secret one with a passphrase, and a public one, for whoever is to send you a patch.", "new my.key"
    ),
    "patch": Command(
        "Write a patch, with which partners alone get the originals of a protected result back.",
        "result --source scans --for partner.pub",
        repeated=("for", "add"),
    ),
    "restore": Command(
        "Make the originals again of a protected result with a patch for your key: every byte of all files, or nothing.",
        "result patch.c4gh --key my.key --out originals",
    ),
    "report": Command("Write one HTML file that tells what was protected, how, and whether it holds.", _RELEASE),
}
_WITHOUT_TORCH = ("inspect", "verify", "key", "patch", "restore", "report")


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


def function_of(name: str) -> Callable[..., int | None]:
    """Import the function of a command, which returns its exit code if it may be another one than 0."""
    function: Callable[..., int | None] = getattr(import_module(f"{__name__}.{name}"), name)
    return function


def run(name: str, args: Sequence[str]) -> int:
    """Read a command's arguments, run it, and return its exit code.

    Raises:
        SalmError: An argument is wrong, or the command fails.
    """
    if name in TRAINERS:
        from salm_lightning.cli.fit import SalmCLI

        _prefer_tensor_cores()
        SalmCLI([name, *args])
        return 0
    function, command = function_of(name), COMMANDS[name]
    parser = SalmArgumentParser(prog=f"salm-cli {name}", description=command.help)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with any of the options below.")
    parser.add_function_arguments(function, as_group=False, as_positional=True)
    _without_underscores(parser)
    parser.example = f"salm-cli {name} {command.example}"
    config = parser.read([_spelled(arg, parser, command.repeated) for arg in args])
    try:
        values = parser.instantiate(config)
    except ValueError as error:
        raise salm_error_behind(error) from error
    values.pop("config", None)
    if name not in _WITHOUT_TORCH:
        _prefer_tensor_cores()
    with interruptible():
        return function(**{f"{name}_" if iskeyword(name) else name: value for name, value in values.as_dict().items()}) or 0


def _prefer_tensor_cores() -> None:
    """Let float32 products be made of TF32 ones where a device has them."""
    import torch

    torch.set_float32_matmul_precision("high")


def _without_underscores(parser: ArgumentParser) -> None:
    """Let an option have a name that Python keeps for itself: ``--for`` is the argument ``for_``."""
    for action in parser._actions:
        if iskeyword(action.dest.rstrip("_")):
            action.dest = action.dest.rstrip("_")
            action.option_strings = [f"--{action.dest}"]
            parser._option_string_actions[f"--{action.dest}"] = parser._option_string_actions.pop(f"--{action.dest}_")


def _spelled(arg: str, parser: ArgumentParser, repeated: Sequence[str]) -> str:
    """Return an argument, the name of an option with underscores: ``--dry-run`` is ``--dry_run``, and ``--for`` adds to others before."""
    option, equals, value = arg.partition("=")
    name = option.replace("-", "_").replace("__", "--", 1)
    if name.removeprefix("--") in repeated:
        name += "+"
    return name + equals + value if name.partition(".")[0].rstrip("+") in parser._option_string_actions else arg
