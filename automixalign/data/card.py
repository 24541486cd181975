"""The statistics card of prepared data: what was read, left out and cut, and what a user must know of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from automixalign.config.data import DataSettings
from automixalign.data.clean import Candidates, Fate, group_starts
from automixalign.data.lengths import bin_width, count_long_answers, histogram
from automixalign.data.overlap.shared import shared_by_tasks
from automixalign.data.pairs import text_of
from automixalign.data.split import Labels
from automixalign.data.store import SPLITS, TEST
from automixalign.data.task_pairs import TaskPairs

_FEW_TEST_PAIRS = 100
_MAX_LISTED = 5


def describe_task(pairs: TaskPairs, settings: DataSettings, labels: Labels) -> dict[str, Any]:
    """The card's entry of a task.

    `rows`: rows that were read, and those left out by reason; `sources` has the same for each source, its
    `commit` if it is on the hub, and `passed_over`, its files that are not read, with the reason. `pairs` and
    `prompts`: the sizes of the splits. `lengths`: a histogram of the tokens of prompt and longer answer, before
    any cut; the last bin holds the pairs above `max_length`. `long_answers`: the pairs with a chosen or
    rejected answer that is too long. `chosen_failed`: rows whose chosen answer does not pass a verifier that
    needs no right one, such as `regex`.
    """
    candidates, reader = pairs.candidates, pairs.reader
    used = candidates.fates == Fate.USED
    sources = []
    for number, source in enumerate(pairs.task.sources):
        of_source = candidates.sources == number
        fates = Counter(candidates.fates[of_source].tolist())
        rows = reader.counts[number] + Counter(identical_sides=pairs.identical_sides.get(number, 0))
        rows += Counter({Fate(fate).name.lower(): count for fate, count in fates.items() if fate != Fate.USED})
        sizes = {split: int((labels[of_source] == index).sum()) for index, split in enumerate(SPLITS)}
        facts = {"path": source.path, "commit": reader.commits[number], "rows": dict(rows), "pairs": sizes}
        sources.append({**facts, "passed_over": reader.passed_over[number]})
    lengths = pairs.notes.lengths(candidates)
    return {
        "name": pairs.task.name,
        "source": pairs.task.source_names,
        "sources": sources,
        "rows": dict(sum((Counter(source["rows"]) for source in sources), Counter[str]())),
        "pairs": {split: int((labels == index).sum()) for index, split in enumerate(SPLITS)},
        "prompts": {
            split: len(group_starts(np.sort(candidates.ranks[used & (labels == index)])))
            for index, split in enumerate(SPLITS)
        },
        "lengths": {"width": bin_width(settings.max_length), "pairs": histogram(lengths)},
        "long_answers": count_long_answers(lengths),
        "chosen_failed": reader.chosen_failed,
        "derived_prompts": reader.derived_prompts,
        "derived_prompt": text_of(reader.derived.prompt)[-200:] if reader.derived else None,
        "texts_as_messages": reader.texts_as_messages,
        "prompt_cut": pairs.notes.prompt_cut,
        "lost": dict(pairs.notes.lost.most_common(_MAX_LISTED)),
    }


def describe(
    settings: DataSettings,
    candidates: Mapping[str, Candidates],
    tasks: Sequence[Mapping[str, Any]],
    dated: bool,
    near_duplicates: Mapping[str, int] | None,
) -> dict[str, Any]:
    """The card of all tasks.

    Args:
        settings: of the stage.
        candidates: task -> its candidates, split.
        tasks: the entries of the tasks.
        dated: whether the chat template asks for today's date, and no date is set.
        near_duplicates: the number of `prompts` that are alike to another, and of their `groups`.

    Returns:
        `tasks`, `shared` (what two tasks have in common), `near_duplicates`, `warnings` (sentences for the
        user), and the settings that the numbers depend on.
    """
    shared = shared_by_tasks(candidates)
    warnings = [warning for task in tasks for warning in _warnings(task, settings)]
    warnings += [
        f"tasks {' and '.join(each.tasks)} share {each.prompts:,} prompts and {each.pairs:,} whole pairs; "
        "each of these prompts is in the same split of both"
        for each in shared
    ]
    if near_duplicates and near_duplicates["prompts"]:
        warnings.append(
            f"{near_duplicates['prompts']:,} prompts are near-duplicates, in {near_duplicates['groups']:,} "
            "groups; each group is in one split"
        )
    if dated:
        warnings.append(
            "the chat template asks for today's date, so the data changes from day to day; pin it: set 'date'"
        )
    return {
        "max_length": settings.max_length,
        "long_answers": settings.long_answers,
        "seed": settings.seed,
        "tasks": list(tasks),
        "shared": [each._asdict() for each in shared],
        "near_duplicates": near_duplicates,
        "warnings": warnings,
    }


def _warnings(task: Mapping[str, Any], settings: DataSettings) -> list[str]:
    """The warnings of a task: what was left out, cut or guessed, and a test split that is too small."""
    name, sentences = task["name"], []
    for source in task["sources"]:
        if passed_over := source["passed_over"]:
            listed = [f"{file} ({why})" for file, why in list(passed_over.items())[:_MAX_LISTED]]
            more = f" and {len(passed_over) - _MAX_LISTED} more" if len(passed_over) > _MAX_LISTED else ""
            sentences.append(f"{source['path']}: not read: {', '.join(listed)}{more}")
    if count := task["chosen_failed"]:
        sentences.append(f"the verifier does not pass the chosen answer of {count:,} rows")
    if count := task["derived_prompts"]:
        sentences.append(
            f"{count:,} prompts were split off the two sides; the first ends {task['derived_prompt'][-80:]!r}"
        )
    if count := task["long_answers"]["pairs"]:
        total = sum(task["lengths"]["pairs"])
        sides = f"{task['long_answers']['chosen']:,} chosen, {task['long_answers']['rejected']:,} rejected"
        what = "left out" if settings.long_answers == "drop" else "cut"
        sentences.append(
            f"{count:,} of {total:,} pairs ({count / total:.1%}) have an answer that ends after "
            f"max_length={settings.max_length} ({sides}); they are {what} "
            f"(long_answers: {settings.long_answers})"
        )
    if count := task["texts_as_messages"]:
        sentences.append(f"{count:,} rows of plain text became chat messages, because other rows are messages")
    if count := task["prompt_cut"]:
        sentences.append(
            f"in {count:,} pairs the chat template changes the end of the prompt when an answer follows; "
            "training starts at the first difference"
        )
    for what, count in task["lost"].items():
        sentences.append(f"the chat template leaves out the {what} in {count:,} pairs")
    if (count := task["pairs"][TEST]) < _FEW_TEST_PAIRS:
        sentences.append(
            f"only {count} test pair{'s' * (count != 1)}: an accuracy of 0.7 then has a 95 % interval of "
            f"plus or minus {1.96 * (0.21 / count) ** 0.5:.2f}"
        )
    return [f"task {name}: {sentence}" for sentence in sentences]
