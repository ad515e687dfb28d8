"""The argument parser: exact option names, and errors that are raised instead of printed under a long list of all options."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from enum import StrEnum
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from jsonargparse.typing import register_type

from salm_lightning.cli.config_files import read_settings
from salm_lightning.cli.messages import condense, find_problem
from salm_lightning.data.base import Task
from salm_lightning.errors import ConfigurationError, SalmError
from salm_lightning.noise.masks import Score


def _reader(words: type[StrEnum]) -> Callable[[str], StrEnum]:
    return lambda text: words[text] if text in words.__members__ else words(text)


# By itself jsonargparse takes and writes the names of an enum's members, in capitals.
for _words in (Score, Task):
    register_type(_words, serializer=str, deserializer=_reader(_words), fail_already_registered=False)


class SalmArgumentParser(ArgumentParser):
    """A parser with exact option names, whose errors reach the caller as :class:`ConfigurationError`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong; parsers that jsonargparse makes for its own use behave as it expects.

        Raises:
            ConfigurationError: Always.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        raise ConfigurationError(message) from ex


def explain(
    parser: ArgumentParser,
    args: Sequence[str],
    error: ConfigurationError,
    taken: Collection[str] = (),
    example: str = "",
) -> ConfigurationError:
    """Return a parser's error in the words of the options that the user gave, naming the closest choice where there is one.

    Args:
        parser: Parser of the subcommand.
        args: The arguments after the subcommand.
        error: What the parser raised.
        taken: Dotted options that the program settles and the user therefore neither gives nor gets as a choice.
        example: A command that works, shown where an argument is missing.
    """
    known = {action.dest: getattr(action, "_typehint", None) or action.type for action in parser._actions}
    settings = read_settings(args)
    for action in parser._actions:
        below, default = settings.children.get(action.dest), getattr(action.default, "class_path", None)
        if below is not None and below.value is None and below.children and default is not None:
            below.value = default  # only options of the default class are given
    problem = find_problem(settings, known, taken)
    if problem is None:
        tip = f"{parser.prog.replace(' [options]', '')} --help lists the options"
        missing = f"; for example: {example}" if example and "required" in str(error) else ""
        problem = f"{condense(str(error))}{missing} ({tip})"
    return ConfigurationError(problem)


def salm_error_behind(error: BaseException) -> SalmError:
    """Return the error of this package that others were raised from, or else one with the given error's message."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SalmError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return ConfigurationError(condense(str(error)))
