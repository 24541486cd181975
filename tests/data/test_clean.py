"""Pairs that teach nothing are dropped and counted."""

from collections import Counter
from itertools import compress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automixalign.data.clean import Candidates, Collector, Fate, group_starts, rank
from automixalign.data.pairs import Pair, text_of
from automixalign.data.row_formats.row_format import DroppedRow
from automixalign.system.errors import DataError
from tests.data import plain_data
from tests.data.rows import Data, assistant, conversation, parsed, plain, user


def cleaned(*rows: Data) -> tuple[list[Pair], Counter[str]]:
    return sorted_out(list(map(parsed, rows)))[:2]


def sorted_out(pairs: list[Pair]) -> tuple[list[Pair], Counter[str], Candidates]:
    """The usable pairs, the number of pairs dropped, and the candidates."""
    collector = Collector(0)
    different = [pair for pair in pairs if collector.add(0, pair)]
    candidates = collector.finish()
    fates = Counter(map(Fate, candidates.fates.tolist()))
    counts = Counter(
        identical_sides=collector.identical_sides.get(0, 0),
        duplicate=fates[Fate.DUPLICATE],
        contradictory=fates[Fate.CONTRADICTORY],
    )
    usable = list(candidates.used_among(iter(pairs)))
    assert usable == list(compress(different, candidates.fates == Fate.USED))
    return usable, counts, candidates


def test_pairs_that_teach_nothing_are_dropped_and_counted() -> None:
    pairs, counts = cleaned(
        conversation("p", "yes", "no"),
        conversation("p", "same", "same"),
        conversation("p", "same", " same\n"),
        conversation("p", "yes", "no", answer="yes"),
        conversation("p", "yes", "maybe"),
        conversation("q", "a", "b"),
        conversation("q", "b", "a"),
        conversation("q", "b", "a"),
        conversation("r", "b", "a"),
    )
    assert counts == {"identical_sides": 2, "duplicate": 2, "contradictory": 2}
    assert [(text_of(pair.prompt), text_of(pair.rejected)) for pair in pairs] == [
        ("user: p", "assistant: no"),
        ("user: p", "assistant: maybe"),
        ("user: r", "assistant: a"),
    ]


@pytest.mark.parametrize("side", [[user("p"), assistant("same")], "p same", "same"])
def test_identical_sides_without_a_prompt(side: Any) -> None:
    with pytest.raises(DroppedRow, match=r"^identical_sides$"):
        parsed({"chosen": side, "rejected": side})


# Few texts, so that prompts, sides and pairs repeat. Some texts look like messages.
_TEXTS = st.sampled_from(["a", "b", " A", "user: a", "a\nassistant: b", "user: a\nassistant: b"])


@st.composite
def _rows(draw: st.DrawFn) -> dict[str, Any]:
    prompt, *sides = (draw(_TEXTS) for _ in range(3))
    if draw(st.booleans()):
        return plain(prompt, *sides)
    chosen, rejected = ([assistant(text) for text in side.split("\nassistant: ")] for side in sides)
    return {"prompt": [user(prompt)], "chosen": chosen, "rejected": rejected}


@settings(max_examples=300, deadline=None)
@given(st.lists(_rows(), max_size=60))
def test_digests_clean_as_texts_do(data: list[Data]) -> None:
    read = list(map(parsed, data))
    pairs, counts, candidates = sorted_out(read)
    expected, expected_counts = plain_data.clean(read)
    assert pairs == expected
    assert counts == expected_counts
    ranks = sorted(rank(0, pair.prompt_key) for pair in expected)
    assert candidates.ranks[candidates.used].tolist() == np.array(ranks, "S8").tolist()


def test_a_source_that_changes_between_two_readings_is_noticed() -> None:
    pairs = [parsed(conversation("p", str(number), "no")) for number in range(3)]
    _, _, candidates = sorted_out(pairs)
    for changed in ([pairs[0], pairs[2], pairs[1]], pairs[:2], [*pairs, pairs[0]]):
        with pytest.raises(DataError, match="a source changed while it was read"):
            list(candidates.used_among(iter(changed)))


def test_ranks_are_ordered_byte_by_byte() -> None:
    """Also where a byte is 0 or above 127."""
    keys = [bytes([byte, 0, other, *[0] * 5]) for byte in range(256) for other in (0, 1, 127, 128, 255)]
    assert np.sort(np.array(keys[::-1], "S8")).tolist() == [key.rstrip(b"\0") for key in sorted(keys)]
    assert len(group_starts(np.sort(np.array([*keys, *keys], "S8")))) == len(keys)
