"""Caches are joined by pair id, and refused if they belong to other data."""

from pathlib import Path

import pyarrow as pa
import pytest

from automixalign.scoring import caches
from automixalign.system.errors import CacheError


def test_join_follows_ids_not_rows() -> None:
    cache = pa.table({"pair_id": ["a", "b", "c"], "loss": [1.0, 2.0, 3.0]})
    assert caches.join(cache, ["c", "a", "c"], "here").column("loss").to_pylist() == [3.0, 1.0, 3.0]
    with pytest.raises(CacheError, match="here: 1 of 2 pairs are missing in the cache, first d"):
        caches.join(cache, ["a", "d"], "here")
    with pytest.raises(CacheError, match="twice"):
        caches.join(pa.concat_tables([cache, cache]), ["a"], "here")


def test_a_cache_of_other_data_is_refused(two_tasks: Path, two_reference_logps: Path) -> None:
    caches.check_cache(two_reference_logps / "format", two_tasks, "format")
    with pytest.raises(CacheError, match="not computed for this data of task refusal"):
        caches.check_cache(two_reference_logps / "format", two_tasks, "refusal")
    with pytest.raises(CacheError, match="no cache of task other"):
        caches.check_cache(two_reference_logps / "other", two_tasks, "other")
