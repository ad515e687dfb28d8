"""Interruption: SIGTERM and Ctrl-C wait for a moment at which the state of a run is complete."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_RANK_ZERO_FIRST = 2.0
"""Seconds that the other ranks stay: Lightning's launcher kills rank 0 when it finds one of them gone before."""


class Interrupted(BaseException):
    """A program was asked to stop; no exception that code between here and a Trainer would catch.

    Not KeyboardInterrupt, at which a Trainer ends the process with an exit code of its own.

    Args:
        number: Of the signal.

    Attributes:
        code: Exit code, as a shell reports a signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


class Interruption:
    """Notes that a run has been asked to stop; a second Ctrl-C stops it at once.

    Lightning's own handler starts a collective operation wherever the signal finds the process. With several ranks in different
    places that can wait for ever, and a rank may leave a step before the others. This one notes the signal, and passes it on to
    the processes that the Trainer has launched.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._trainer: Trainer | None = None

    def listen(self, trainer: Trainer) -> None:
        """Take the signals over until the Trainer, at the end of its fit or prediction, puts the handlers before it back."""
        self._received = None
        self._trainer = trainer
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._note)

    def agreed(self, trainer: Trainer) -> bool:
        """Return whether any rank was asked to stop; all ranks have to call it together."""
        return trainer.strategy.reduce_boolean_decision(self.noted, all=False)

    @property
    def noted(self) -> bool:
        """Whether this rank was asked to stop."""
        return self._received is not None

    def stop(self, trainer: Trainer) -> NoReturn:
        """Leave the run by a SIGTERMException with the exit code of the signal, as a shell reports it."""
        from lightning.pytorch.utilities.exceptions import SIGTERMException

        if not trainer.is_global_zero:
            time.sleep(_RANK_ZERO_FIRST)
        raise SIGTERMException(128 + (self._received or signal.SIGTERM))

    def _note(self, number: int, _: FrameType | None) -> None:
        launcher = self._trainer.strategy.launcher if self._trainer else None
        if launcher is not None and not self.noted:
            launcher.kill(signal.SIGTERM)
        self._received = number
        if number == signal.SIGINT:  # SIGTERM may come twice by design, from a scheduler and from the launcher
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise ``Interrupted`` on SIGTERM and Ctrl-C, wherever the program is; a Trainer that saves its state first does so."""

    def interrupt(number: int, _: FrameType | None) -> NoReturn:
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
