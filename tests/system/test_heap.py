"""The process keeps freed memory, which its page faults show."""

from tests.system.processes import run

_FAULTS = """
import resource
import torch
from automixalign.system import heap
def fill():
    return torch.ones(8 << 20).sum().item()  # 32 MiB, 8,192 pages
def count():
    for _ in range(50):  # the process grows at first, on a busy machine up to the 13th time
        fill()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        assert fill() == 8 << 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(count())
assert heap.keep_freed_memory()
print(count())
"""


def test_freed_memory_is_reused_without_page_faults() -> None:
    left, kept = map(int, run(_FAULTS).stdout.split())
    assert left > 4 * 8_192 * 0.9
    assert kept < 8_192 * 0.1
