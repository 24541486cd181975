"""Which arms are compared with which, p corrected over each table."""

from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.quality.measured import Measure, Setup
from benchmarks.quality.statistics import Paired, compare, holm

BASELINE = "uniform"
AMA = ("ama-r", "ama-s")
TOTAL = "-total"
"""How the names of arms end that have the specialists' steps on top."""


class Comparison(NamedTuple):
    """An arm against a baseline."""

    arm: str
    baseline: str
    paired: Paired
    corrected: float
    """p by Holm's correction over all comparisons made together."""


def compared(setup: Setup, pairs: Iterable[tuple[str, str]], measure: Measure) -> list[Comparison]:
    """Compare (arm, baseline) pairs over the seeds that both have; those without one are left out."""
    found = {}
    for arm, baseline in pairs:
        mine, theirs = setup.values(arm, measure), setup.values(baseline, measure)
        seeds = [seed for seed in mine if seed in theirs]
        if seeds:
            found[arm, baseline] = compare(
                [mine[seed] for seed in seeds],
                [theirs[seed] for seed in seeds],
                higher_is_better=measure.higher_is_better,
            )
    corrected = holm({"\t".join(pair): paired.p for pair, paired in found.items()})
    return [Comparison(*pair, paired, corrected["\t".join(pair)]) for pair, paired in found.items()]


def with_uniform(setup: Setup, measure: Measure) -> list[Comparison]:
    """Every generalist and merge against uniform mixing."""
    arms = [arm for arm in setup.arms("generalist", "merge") if arm != BASELINE]
    return compared(setup, [(arm, BASELINE) for arm in arms], measure)


def with_rivals(setup: Setup, measure: Measure) -> list[Comparison]:
    """AMA-R and AMA-S against what else could be done, with as much compute, too."""
    merge = setup.best_tuned_merge()
    rivals = ("standard", "uniform-clip", "uniform-total", "standard-total", *([merge] if merge else []))
    return compared(setup, [(arm, rival) for arm in AMA for rival in rivals], measure)


def with_as_long(setup: Setup, measure: Measure) -> list[Comparison]:
    """AMA-R with the specialists' steps on top against the others that have them."""
    return compared(setup, [(AMA[0] + TOTAL, rival + TOTAL) for rival in ("standard", BASELINE)], measure)


def with_plain(setup: Setup, measure: Measure) -> list[Comparison]:
    """Each way of departing from AMA-R against AMA-R as it is published."""
    plain = AMA[0]
    names = setup.arms("generalist")
    arms = [arm for arm in names if arm.startswith(f"{plain}-") and not arm.endswith(TOTAL)]
    return compared(setup, [(arm, plain) for arm in arms], measure)


def second_measure(setup: Setup) -> Measure:
    """What is compared besides the worst excess: worst generation where there is one, else worst accuracy."""
    return Measure("generation" if setup.has("generation") else "accuracy", "worst")
