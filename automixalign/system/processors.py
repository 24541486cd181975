"""How many processors this process may use, and how many threads it starts."""

import os
import sys
from pathlib import Path

_THREADS = "OMP_NUM_THREADS"
_CGROUP = Path("/sys/fs/cgroup")
_LIMITS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
"""The files with the CPU limit of a container, in cgroup v2 and v1."""


def available_processors() -> int:
    """The number of processors that this process may run on, or that its container's CPU limit allows."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, _container_limit() or count)


def _container_limit() -> int | None:
    """The container's CPU limit in whole processors, at least 1; None without a limit."""
    for names in _LIMITS:
        paths = [_CGROUP / name for name in names]
        if all(path.is_file() for path in paths):
            quota, period = " ".join(path.read_text() for path in paths).split()
            if quota not in ("max", "-1"):
                return max(1, int(quota) // int(period))
    return None


def limit_threads(processes: int) -> None:
    """Use one process's share of the processors, whether or not torch is imported already.

    Args:
        processes: how many such processes run on this machine at a time.
    """
    threads = max(1, available_processors() // processes)
    os.environ[_THREADS] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def respect_container_limit() -> None:
    """Limit the threads to the container's CPU limit: torch starts one for each core of the whole machine."""
    if _THREADS not in os.environ and _container_limit() is not None:
        limit_threads(1)
