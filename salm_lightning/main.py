"""``salm-cli``: the first word chooses what is imported and run."""

from __future__ import annotations

import errno
import io
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from salm_lightning import commands
from salm_lightning.errors import ConfigurationError, SalmError, look_up
from salm_lightning.interruption import Interrupted, end, end_in_time
from salm_lightning.runs.quiet import quieten

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
INTERRUPTED = 128 + 15
"""Exit code of a run that saved its state on SIGTERM, as a shell reports it."""


def main(args: Sequence[str] | None = None) -> int:
    """Run ``salm-cli``.

    Args:
        args: Command-line arguments; ``None`` takes them from the process.

    Returns:
        Exit code: 0 on success, 1 when ``verify`` finds a fault, 2 for a user's mistake, 130 after Ctrl-C, 143 after SIGTERM.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a sign, such as ±, shows another one
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        try:
            if args is None:  # the process is this program's own
                end_in_time(lambda code: _interrupted(code, arguments))
            code = _answer(arguments)
            if args is None and code in (INTERRUPTED, 128 + signal.SIGINT):
                end(code)
            return code
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left at its end
        return 128 + signal.SIGPIPE


def _answer(arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    if name in ("", "-h", "--help"):
        sys.stdout.write(commands.overview())
        return 0 if name else 2
    if name == "--version":
        from salm_lightning.version import __version__

        sys.stdout.write(f"salm-cli {__version__}\n")
        return 0
    quieten()
    try:
        _check_first(arguments)
        return commands.run(name, arguments[1:])
    except BrokenPipeError:
        raise
    except _of_lightning("MisconfigurationException", SalmError, OSError) as error:
        from salm_lightning.console import say

        say(f"salm-cli: error: {error}{_when_there_is_room(error, name)}", stderr=True)
        return 2
    except _of_lightning("SIGTERMException", Interrupted) as interruption:
        code = getattr(interruption, "code", None)  # a Trainer without a RunCheckpoint has saved nothing, and gives none
        return _interrupted(code, arguments)
    except KeyboardInterrupt:
        return 130


def _interrupted(code: int | None, arguments: Sequence[str]) -> int:
    """Say how to go on after an interruption, and return the exit code."""
    saved = code and arguments[0] in commands.TRAINERS
    way_on = "the state is saved. Go on with --ckpt_path and the run's folder" if saved else "repeat the command"
    sys.stderr.write(f"salm-cli: interrupted; {way_on}.\n")
    return int(code or INTERRUPTED)


def _when_there_is_room(error: BaseException, name: str) -> str:
    """Return how to go on after an error, if that is one of the disk."""
    if not isinstance(error, OSError) or error.errno not in _NO_ROOM:
        return ""
    again = ", with --ckpt_path and the run's folder if it has checkpoints" if name in commands.TRAINERS else ""
    return f". What was finished before is kept: make room or let it be written, and repeat the command{again}."


def _check_first(arguments: Sequence[str]) -> None:
    """Refuse a command line whose first word is no command."""
    if not arguments[0].startswith("-"):
        look_up("command", arguments[0], commands.COMMANDS)
        return
    command = next((word for word in arguments if word in commands.COMMANDS), "COMMAND")
    others = [word for word in arguments if word != command]
    raise ConfigurationError(
        f"{arguments[0]} stands where the command belongs; the command comes first: {shlex.join(['salm-cli', command, *others])}"
    )


def _of_lightning(name: str, *others: type[BaseException]) -> tuple[type[BaseException], ...]:
    """Return exceptions of ours and one of Lightning's; while it is not loaded, nothing raises that one."""
    loaded = sys.modules.get("lightning.pytorch.utilities.exceptions")
    return (*others, getattr(loaded, name)) if loaded else others
