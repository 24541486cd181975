"""Apply a function to many items in several processes, and keep their order."""

import ctypes
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from automixalign.system.errors import ResourceError

_ITEMS_HERE = 2
"""Items that this process does itself, before it starts others."""
_PR_SET_PDEATHSIG = 1
_T = TypeVar("_T")
_R = TypeVar("_R")
_function: Callable[[Any], Any]


def map_in_processes(function: Callable[[_T], _R], items: Iterable[_T], processes: int) -> Iterator[_R]:
    """Yield `function(item)` of each item, in order.

    The processes are forks, so they need not load again what the function uses. Few items are done in this
    process. Items and results are pickled.

    Raises:
        ResourceError: a process was killed.
        Exception: whatever the function raises.
    """
    rest = iter(items)
    yield from map(function, islice(rest, _ITEMS_HERE))
    if processes == 1 or not sys.platform.startswith("linux"):
        yield from map(function, rest)
        return
    pending: deque[Future[_R]] = deque()
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(function,))
    try:
        for item in rest:
            pending.append(pool.submit(_apply, item))
            if len(pending) > 2 * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise ResourceError("a process was killed; it may have run out of memory") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(function: Callable[[Any], Any]) -> None:
    """Prepare a process: it ends with the one that started it, which also handles Ctrl-C."""
    global _function  # noqa: PLW0603  a pool hands a process nothing else
    _function = function
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _apply(item: Any) -> Any:
    return _function(item)
