"""Freed memory is kept by the process, seen in its page faults."""

import subprocess
import sys

_FAULTS = """
import resource, statistics, sys
import torch
from automixalign import heap
if sys.argv[1] == "keep":
    assert heap.keep_freed_memory()
def fill():
    return torch.ones(8 << 20).sum().item()  # 32 MiB, 8,192 pages
for _ in range(10):
    fill()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    assert fill() == 8 << 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(statistics.median_low([faults() for _ in range(9)]))
"""


def faults(how: str) -> int:
    """Of most fills; where another thread has left something behind what was freed, one goes elsewhere."""
    return int(
        subprocess.run([sys.executable, "-c", _FAULTS, how], check=True, capture_output=True, text=True).stdout
    )


def test_memory_that_was_freed_is_not_taken_anew() -> None:
    assert faults("leave") > 8_192 * 0.9
    assert faults("keep") < 8_192 * 0.1
