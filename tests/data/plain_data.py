"""What `automixalign.data` does, in the plainest way: all in memory, one pair after the other."""

import random
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from automixalign.config.data import DataSettings, SplitSpec
from automixalign.data.pairs import Pair, Turn, text_of
from automixalign.data.read_task import open_task
from automixalign.data.store import SPLITS
from automixalign.data.tokens import Tokens
from tests.data.plain_tokens import tokenize

TRAIN, VALIDATION, TEST = SPLITS
Parts = dict[str, list[Pair]]


def clean(read: Iterable[Pair]) -> tuple[list[Pair], Counter[str]]:
    """The usable pairs, and the number of pairs dropped."""
    counts: Counter[str] = Counter(identical_sides=0, duplicate=0, contradictory=0)
    pairs: dict[str, Pair] = {}
    for pair in read:
        if _stripped(pair.chosen) == _stripped(pair.rejected):
            counts["identical_sides"] += 1
        elif pair.pair_id in pairs:
            counts["duplicate"] += 1
        else:
            pairs[pair.pair_id] = pair
    sides: dict[Any, set[str]] = {}
    for pair in pairs.values():
        sides.setdefault(_unordered(pair), set()).add(text_of(pair.chosen))
    usable = [pair for pair in pairs.values() if len(sides[_unordered(pair)]) == 1]
    counts["contradictory"] = len(pairs) - len(usable)
    return usable, counts


def _stripped(turn: Turn) -> Any:
    if isinstance(turn, str):
        return turn.strip()
    return [(message["role"], message["content"].strip()) for message in turn]


def _unordered(pair: Pair) -> Any:
    return text_of(pair.prompt), frozenset({text_of(pair.chosen), text_of(pair.rejected)})


def split(tasks: dict[str, list[Pair]], spec: SplitSpec, seed: int) -> dict[str, Parts] | str:
    """Task -> split -> pairs; or the name of a task that leaves a split empty."""
    assigned: dict[str, str] = {}
    result = {}
    for task, pairs in tasks.items():
        groups: dict[str, list[Pair]] = {}
        for pair in pairs:
            groups.setdefault(pair.prompt_key, []).append(pair)
        room = {TEST: round_up(len(pairs) * spec.test), VALIDATION: round_up(len(pairs) * spec.validation)}
        parts: Parts = {name: [] for name in SPLITS}
        for prompt in sorted(groups, key=lambda prompt: sha256(f"{seed}\0{prompt}".encode()).digest()):
            if prompt not in assigned:
                with_room = (name for name in (TEST, VALIDATION) if len(parts[name]) < room[name])
                assigned[prompt] = next(with_room, TRAIN)
            parts[assigned[prompt]] += groups[prompt]
        caps = {TRAIN: spec.max_train, VALIDATION: spec.max_validation, TEST: spec.max_test}
        result[task] = {name: parts[name][: caps[name]] for name in SPLITS}
        if any(not part and (name != VALIDATION or spec.validation) for name, part in result[task].items()):
            return task
    return result


def round_up(count: float) -> int:
    return -int(-round(count, 6) // 1)


def prepare(settings: DataSettings, tokenizer: Any) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The rows of every split of every task."""
    pairs, tokens = {}, {}
    for task in settings.tasks:
        with open_task(task, settings.seed, {}) as reader:
            usable, _ = clean(pair for _, pair in reader)
        if task.limit is not None and len(usable) > task.limit:
            draw = random.Random(f"limit:{settings.seed}:{task.name}")
            usable = [usable[index] for index in sorted(draw.sample(range(len(usable)), task.limit))]
        pairs[task.name] = []
        for pair in usable:
            ids = tokens[pair.pair_id] = tokenize(tokenizer, pair, settings.max_length)
            if not ids.fits or (settings.long_answers == "drop" and (ids.long_chosen or ids.long_rejected)):
                continue
            if ids.chosen != ids.rejected:
                pairs[task.name].append(pair)
    splits = split(pairs, settings.split, settings.seed)
    assert isinstance(splits, dict)
    result = {}
    for task in settings.tasks:
        train = splits[task.name][TRAIN]
        draw = random.Random(f"noise:{settings.seed}:{task.name}")
        noisy = {pair.pair_id for pair in draw.sample(train, round(task.label_noise * len(train)))}
        result[task.name] = {
            name: [_row(task.name, pair, tokens[pair.pair_id], pair.pair_id in noisy) for pair in part]
            for name, part in splits[task.name].items()
        }
    return result


def _row(task: str, pair: Pair, ids: Tokens, swapped: bool) -> dict[str, Any]:
    sides = [(pair.chosen, ids.chosen), (pair.rejected, ids.rejected)]
    (chosen, chosen_ids), (rejected, rejected_ids) = reversed(sides) if swapped else sides
    return {
        "pair_id": pair.pair_id,
        "task": task,
        "prompt": _stored(pair.prompt),
        "chosen": _stored(chosen),
        "rejected": _stored(rejected),
        "prompt_ids": ids.prompt,
        "chosen_ids": chosen_ids,
        "rejected_ids": rejected_ids,
        "generation_ids": ids.generation,
        "options": None,
        "answer": pair.answer,
        "row": None,
        "swapped": swapped,
    }


def _stored(turn: Turn) -> Any:
    return turn if isinstance(turn, str) else [{**message, "more": None} for message in turn]
