"""What a reader must not conclude from a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from automixalign.config.experiment import Experiment

_MAX_LISTED_RATES = 6
"""A grid can have many methods with a learning rate of their own."""


def limits(
    experiment: Experiment, costs: Mapping[str, Mapping[str, Any]], tasks: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Sentences on the seed, the budget, the specialists and the data of a run."""
    sentences = [
        f"One run with one seed ({experiment.seed}): it cannot show how much the numbers vary with the seed. "
        "`ama report RUN RUN ...` compares runs with several seeds.",
        _budget(experiment, costs, sum(task["pairs"]["train"] for task in tasks)),
        "Gap and excess are relative to this run's own specialists. If a specialist is weak, a small gap means "
        "little. Do not compare the gaps of runs with other specialists.",
    ]
    sentences += _starts(experiment)
    sentences += [
        f"The weights of {merge.name} were tuned on the validation split. Its validation gap is the smallest "
        "of its tries, which favours it where the run chooses its model. The test split took no part."
        for merge in experiment.merges
        if merge.is_tuned
    ]
    sentences += merges_in_full(experiment)
    synthetic = [task.name for task in experiment.tasks if task.synthetic_tasks]
    if synthetic:
        sentences.append(
            f"Synthetic data ({', '.join(synthetic)}): the result says nothing about human preferences."
        )
    if any(task.label_noise for task in experiment.tasks):
        sentences.append(
            "Some training labels were swapped on purpose (label_noise). Test labels are never swapped."
        )
    return sentences


def merges_in_full(experiment: Experiment) -> list[str]:
    """What the merges of an experiment with a quantised base are compared with."""
    if (bits := experiment.loading.quantize) is None or not experiment.merges:
        return []
    names = ", ".join(merge.name for merge in experiment.merges)
    sentence = (
        f"These merges are of the base model in full: {names}. The reference, specialists and "
        f"generalists, with which they are compared, were measured on the base in {bits}, so their gaps hold "
        "that difference, too."
    )
    if tuned := ", ".join(merge.name for merge in experiment.merges if merge.is_tuned):
        sentence += f" So do the gaps by which weights were tuned ({tuned})."
    return [sentence]


def _starts(experiment: Experiment) -> list[str]:
    """What generalists that start from a merge have above those that start from the base model."""
    warm = [f"{method.name} (from {method.init})" for method in experiment.methods if method.init]
    if not warm:
        return []
    sentence = (
        f"These start from a merge, which already has what the specialists learnt: {', '.join(warm)}. Their "
        "budget comes on top of that of the specialists."
    )
    if lora := experiment.training.lora:
        sentence += (
            " They have more capacity than methods that start from the base model: a merge may differ from "
            f"the base model in more than rank {lora.rank}, and the training adds an update of that rank. They "
            "are saved as full models."
        )
    return [sentence]


def _budget(experiment: Experiment, costs: Mapping[str, Mapping[str, Any]], train_pairs: int) -> str:
    training_costs = [costs[method.name] for method in experiment.methods if method.name in costs]
    pairs = [cost["pairs"] for cost in training_costs if "pairs" in cost]
    size = (
        f" ({max(pairs):,.0f} pairs, {max(pairs) / train_pairs:.1f} times the training data)" if pairs else ""
    )
    own = [f"{each.name} {each.learning_rate:g}" for each in experiment.methods if each.learning_rate]
    if len(own) > _MAX_LISTED_RATES:
        own = [*own[:_MAX_LISTED_RATES], f"and {len(own) - _MAX_LISTED_RATES} more"]
    rates = (
        f". Not all had the same learning rate ({', '.join(own)}), so methods are not compared at equal rates"
        if own
        else " and the same learning rate"
    )
    return (
        f"Every generalist had the same budget{size}{rates}. Another budget or learning rate may change the "
        "order."
    )
