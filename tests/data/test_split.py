"""Tasks are split by prompt."""

import math
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automixalign.config.data import SplitSpec
from automixalign.data import split
from automixalign.data.clean import Collector
from automixalign.data.pairs import Pair
from automixalign.data.store import SPLITS
from automixalign.system.errors import DataError
from tests.data import plain_data
from tests.data.rows import parsed, plain

Parts = dict[str, list[Pair]]


def split_tasks(tasks: dict[str, list[Pair]], spec: SplitSpec, seed: int) -> dict[str, Parts]:
    """Task -> split -> pairs."""
    candidates = {}
    for task, pairs in tasks.items():
        collector = Collector(seed)
        assert all([collector.add(0, pair) for pair in pairs])
        candidates[task] = collector.finish()
    labels = split.split_tasks(candidates, spec)
    ordered = {
        task: [(pairs[index], labels[task][index]) for index in candidates[task].used]
        for task, pairs in tasks.items()
    }
    return {
        task: {name: [pair for pair, label in pairs if label == number] for number, name in enumerate(SPLITS)}
        for task, pairs in ordered.items()
    }


def pair_of(prompt: str, number: int = 0) -> Pair:
    return parsed(plain(prompt, f"good {number}", f"bad {number}"))


def ids(pairs: list[Pair]) -> set[str]:
    return {pair.pair_id for pair in pairs}


@st.composite
def _tasks(draw: st.DrawFn) -> dict[str, list[Pair]]:
    """Tasks that share prompts, with several pairs and several spellings of a prompt."""
    tasks = {}
    for name in draw(st.lists(st.sampled_from("abc"), min_size=1, unique=True)):
        drawn = draw(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 3)), min_size=1, max_size=40))
        pairs = [
            pair_of(f"prompt {prompt}" if number % 2 else f"PROMPT  {prompt}", number)
            for prompt, number in sorted(set(drawn))
        ]
        tasks[name] = draw(st.permutations(pairs))
    return tasks


_CAPS = st.sampled_from([None, None, 1, 3])
_SPECS = st.builds(
    SplitSpec,
    validation=st.sampled_from([0.0, 0.1, 0.3]),
    test=st.sampled_from([0.1, 0.25, 0.5]),
    max_train=_CAPS,
    max_validation=_CAPS,
    max_test=_CAPS,
)


@settings(max_examples=300, deadline=None)
@given(tasks=_tasks(), spec=_SPECS, seed=st.integers(0, 5))
def test_no_prompt_is_in_two_splits(tasks: dict[str, list[Pair]], spec: SplitSpec, seed: int) -> None:
    expected = plain_data.split(tasks, spec, seed)
    try:
        splits = split_tasks(tasks, spec, seed)
    except DataError as error:
        assert str(error).startswith(f"task {expected}: ")
        return
    assert splits == expected
    split_of: dict[str, str] = {}
    for task, parts in splits.items():
        if {spec.max_train, spec.max_validation, spec.max_test} == {None}:
            assert sorted(ids(tasks[task])) == sorted(pair.pair_id for part in parts.values() for pair in part)
        for name, part in parts.items():
            assert all(split_of.setdefault(pair.prompt_key, name) == name for pair in part)
        assert spec.validation or not parts["validation"]


@settings(max_examples=50, deadline=None)
@given(tasks=_tasks(), seed=st.integers(0, 5), order=st.randoms(use_true_random=False))
def test_row_order_changes_no_split(tasks: dict[str, list[Pair]], seed: int, order: random.Random) -> None:
    def outcome(tasks: dict[str, list[Pair]]) -> Any:
        try:
            splits = split_tasks(tasks, SplitSpec(validation=0.2, test=0.2), seed)
        except DataError as error:
            return str(error)
        return {task: {name: ids(part) for name, part in parts.items()} for task, parts in splits.items()}

    assert outcome({task: order.sample(pairs, len(pairs)) for task, pairs in tasks.items()}) == outcome(tasks)


@pytest.mark.parametrize(
    ("count", "validation", "test", "sizes"),
    [
        (100, 0.1, 0.1, (80, 10, 10)),
        (100, 0.07, 0.29, (64, 7, 29)),
        (10, 0.0, 0.2, (8, 0, 2)),
        (15, 0.1, 0.1, (11, 2, 2)),
        (3, 0.1, 0.1, (1, 1, 1)),
        (1000, 0.05, 0.15, (800, 50, 150)),
    ],
)
def test_sizes_follow_the_shares(count: int, validation: float, test: float, sizes: tuple[int, ...]) -> None:
    pairs = [pair_of(str(number)) for number in range(count)]
    parts = split_tasks({"task": pairs}, SplitSpec(validation=validation, test=test), 0)["task"]
    assert tuple(len(parts[name]) for name in SPLITS) == sizes


HUNDRED = {"task": [pair_of(str(number)) for number in range(100)]}


def test_a_cap_takes_a_part_of_its_split_and_changes_no_other() -> None:
    whole = split_tasks(HUNDRED, SplitSpec(validation=0.2, test=0.2), 0)["task"]
    spec = SplitSpec(validation=0.2, test=0.2, max_train=5, max_validation=3, max_test=2)
    capped = split_tasks(HUNDRED, spec, 0)["task"]
    assert [len(capped[name]) for name in SPLITS] == [5, 3, 2]
    assert all(ids(capped[name]) < ids(whole[name]) for name in SPLITS)


def test_the_split_changes_with_the_seed_alone() -> None:
    assert split_tasks(HUNDRED, SplitSpec(), 0) == split_tasks(HUNDRED, SplitSpec(), 0)
    tests = [ids(split_tasks(HUNDRED, SplitSpec(), seed)["task"]["test"]) for seed in range(4)]
    assert all(left != right for left, right in pairwise(tests))


def test_the_test_split_is_spread_over_all_rows() -> None:
    pairs = [pair_of(str(number)) for number in range(1000)]
    drawn = ids(split_tasks({"task": pairs}, SplitSpec(test=0.2), 0)["task"]["test"])
    indices = [index for index, pair in enumerate(pairs) if pair.pair_id in drawn]
    # 200 of 1000 indices: their mean is within four standard errors of the middle.
    assert abs(sum(indices) / 200 - 499.5) < 4 * 1000 / math.sqrt(12 * 200)
