"""The argument parser: exact option names, and errors that are raised instead of printed under a long list of all options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, StrEnum
from typing import Any, NoReturn, get_args

import yaml
from jsonargparse import ArgumentParser
from jsonargparse.typing import register_type

from salm_lightning.cli.composition import Rules, Setting, compose
from salm_lightning.cli.messages import Walk, condense
from salm_lightning.data.base import Task
from salm_lightning.errors import ConfigurationError, SalmError
from salm_lightning.noise.masks import Score

_ABOUT_OPTIONS = ("config", "help", "print_config", "print_shtab")
"""What every command takes beside its own options."""


def _reader(words: type[StrEnum]) -> Callable[[str], StrEnum]:
    return lambda text: words[text] if text in words.__members__ else words(text)


# By itself jsonargparse takes and writes the names of an enum's members, in capitals.
for _words in (Score, Task):
    register_type(_words, serializer=str, deserializer=_reader(_words), fail_already_registered=False)
# A default such as that of Lightning's Timer is one of an enum of words, whose option is a string.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, word: dumper.represent_data(word.value))


class SalmArgumentParser(ArgumentParser):
    """A parser with exact option names, whose errors reach the caller as :class:`ConfigurationError`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Return the help; its first line names no option, of which there may be a hundred."""
        words = [action.dest for action in self._actions if not action.option_strings]
        self.usage = " ".join([self.prog.replace(" [options]", ""), "[OPTIONS]", *words])
        text: str = super().format_help(*args, **kwargs)
        return text

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong; parsers that jsonargparse makes for its own use behave as it expects.

        Raises:
            ConfigurationError: Always.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        raise ConfigurationError(message) from ex


def parse(
    parser: ArgumentParser,
    args: Sequence[str],
    rules: Rules | None = None,
    taken: Mapping[str, str] | None = None,
    example: str = "",
    read: Callable[[list[str]], Any] | None = None,
    settle: Callable[[Setting], None] | None = None,
) -> Any:
    """Compose a command line and its config files, and read them.

    Args:
        parser: Parser of the command.
        args: The command line after the command.
        rules: What the command knows of some options; classes that the parser holds as defaults are added.
        taken: Options that the program settles, by dotted name, and what the user does instead.
        example: A command that works, shown where an argument is missing.
        read: Reads the composed command line, in place of the parser.
        settle: Settles what depends on several settings.

    Returns:
        What ``read`` returns.

    Raises:
        ConfigurationError: Something is wrong; the message says so in the words of the options that the user gave.
    """
    actions = {action.dest: action for action in parser._actions if not action.dest.endswith(".help")}
    hints = {name: getattr(action, "_typehint", None) or action.type for name, action in actions.items()}
    classes = {name: action.default for name, action in actions.items() if hasattr(action.default, "class_path")}
    plain = [name for name, hint in hints.items() if dict in get_args(hint)]
    rules = rules or Rules({name: default.as_dict() for name, default in classes.items()}, plain=plain)
    composition = compose(args, {f"--{name}" for name, hint in hints.items() if hint is bool}, rules)
    settings = composition.settings
    for path, way_out in (taken or {}).items():
        given = settings.find(path)
        if given is not None:
            raise ConfigurationError(f"{given.origin} cannot be set: {way_out}.")
    # Else a chosen class would take over options of the same name from the default one.
    parser.set_defaults({name: None for name in classes if name in settings.children})
    problems = (
        Walk({name: hint for name, hint in hints.items() if name not in _ABOUT_OPTIONS}, taken or ()).over(settings).problems
    )
    if settle is not None:
        try:
            settle(settings)
        except ConfigurationError as error:
            # What nobody knows says more than what became of it.
            raise (ConfigurationError(problems[0]) if problems else error) from error
    try:
        return (read or parser.parse_args)(composition.arguments())
    except ConfigurationError as error:
        way_out = f" ({parser.prog.replace(' [options]', '')} --help lists the options)"
        said = problems[0] if problems else condense(str(error), settings, way_out, example)
        raise ConfigurationError(said) from error


def salm_error_behind(error: BaseException) -> SalmError:
    """Return the error of this package that others were raised from, or else one with the given error's message."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SalmError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return ConfigurationError(condense(str(error)))
