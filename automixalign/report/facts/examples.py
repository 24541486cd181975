"""Prompts of the test split with every model's answer side by side."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from automixalign.data.store import TEST, read_split
from automixalign.report.leaderboard import CANDIDATES, Entry
from automixalign.scoring.caches import GENERATIONS, SUMMARY
from automixalign.storage import files

PROMPTS = 3
"""How many prompts of each task the page shows."""
MAX_CHARACTERS = 600
"""Of a message or an answer on the page; a longer text loses its middle."""


def examples(
    tasks: Iterable[str], entries: Sequence[Entry], evaluations: Iterable[Path], data: Path
) -> list[dict[str, Any]]:
    """The prompts of each task that separate the generalists and merges most.

    These are the prompts whose share of passed answers varies most between the models, then those with the most
    different answers. Without a verifier, the judge's win rate takes the place of the share. The order of the
    test split decides between equals.

    Args:
        tasks: in the order of the page.
        entries: the leaderboard; its models are in the order of the page.
        evaluations: a folder for each model, in any order.
        data: the prepared splits.

    Returns:
        For each task its `prompts`, none if no answers were generated for it.
    """
    folders = {files.read_json(folder / SUMMARY)["model"]: folder for folder in evaluations}
    folders = {entry["model"]: folders[entry["model"]] for entry in entries if entry["model"] in folders}
    rivals = [entry["model"] for entry in entries if entry["family"] in CANDIDATES]
    selected = _select({model: folders[model] for model in rivals if model in folders})
    answers: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for model, folder in folders.items():
        for row in _answers(folder):
            if row["pair_id"] in selected.get(row["task"], ()):
                answers[row["task"], row["pair_id"]][model].append(row)
    shown = []
    for task in tasks:
        pairs = _pairs(data, task, selected.get(task, []))
        prompts = [_prompt(pairs[pair_id], answers[task, pair_id]) for pair_id in selected.get(task, [])]
        shown.append({"task": task, "prompts": prompts})
    return shown


def _answers(folder: Path) -> Iterator[dict[str, Any]]:
    """The answers in an evaluation, one at a time: those of all models may not fit into memory."""
    with (folder / GENERATIONS).open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _select(folders: Mapping[str, Path]) -> dict[str, list[str]]:
    """Task -> the ids of the pairs whose prompts are shown."""
    marks: dict[tuple[str, str], dict[str, list[float]]] = {}
    texts: dict[tuple[str, str], set[int]] = defaultdict(set)
    for model, folder in folders.items():
        for row in _answers(folder):
            key = row["task"], row["pair_id"]
            mark = row.get("win") if row["passed"] is None else row["passed"]
            marks.setdefault(key, {}).setdefault(model, []).append(float(mark or 0))
            texts[key].add(hash(row["output"]))

    def separation(key: tuple[str, str]) -> tuple[float, int]:
        shares = [statistics.fmean(values) for values in marks[key].values()]
        return statistics.pvariance(shares), len(texts[key])

    selected: dict[str, list[str]] = defaultdict(list)
    for task, pair_id in sorted(marks, key=separation, reverse=True):  # keeps the order of equals
        if len(selected[task]) < PROMPTS:
            selected[task].append(pair_id)
    return selected


def _pairs(data: Path, task: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The pairs of the test split with these ids."""
    if not ids:
        return {}
    rows = read_split(data, task, TEST, ("pair_id", "prompt", "chosen", "answer"))
    positions = rows.column("pair_id").to_pylist()
    taken = rows.take([positions.index(pair_id) for pair_id in ids])
    return {row["pair_id"]: row for row in taken.to_pylist()}


def _prompt(pair: Mapping[str, Any], answers: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """A prompt as the page shows it. Of several samples of a model, it shows the first."""
    return {
        "messages": _messages(pair["prompt"]),
        "expected": _cut(pair["answer"]) if pair["answer"] is not None else None,
        "chosen": _messages(pair["chosen"]),
        "answers": [
            {
                "model": model,
                "text": _cut(samples[0]["output"]),
                "passed": _total(samples, "passed"),
                "wins": _total(samples, "win"),
                "samples": len(samples),
            }
            for model, samples in answers.items()
        ],
    }


def _total(samples: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Of the samples' marks; None without a verifier, or a judge."""
    marks = [sample[key] for sample in samples if sample.get(key) is not None]
    return sum(marks) if marks else None


def _messages(turn: str | Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A side of a pair as messages; a plain text is one message without a role."""
    messages = [{"role": "", "content": turn}] if isinstance(turn, str) else turn
    return [{"role": each["role"], "text": _cut(each["content"] or "")} for each in messages]


def _cut(text: str) -> str:
    """The beginning and the end of a long text: the end often has the question, or the result."""
    if len(text) <= MAX_CHARACTERS:
        return text
    tail = MAX_CHARACTERS // 3
    left_out = len(text) - MAX_CHARACTERS
    return f"{text[: MAX_CHARACTERS - tail]} [… {left_out:,} characters left out …] {text[-tail:]}"
