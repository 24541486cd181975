"""What may not be concluded from a run."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from automixalign.config.data import SYNTHETIC
from automixalign.config.experiment import Experiment
from automixalign.report.leaderboard import Entry, best


def limits(
    experiment: Experiment, costs: Mapping[str, Mapping[str, Any]], tasks: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Sentences: the seeds, the budget, the marks and the data that the result rests on."""
    sentences = [
        f"One run with one seed ({experiment.seed}): how far the numbers move with the seed is not known from "
        "it. `ama report RUN RUN ...` compares runs of several seeds.",
        _budget(experiment, costs, sum(task["pairs"]["train"] for task in tasks)),
        "Excess is counted from this run's own specialists: where a specialist is weak, a small excess says "
        "little, and excesses of runs with other specialists cannot be compared.",
    ]
    generated = [task.name for task in experiment.tasks if task.source.startswith(SYNTHETIC)]
    if generated:
        sentences.append(
            f"Generated data ({', '.join(generated)}): nothing here says how a method does on people's "
            "preferences."
        )
    if any(task.label_noise for task in experiment.tasks):
        sentences.append("Some training labels were swapped on purpose (label_noise); test labels never are.")
    return sentences


def _budget(experiment: Experiment, costs: Mapping[str, Mapping[str, Any]], train_pairs: int) -> str:
    known = [costs[method.name] for method in experiment.methods if method.name in costs]
    pairs = [cost["pairs"] for cost in known if "pairs" in cost]
    seen = (
        f" ({max(pairs):,.0f} pairs, {max(pairs) / train_pairs:.1f} times the training data)" if pairs else ""
    )
    return (
        f"Every generalist had the same budget{seen} and the same learning rate: with others the order may be "
        "another."
    )


def accuracy_errors(tasks: Iterable[Mapping[str, Any]], entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Per task the rough binomial standard error of an accuracy: that of the model of the verdict.

    The share is taken as (k + 2) / (n + 4), so that an accuracy of 1 does not seem to be without error.
    """
    model = best(list(entries), "worst", "excess")
    accuracies = next(entry["tasks"] for entry in entries if entry["model"] == model)
    rows = []
    for task in tasks:
        count, accuracy = task["pairs"]["test"], accuracies[task["name"]]["accuracy"]
        share = (accuracy * count + 2) / (count + 4)
        error = math.sqrt(share * (1 - share) / (count + 4))
        rows.append(
            {
                "task": task["name"],
                "pairs": count,
                "model": model,
                "accuracy": accuracy,
                "standard_error": error,
            }
        )
    return rows
