"""Garbage collections are rare for a while."""

import gc

from automixalign.system.garbage import rare_collections


def collections_of_the_young() -> int:
    before = gc.get_stats()[0]["collections"]
    objects = [[number] for number in range(20_000)]
    assert len(objects) == 20_000
    return int(gc.get_stats()[0]["collections"]) - before


def test_collections_are_rare_in_the_context_alone() -> None:
    thresholds = gc.get_threshold()
    with rare_collections():
        assert collections_of_the_young() <= 1
        assert gc.isenabled(), "cycles are still found"
    assert gc.get_threshold() == thresholds
    assert collections_of_the_young() > 5
