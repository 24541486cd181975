"""Pairs that teach nothing are dropped and counted."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automixalign.data.clean import clean, group_starts, rank
from automixalign.data.pair_file import PairFile
from automixalign.data.pairs import Pair, parse_row, text_of
from automixalign.data.read import Row
from tests.data import plain_data
from tests.data.rows import Data, assistant, conversation, parsed, plain, user


def cleaned(*rows: Data) -> tuple[list[Pair], Counter[str]]:
    pairs = list(map(parsed, rows))
    usable, counts = clean(pairs, 0, pairs)
    return list(usable), counts


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
    assert counts == {"read": 9, "identical_sides": 2, "duplicate": 2, "contradictory": 2}
    assert [(text_of(pair.prompt), text_of(pair.rejected)) for pair in pairs] == [
        ("user: p", "assistant: no"),
        ("user: p", "assistant: maybe"),
        ("user: r", "assistant: a"),
    ]


def test_identical_sides_without_a_prompt() -> None:
    messages = [user("p"), assistant("same")]
    _, counts = cleaned(
        {"chosen": messages, "rejected": messages},
        {"chosen": "p same", "rejected": "p same"},
        {"chosen": "same", "rejected": "same"},
    )
    assert counts["identical_sides"] == 3


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
def test_digests_clean_as_texts_do(tmp_path_factory: pytest.TempPathFactory, data: list[Data]) -> None:
    rows = [Row("", row) for row in data]
    file = PairFile(tmp_path_factory.getbasetemp() / "pairs")
    pairs, counts = clean(file.write_through(map(parse_row, rows)), 0, file)
    expected, expected_counts = plain_data.clean(rows)
    assert list(pairs) == expected
    assert counts == expected_counts
    assert len(pairs) == len(expected)
    assert pairs.ranks.tolist() == np.array([rank(0, p.prompt_key) for p in expected], "S16").tolist()
    kinds = {isinstance(pair.prompt, str) for pair in expected}
    assert (pairs.conversational, pairs.mixed) == (False in kinds, len(kinds) == 2)


def test_ranks_are_ordered_byte_by_byte() -> None:
    """Also where a byte is 0 or above 127."""
    keys = [bytes([byte, 0, other, *[0] * 13]) for byte in range(256) for other in (0, 1, 127, 128, 255)]
    assert np.sort(np.array(keys[::-1], "S16")).tolist() == [key.rstrip(b"\0") for key in sorted(keys)]
    assert len(group_starts(np.sort(np.array([*keys, *keys], "S16")))) == len(keys)
