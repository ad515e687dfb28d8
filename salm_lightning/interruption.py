"""Interruption: SIGTERM and Ctrl-C wait for a moment at which the state of a run is complete."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import torch
    from lightning.pytorch import Trainer

_RANK_ZERO_FIRST = 2.0
"""Seconds that the other ranks stay: Lightning's launcher kills rank 0 when it finds one of them gone before."""
_LEAVING = 1.0
"""Seconds that a program may take to end once its state is saved: a scheduler that has to kill it takes that for a failure."""
_LOOKING = 0.2
"""Seconds between two looks of a rank that waits for rank 0."""
_waits = itertools.count()
_last_words: Callable[[int], object] | None = None


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


def end_in_time(last_words: Callable[[int], object]) -> None:
    """Let this process end soon after its state is saved, whatever still holds it up; it is one that does nothing else.

    ``last_words`` are given the exit code, and say what is to be said.
    """
    global _last_words
    _last_words = last_words


def end(code: int) -> NoReturn:
    """End this process at once."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def let_others_wait(work: Callable[[], None], trainer: Trainer) -> None:
    """Do something on rank 0 alone, while the others wait for as long as it takes; all ranks have to call it together.

    In a collective they would wait for half an hour and then fail.
    """
    import torch.distributed as distributed

    store = distributed.distributed_c10d._get_default_store() if trainer.world_size > 1 else None
    key = f"salm_lightning/{next(_waits)}"
    if trainer.is_global_zero:
        try:
            work()
        finally:
            if store is not None:
                store.set(key, "")
    else:
        while store is not None and not store.check([key]):
            time.sleep(_LOOKING)


class _Vote:
    """Whether any rank is for something, asked without waiting for the device; all ranks have to make and read it together."""

    def __init__(self, aye: bool, device: torch.device) -> None:
        import torch

        self._ayes = torch.full((), int(aye), device=device)
        torch.distributed.all_reduce(self._ayes)
        self._counted = torch.empty((), dtype=self._ayes.dtype, pin_memory=device.type == "cuda")
        self._counted.copy_(self._ayes, non_blocking=True)
        self._ready = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

    @property
    def passed(self) -> bool:
        """What came out."""
        if self._ready is not None:
            self._ready.synchronize()
        return bool(self._counted)


class Interruption:
    """Notes that a run has been asked to stop; a second Ctrl-C stops it at once.

    Lightning's own handler starts a collective operation wherever the signal finds the process. With several ranks in different
    places that can wait for ever, and a rank may leave a step before the others. This one notes the signal, and passes it on to
    the processes that the Trainer has launched.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._trainer: Trainer | None = None
        self._vote: _Vote | None = None

    def listen(self, trainer: Trainer) -> None:
        """Take the signals over until the Trainer, at the end of its fit or prediction, puts the handlers before it back."""
        self._received = self._vote = None
        self._trainer = trainer
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._note)

    def agreed(self, trainer: Trainer, at_once: bool = True) -> bool:
        """Return whether any rank was asked to stop; all ranks have to call it together.

        Unless ``at_once``, ranks on GPUs hear what they agreed on at the call before: nobody waits for a device then.
        """
        device = trainer.strategy.root_device
        if at_once or trainer.world_size == 1 or device.type == "cpu":
            return trainer.strategy.reduce_boolean_decision(self.noted, all=False)
        before, self._vote = self._vote, _Vote(self.noted, device)
        return before is not None and before.passed

    @property
    def noted(self) -> bool:
        """Whether this rank was asked to stop."""
        return self._received is not None

    def stop(self, trainer: Trainer) -> NoReturn:
        """Leave the run by a SIGTERMException with the exit code of the signal, as a shell reports it."""
        from lightning.fabric.plugins.environments.lightning import LightningEnvironment
        from lightning.pytorch.utilities.exceptions import SIGTERMException

        code = 128 + (self._received or signal.SIGTERM)
        if not trainer.is_global_zero and isinstance(
            getattr(trainer.strategy, "cluster_environment", None), LightningEnvironment
        ):
            time.sleep(_RANK_ZERO_FIRST)
        if _last_words is not None:
            watch = threading.Timer(_LEAVING, _leave, [code, _last_words])
            watch.daemon = True
            watch.start()
        raise SIGTERMException(code)

    def _note(self, number: int, _: FrameType | None) -> None:
        launcher = self._trainer.strategy.launcher if self._trainer else None
        if launcher is not None and not self.noted:
            launcher.kill(signal.SIGTERM)
        self._received = number
        if number == signal.SIGINT:  # SIGTERM may come twice by design, from a scheduler and from the launcher
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(code: int, last_words: Callable[[int], object]) -> NoReturn:
    last_words(code)
    end(code)


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
