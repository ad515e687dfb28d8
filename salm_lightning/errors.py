"""The errors a user can cause; every message names the argument, its value and the way out."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from difflib import get_close_matches
from pickle import UnpicklingError

DAMAGED: tuple[type[Exception], ...] = (
    *(zipfile.BadZipFile, zlib.error, struct.error, UnpicklingError, OSError, EOFError),
    *(
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        MemoryError,
        RuntimeError,
    ),  # from forged headers
    *(SyntaxError, tokenize.TokenError),
)
"""What readers of NumPy, torch and zipfile raise at bytes that are not those that were written."""


class SalmError(Exception):
    """Root of every error raised on purpose by this package; the command line prints it without a traceback."""


class ConfigurationError(SalmError, ValueError):
    """A setting has a value that cannot work."""


class DataError(SalmError, ValueError):
    """A dataset file is missing, damaged or not in the layout of MedMNIST."""


class ReleaseError(SalmError, ValueError):
    """A protected dataset on disk is missing, incomplete or not what its manifest says."""


class DivergedError(SalmError, RuntimeError):
    """A model's loss is no longer a finite number; its accuracy would look like protection."""


class OutputExistsError(SalmError, FileExistsError):
    """Something already stands where the output should go, and overwriting was not asked for."""


def require(argument: str, value: object, fits: bool, way_out: str) -> None:
    """Refuse a value, which the user calls ``argument``, with a ConfigurationError unless it ``fits``.

    That is a comparison that holds, so that NaN does not fit. ``way_out`` says what to do instead, such as ``give 1 or more``.
    """
    if not fits:
        raise ConfigurationError(f"{argument}={value} is out of range; {way_out}.")


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest choice in any case, or an empty string when none is close."""
    by_lower = {choice.lower(): str(choice) for choice in choices}
    close = get_close_matches(value.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def look_up(argument: str, value: str, choices: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        ConfigurationError: It is not; the message suggests the closest choice and lists them all.
    """
    known = list(choices)
    if value in known:
        return value
    raise ConfigurationError(f"{argument}={value!r} is not known{did_you_mean(value, known) or '.'} Choices: {', '.join(known)}.")
