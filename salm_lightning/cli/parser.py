"""The argument parser: exact option names, and errors that are raised instead of printed under a long list of all options."""

from __future__ import annotations

from argparse import Action
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, StrEnum
from types import MappingProxyType
from typing import Any, NoReturn, get_args

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter
from jsonargparse.typing import register_type

from salm_lightning.cli.composition import Rules, Setting, compose
from salm_lightning.cli.messages import condense, plain_types, unknown
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


class _PlainText(DefaultHelpFormatter):
    """Help on terminals: docstrings without the marks of their markup, types by their names."""

    def _expand_help(self, action: Action) -> str:
        return plain_types(super()._expand_help(action)).replace("``", "")


class SalmArgumentParser(ArgumentParser):
    """A parser with exact option names, whose errors reach the caller as :class:`ConfigurationError`.

    Attributes:
        rules: What the command knows of some options; by default the classes that the parser holds as defaults.
        taken: Options that the program settles, by dotted name, and what the user does instead.
        example: A command that works, shown where an argument is missing.
    """

    rules: Rules | None = None
    taken: Mapping[str, str] = MappingProxyType({})
    example = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, formatter_class=_PlainText, **kwargs)

    def parse_composed(self, args: list[str]) -> Any:
        """Parse the composed command line."""
        return self.parse_args(args)

    def settle(self, settings: Setting) -> None:
        """Settle what depends on several settings, and refuse what cannot work."""

    def read(self, args: Sequence[str], base: Mapping[str, Any] | None = None, origin: str = "") -> Any:
        """Compose a command line and its config files, after ``base``, whose options messages name with ``origin``, and parse them.

        Raises:
            ConfigurationError: Something is wrong; the message says so in the words of the options that the user gave.
        """
        actions = {action.dest: action for action in self._actions if not action.dest.endswith(".help")}
        hints = {name: getattr(action, "_typehint", None) or action.type for name, action in actions.items()}
        classes = {name: action.default for name, action in actions.items() if hasattr(action.default, "class_path")}
        plain = [name for name, hint in hints.items() if dict in get_args(hint)]
        rules = self.rules or Rules({name: default.as_dict() for name, default in classes.items()}, plain=plain)
        composition = compose(args, {f"--{name}" for name, hint in hints.items() if hint is bool}, rules, base, origin)
        settings = composition.settings
        for path, way_out in self.taken.items():
            if given := settings.find(path):
                raise ConfigurationError(f"{given.origin} cannot be set: {way_out}.")
        # Else a chosen class would take over options of the same name from the default one.
        self.set_defaults({name: None for name in classes if name in settings.children})
        own = {name: hint for name, hint in hints.items() if name not in _ABOUT_OPTIONS}
        problems = unknown(settings, own, self.taken)
        try:
            self.settle(settings)
        except ConfigurationError as error:
            # What nobody knows says more than what became of it.
            raise (ConfigurationError(problems[0]) if problems else error) from error
        try:
            return self.parse_composed(composition.arguments())
        except ConfigurationError as error:
            way_out = f" ({self.prog.replace(' [options]', '')} --help lists the options)"
            stray = str(error).removeprefix("unrecognized arguments: ")
            if not problems and stray in composition.after_switch:
                problems = [f"{composition.after_switch[stray]}={stray}: expected true or false."]
            said = problems[0] if problems else condense(str(error), settings, way_out, self.example)
            raise ConfigurationError(said) from error

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Return the help; its first line names no option, of which there may be a hundred."""
        words = [action.dest for action in self._actions if not action.option_strings]
        self.usage = " ".join([self.prog.replace(" [options]", ""), "[OPTIONS]", *words])
        text: str = super().format_help(*args, **kwargs)
        return text

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a ConfigurationError; parsers that jsonargparse makes for its own use behave as it expects."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise ConfigurationError(message) from ex


def salm_error_behind(error: BaseException) -> SalmError:
    """Return the error of this package that others were raised from, or else one with the given error's message."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SalmError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return ConfigurationError(condense(str(error)))
