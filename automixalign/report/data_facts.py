"""What the data was: sizes and drops, how noisy its labels look, how far specialists know it by heart."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from automixalign.config.experiment import Experiment
from automixalign.config.training import specialist_name
from automixalign.data.store import TRAIN
from automixalign.method.mixer import registered_mixers
from automixalign.report.curves import Row, last_mean
from automixalign.scoring import caches
from automixalign.storage import files

_LOSS_WITHOUT_PREFERENCE = {
    "sigmoid": math.log(2),
    "sigmoid_norm": math.log(2),
    "robust": math.log(2),
    "hinge": 1.0,
}
"""The loss of a pair at margin 0, for the losses that fall with the margin: above it, the sides are swapped."""


def data_facts(
    experiment: Experiment, trajectories: Mapping[str, Sequence[Row]], card: Path, losses: Iterable[Path]
) -> list[dict[str, Any]]:
    """An entry a task: its card, its specialist's losses, and two looks at the noise of its training labels.

    `clipped`: generalist -> share of the training pairs whose loss was at or below the specialist's in the last
    quarter of its steps, for the generalists that train on the clipped excess. `contradicted`: share of the
    training pairs that the specialist itself ranks the other way; None where the loss does not tell.
    """
    folders = {caches.cache_task(folder): folder for folder in losses}
    clipping = _clipping(experiment)
    facts = []
    for entry in files.read_json(card)["tasks"]:
        task = entry["name"]
        manifest = files.read_json(folders[task] / caches.MANIFEST)
        facts.append(
            {
                **{key: entry[key] for key in ("name", "source", "rows", "pairs", "tokens", "swapped")},
                "specialist": {key: manifest[key] for key in ("mean_loss", "gap", "cross_fit")},
                "clipped": {name: last_mean(trajectories[name], "clipped", task) for name in clipping},
                "contradicted": _contradicted(folders[task], experiment.training.loss_type),
            }
        )
    return facts


def gap_warnings(experiment: Experiment, facts: Iterable[Mapping[str, Any]]) -> list[str]:
    """The tasks whose specialist knows its training pairs better than others, by more than `warn_gap`."""
    limit = experiment.specialist_losses.warn_gap
    return [
        f"{specialist_name(task['name'])}: its held-out loss lies {task['specialist']['gap']:.2f} above that "
        f"of its training pairs (warn_gap is {limit:g})"
        for task in facts
        if task["specialist"]["gap"] > limit
    ]


def _clipping(experiment: Experiment) -> list[str]:
    """The generalists that train on the clipped excess."""
    mixers, sizes = registered_mixers(), [1] * len(experiment.tasks)
    return [
        method.name
        for method in experiment.methods
        if mixers[method.method](sizes, experiment.seed, **method.options).trains_on == "excess"
    ]


def _contradicted(cache: Path, loss_type: str) -> float | None:
    if loss_type not in _LOSS_WITHOUT_PREFERENCE:
        return None
    losses = caches.column(caches.read_cache(cache, TRAIN), caches.LOSS)
    return float((losses > _LOSS_WITHOUT_PREFERENCE[loss_type]).mean())
