"""The process keeps freed memory, which its page faults show."""

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
for _ in range(50):  # the process grows at first, on a busy machine up to the 13th time
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    assert fill() == 8 << 20
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_page_faults(mode: str) -> int:
    return int(
        subprocess.run([sys.executable, "-c", _FAULTS, mode], check=True, capture_output=True, text=True).stdout
    )


def test_freed_memory_is_reused_without_page_faults() -> None:
    assert count_page_faults("leave") > 4 * 8_192 * 0.9
    assert count_page_faults("keep") < 8_192 * 0.1
