"""Freed memory is kept by the process, seen in its page faults."""

import subprocess
import sys

_FAULTS = """
import resource, sys
import torch
from automixalign.system import heap
if sys.argv[1] == "keep":
    assert heap.keep_freed_memory()
def fill():
    return torch.ones(8 << 20).sum().item()  # 32 MiB, 8,192 pages
for _ in range(50):  # the process grows at first: a few times, on a busy machine up to the 13th
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    assert fill() == 8 << 20
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    return int(
        subprocess.run([sys.executable, "-c", _FAULTS, how], check=True, capture_output=True, text=True).stdout
    )


def test_memory_that_was_freed_is_not_taken_anew() -> None:
    assert faults("leave") > 4 * 8_192 * 0.9
    assert faults("keep") < 8_192 * 0.1
