"""How far a specialist has memorised its training pairs, and the warning about it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from automixalign.config.training import SpecialistLossesSettings, specialist_name
from automixalign.data.store import SPLITS, TRAIN
from automixalign.scoring.caches import Floats
from automixalign.scoring.intervals import difference_interval, prompt_numbers

_PASSES = 2
"""A training that saw each pair less often cannot have memorised many of them."""


def measure_memorisation(
    settings: SpecialistLossesSettings, losses: Mapping[str, Floats], pairs: Mapping[str, pa.Table]
) -> dict[str, Any]:
    """The memorisation of a specialist, for its manifest.

    Args:
        settings: of the stage.
        losses: split -> the specialist's loss of each pair.
        pairs: split -> its pairs.

    Returns:
        `gap`: mean loss of the held-out pairs minus mean loss of the training pairs, in nats, which is not the
        gap between a generalist and a specialist. `gap_interval`: its 95 % interval; None for fewer than two
        prompts. `passes`: how often the training saw each pair; None if unknown. `cross_fit`: whether
        specialists of the other half scored the training pairs.
    """
    held_out = [split for split in SPLITS if split != TRAIN]
    values = np.concatenate([losses[split] for split in held_out])
    prompts = prompt_numbers(
        ids for split in (*held_out, TRAIN) for ids in pairs[split].column("prompt_ids").to_pylist()
    )
    passes = None
    if settings.budget is not None and settings.pairs_per_step is not None:
        count = len(losses[TRAIN])
        passes = settings.budget.count_steps(count, settings.pairs_per_step) * settings.pairs_per_step / count
    return {
        "gap": float(values.mean() - losses[TRAIN].mean()),
        "gap_interval": difference_interval(
            values, prompts[: len(values)], losses[TRAIN], prompts[len(values) :]
        ),
        "passes": passes,
        "cross_fit": settings.fold is not None,
    }


def memorisation_warning(task: str, measured: Mapping[str, Any], warn_gap: float) -> str | None:
    """What is wrong with a specialist, and what to do; None if it has not memorised its training pairs.

    Args:
        task: the task of the specialist.
        measured: of `measure_memorisation`. A manifest of an earlier version has neither interval nor passes.
        warn_gap: the largest value without a warning.
    """
    if measured["gap"] <= warn_gap:
        return None
    interval = measured.get("gap_interval", (measured["gap"],))
    if interval is None or interval[0] <= 0:
        return None
    seen = measured.get("passes")
    if measured["cross_fit"]:
        remedy = "cross-fitting cannot help, because the splits differ; check the data"
    elif seen is not None and seen < _PASSES:
        return None
    else:
        remedy = "train it less, give it more data, or set specialist_losses.cross_fit"
    return (
        f"{specialist_name(task)}: its held-out loss is {measured['gap']:.2f} above its training loss "
        f"(warn_gap is {warn_gap:g}): {remedy}"
    )
