"""What `automixalign.data` does, in the plainest way: all in memory, one pair after the other."""

import random
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from itertools import takewhile
from typing import Any

from automixalign.config.data import DataSettings, SplitSpec
from automixalign.data.pairs import Pair, Turn, text_of
from automixalign.data.read_task import open_task
from automixalign.data.store import SPLITS
from automixalign.data.tokens import Tokens

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


def tokenize(tokenizer: Any, pair: Pair, max_length: int) -> Tokens:
    """The ids of a pair, cut at `max_length`."""
    prompt = _ids(tokenizer, pair.prompt, None)
    chosen, rejected = (_ids(tokenizer, pair.prompt, side) for side in (pair.chosen, pair.rejected))
    start = min(_common(prompt, chosen), _common(prompt, rejected))
    if start == 0 or start >= max_length:
        return Tokens([], [], [], fits=False)
    return Tokens(
        prompt[:start],
        chosen[start:max_length],
        rejected[start:max_length],
        length=max(len(chosen), len(rejected)),
        long_chosen=len(chosen) > max_length,
        long_rejected=len(rejected) > max_length,
        prompt_cut=start < len(prompt),
    )


def _ids(tokenizer: Any, prompt: Turn, side: Turn | None) -> list[int]:
    if isinstance(prompt, str):
        end = "" if side is None or str(side).endswith(tokenizer.eos_token) else tokenizer.eos_token
        return list(tokenizer(f"{prompt}{side or ''}{end}")["input_ids"])
    messages = [*prompt, *(side or [])]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=side is None, return_dict=True)
    return list(ids["input_ids"])


def _common(left: list[int], right: list[int]) -> int:
    return sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(left, right, strict=False)))


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
        "options": None,
        "answer": pair.answer,
        "swapped": swapped,
    }


def _stored(turn: Turn) -> Any:
    return turn if isinstance(turn, str) else [{**message, "more": None} for message in turn]
