"""How many processors this process may use, and how many threads it starts."""

import os
import sys


def available_processors() -> int:
    """The number of processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(processes: int) -> None:
    """Use one process's share of the processors, whether or not torch is imported already.

    Args:
        processes: how many such processes run on this machine at a time.
    """
    threads = max(1, available_processors() // processes)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
