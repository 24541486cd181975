"""A little of the fuzzer (`python -m benchmarks.fuzz`), always the same inputs."""

from collections import Counter

import pytest

from benchmarks.fuzz import TARGETS, aside, fuzz


@pytest.mark.parametrize("name", TARGETS)
def test_fuzz(name: str) -> None:
    seen: Counter[str] = Counter()
    with aside():
        fuzz(TARGETS[name], number=1, examples=120, seen=seen)
    assert seen.total() >= 100
    assert seen["accepted"], "inputs of which none gets through test little"
