"""Work on many files in several processes: results in order, few of them waiting at a time, and none of the processes left behind."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")
_AHEAD = 3
"""Tasks for each process that are handed out before their results are asked for."""
_MOST = 16


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def in_processes(work: Callable[[_T], _R], tasks: Sequence[_T], few: int = 2) -> Iterator[_R]:
    """Yield what ``work``, a function of a module, makes of each task, in order.

    Fewer than ``few`` tasks are done in this process, and so is what is left where processes cannot be started or die: a script without
    ``if __name__ == "__main__"`` cannot start any, and the system ends some where memory is short.
    """
    count = min(cores(), len(tasks), _MOST)
    done = 0
    if count > 1 and len(tasks) >= few:
        pool = ProcessPoolExecutor(count, get_context("forkserver"), initializer=_leave_signals_to_the_first)
        waiting: deque[Future[_R]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(work, task))
                if len(waiting) > count * _AHEAD:
                    yield waiting.popleft().result()
                    done += 1
            while waiting:
                yield waiting.popleft().result()
                done += 1
        except BrokenProcessPool:
            pass
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    for task in tasks[done:]:
        yield work(task)


def _leave_signals_to_the_first() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
