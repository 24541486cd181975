"""Facts about the data: its size, the noise of its labels, and how far specialists have memorised it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from automixalign.config.experiment import Experiment
from automixalign.data.store import TRAIN
from automixalign.report.facts.curves import Row, last_mean
from automixalign.scoring import caches
from automixalign.storage import files
from automixalign.training.memorisation import memorisation_warning

_OF_CARD = ("name", "sources", "pairs", "tokens", "long_answers", "swapped")
_OF_MANIFEST = ("mean_loss", "gap", "gap_interval", "passes", "cross_fit")
_LOSS_AT_MARGIN_0 = {"sigmoid": math.log(2), "sigmoid_norm": math.log(2), "robust": math.log(2), "hinge": 1.0}
"""Of the losses that fall with the margin: a larger loss means that the model prefers the rejected answer."""


def data_facts(
    experiment: Experiment,
    trajectories: Mapping[str, Sequence[Row]],
    card: Mapping[str, Any],
    losses: Iterable[Path],
) -> list[dict[str, Any]]:
    """The facts of each task: its card, its specialist's losses, and two estimates of its label noise.

    `clipped`: generalist -> share of the training pairs whose loss was at or below the specialist's, over the
    last quarter of its steps; only for generalists that train on the clipped excess. `contradicted`: share of
    the training pairs whose rejected answer the specialist prefers; None if its loss cannot show that.
    """
    folders = {caches.cache_task(folder): folder for folder in losses}
    clipping = _clipping_generalists(experiment)
    facts = []
    for entry in card["tasks"]:
        task = entry["name"]
        manifest = files.read_json(folders[task] / caches.MANIFEST)
        facts.append(
            {
                **{key: entry[key] for key in _OF_CARD},
                "specialist": {key: manifest[key] for key in _OF_MANIFEST if key in manifest},
                "clipped": {name: last_mean(trajectories[name], "clipped", task) for name in clipping},
                "contradicted": _contradicted(folders[task], experiment.training.loss_type),
            }
        )
    return facts


def memorisation_warnings(experiment: Experiment, facts: Iterable[Mapping[str, Any]]) -> list[str]:
    """The warnings of the stages `specialist_losses`, from the facts of each task."""
    limit = experiment.specialist_losses.warn_gap
    warnings = (memorisation_warning(task["name"], task["specialist"], limit) for task in facts)
    return [warning for warning in warnings if warning]


def _clipping_generalists(experiment: Experiment) -> list[str]:
    sizes = {task.name: 1 for task in experiment.tasks}
    return [
        method.name
        for method in experiment.methods
        if method.mixer(sizes, experiment.seed).trains_on == "excess"
    ]


def _contradicted(cache: Path, loss_type: str) -> float | None:
    if loss_type not in _LOSS_AT_MARGIN_0:
        return None
    losses = caches.column(caches.read_cache(cache, TRAIN), caches.LOSS)
    return float((losses > _LOSS_AT_MARGIN_0[loss_type]).mean())
