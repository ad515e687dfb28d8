"""Work on many files in several processes: results in order, few of them waiting at a time, and none of the processes left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")
_AHEAD = 3
"""Tasks for each process that are handed out before their results are asked for."""
_MOST = 16
_LOOK = 1.0
"""Seconds between two looks whether the first process is there."""


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(work: Callable[[_T], _R], tasks: Iterable[_T], few: int = 2) -> Iterator[_R]:
    """Yield what ``work``, a function of a module, makes of each task, in order; tasks are taken as they are needed.

    Fewer than ``few`` tasks are done in this process, and so is what is left where processes cannot be started or die: a script without
    ``if __name__ == "__main__"`` cannot start any, and the system ends some where memory is short.
    """
    left = iter(tasks)
    first = list(islice(left, few))
    count = min(cores(), _MOST) if len(first) >= few else 1
    left = chain(first, left)
    waiting: deque[tuple[_T, Future[_R]]] = deque()
    if count > 1:
        pool = ProcessPoolExecutor(count, get_context("forkserver"), initializer=_begin, initargs=(os.getpid(),))
        try:
            for task in left:
                waiting.append((task, _submitted(pool, work, task)))
                if len(waiting) > count * _AHEAD:
                    yield waiting[0][1].result()
                    waiting.popleft()
            while waiting:
                yield waiting[0][1].result()
                waiting.popleft()
        except BrokenProcessPool:
            pass
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    for task in chain([task for task, _ in waiting], left):
        yield work(task)


def _submitted(pool: ProcessPoolExecutor, work: Callable[[_T], _R], task: _T) -> Future[_R]:
    """Hand a task out; its future says so where the processes have died."""
    try:
        return pool.submit(work, task)
    except BrokenProcessPool as error:
        future: Future[_R] = Future()
        future.set_exception(error)
        return future


def _begin(first: int) -> None:
    """Leave Ctrl-C to the first process, and end when that has: one that is killed cannot end others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(first,), daemon=True).start()


def _end_with(process: int) -> None:
    while True:
        time.sleep(_LOOK)
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            os._exit(1)
