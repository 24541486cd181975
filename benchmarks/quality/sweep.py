"""Tunes the arms of a setup, then runs all of them on every seed; a process works on one seed at a time."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from automixalign.config.training import specialist_name
from automixalign.data.store import TEST, VALIDATION
from automixalign.system import orphans
from benchmarks import harness
from benchmarks.quality.arms import REFERENCE, Arm, Merge, Options
from benchmarks.quality.setups import SETUPS, Setup
from benchmarks.quality.store import Store

if TYPE_CHECKING:
    from benchmarks.quality.seed_models import SeedModels

Chosen = Mapping[str, Options]
"""Arm -> its tuned options."""
Tuned = dict[str, dict[str, Any]]
"""Arm -> `chosen` options and every candidate that was `tried`."""
_ROW_KEYS = ("arm", "family", "steps", "tokens", "seconds", "options")


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments that all commands of the benchmark share."""
    made = harness.parser(description)
    made.add_argument("--output", type=Path, default=Path("runs/quality"), help="folder of all models")
    made.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, each with a seed")
    return made


@contextmanager
def pool(jobs: int, output: Path) -> Iterator[ProcessPoolExecutor]:
    """Processes that share the processors, log to files, and end with this process."""
    logs = output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    os.environ[orphans.LOCK_VARIABLE] = str(logs / f"{os.getpid()}.alive")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    os.environ["HF_HUB_OFFLINE"] = "1"
    with (
        orphans.hold_lock(Path(os.environ[orphans.LOCK_VARIABLE])),
        ProcessPoolExecutor(
            jobs, get_context("forkserver"), initializer=_log_to_file, initargs=(logs,)
        ) as workers,
    ):
        yield workers


def _log_to_file(logs: Path) -> None:
    from benchmarks.quality.seed_models import TERMINAL

    os.setpgid(0, 0)  # so that this process and its children end together
    orphans.end_with_lock_holder()
    os.environ[TERMINAL] = str(os.dup(2))
    log = (logs / f"{os.getpid()}.log").open("a", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)


@contextmanager
def seed_models(
    setup: Setup, seed: int, data: Path | None, output: Path, **training: Any
) -> "Iterator[SeedModels]":
    """The models of one seed; `training` overrides options of every training."""
    # Imported here because they import torch, which the main process does not need.
    from benchmarks.quality import frozen_layers
    from benchmarks.quality.seed_models import SeedModels

    scratch = output / "sources"
    scratch.mkdir(parents=True, exist_ok=True)
    experiment = setup.configured(seed, data, scratch)
    changed = experiment.training.model_copy(update=training)
    experiment = experiment.model_copy(update={"training": changed})
    with frozen_layers.cached(setup.frozen_layers, output / "frozen"):
        yield SeedModels(Store(output / "store"), experiment, setup.verifiers(), drift_pairs=setup.drift_pairs)


@dataclass(frozen=True)
class Sweep:
    """A setup, the folder of its data, and the folder of everything that is made.

    Args:
        setup: its name in `SETUPS`; worker processes look it up.
    """

    setup: str
    data: Path | None
    output: Path

    @property
    def arms(self) -> tuple[Arm | Merge, ...]:
        """The arms that are trained or merged."""
        return *SETUPS[self.setup].generalists, *SETUPS[self.setup].merges

    def head(self) -> dict[str, Any]:
        """What identifies the experiment in a results file."""
        setup = SETUPS[self.setup]
        return {
            "setup": self.setup,
            "experiment": experiment_without_paths(setup, self.data, self.output),
            "tuning_seeds": list(setup.tuning_seeds),
        }

    def seed_models(self, seed: int) -> "AbstractContextManager[SeedModels]":
        """The models of one seed."""
        return seed_models(SETUPS[self.setup], seed, self.data, self.output)


def run(
    sweep: Sweep, seeds: Sequence[int], workers: ProcessPoolExecutor, before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that a results file holds, except the command.

    Args:
        before: an earlier results file. If its experiment is the same, its seeds are kept, and so are tuning
            and rows of the arms that have not changed.
    """
    head = sweep.head()
    if before and any(before.get(key) != value for key, value in head.items()):
        print(f"the results are those of another {sweep.setup}: all of it runs again", file=sys.stderr)
        before = None
    tasks = [task["name"] for task in head["experiment"]["tasks"]]
    order = [REFERENCE, *map(specialist_name, tasks), *(arm.name for arm in sweep.arms)]
    before = before or {"arms": [], "tuned": {}, "rows": [], "seeds": []}
    stale = changed_arms(sweep.arms, before["arms"])
    old = {name: tuning for name, tuning in before["tuned"].items() if name not in stale}
    rows = [row for row in before["rows"] if row["arm"] in order and row["arm"] not in stale]
    tuned = _tune(sweep, old, tasks, workers)
    missing: dict[int, set[str]] = {seed: set(order) for seed in sorted({*before["seeds"], *seeds})}
    for row in rows:
        missing[row["seed"]].discard(row["arm"])
    units = [(seed, arms) for seed, arms in missing.items() if arms]
    for found in workers.map(partial(_measure, sweep, _chosen(sweep.arms, tuned)), units):
        rows += found
    rows.sort(key=lambda row: (row["seed"], order.index(row["arm"])))
    return {
        **head,
        "arms": [_as_json(arm) for arm in sweep.arms],
        "seeds": list(missing),
        "tuned": {arm.name: tuned[arm.name] for arm in sweep.arms if arm.name in tuned},
        "rows": rows,
    }


def changed_arms(arms: Sequence[Arm | Merge], before: Sequence[Any]) -> set[str]:
    """The arms that are new or differ from an earlier results file, and the arms that are like one of them."""
    changed = {arm.name for arm in arms if _as_json(arm) not in before}
    return changed | {arm.name for arm in arms if arm.like in changed}


def _tune(sweep: Sweep, old: Tuned, tasks: list[str], workers: ProcessPoolExecutor) -> Tuned:
    """Try every candidate of the arms that are not in `old`, on the tuning seeds."""
    tuned, seeds = dict(old), SETUPS[sweep.setup].tuning_seeds
    new = [arm for arm in sweep.arms if arm.name not in old and arm.tries(tasks)[1:]] if seeds else []
    independent = [arm for arm in new if not arm.like]
    for arms in (independent, [arm for arm in new if arm.like]):  # the latter take over from the former
        call = partial(_try, sweep, arms, _chosen(sweep.arms, tuned))
        by_seed = list(workers.map(call, seeds)) if arms else []
        for arm in arms:
            candidates = arm.tries(tasks)
            means = [fmean(seed[arm.name][number] for seed in by_seed) for number in range(len(candidates))]
            best = candidates[means.index(min(means))]
            tuned[arm.name] = {
                "chosen": best,
                "tried": [
                    {"options": options, "worst_excess": mean}
                    for options, mean in zip(candidates, means, strict=True)
                ],
            }
            print(f"{arm.name}: {best} of {len(means)}, validation {min(means):.4f}", file=sys.stderr)
    return tuned


def _taken_over(arm: Arm | Merge, chosen: Chosen) -> Options:
    """The tuned options of the arm that this one is like."""
    return dict(chosen.get(arm.like or "", {}))


def _chosen(arms: Sequence[Arm | Merge], tuned: Tuned) -> Chosen:
    """The options of each tuned arm, over those of the arm that it is like."""
    best = {name: dict(tuning["chosen"]) for name, tuning in tuned.items()}
    return {arm.name: {**_taken_over(arm, best), **best[arm.name]} for arm in arms if arm.name in best}


def _as_json(arm: Arm | Merge) -> Any:
    return json.loads(json.dumps(asdict(arm)))


def _try(sweep: Sweep, arms: list[Arm | Merge], chosen: Chosen, seed: int) -> dict[str, list[float]]:
    """The worst excess on validation of every candidate of every arm, on one tuning seed."""
    with sweep.seed_models(seed) as models:
        return {
            arm.name: [_worst_excess(models, arm, chosen, options) for options in arm.tries(models.tasks)]
            for arm in arms
        }


def _worst_excess(models: "SeedModels", arm: Arm | Merge, chosen: Chosen, options: Options) -> float:
    row = models.row(arm, {**_taken_over(arm, chosen), **options}, (VALIDATION,))
    return max(metrics["excess"] for metrics in row[VALIDATION].values())


def _measure(sweep: Sweep, chosen: Chosen, unit: tuple[int, set[str]]) -> list[dict[str, Any]]:
    """The rows of some arms on one seed."""
    seed, names = unit
    with sweep.seed_models(seed) as models:
        rows = [models.reference_row((TEST,))] if REFERENCE in names else []
        rows += [
            models.specialist_row(task, (TEST,)) for task in models.tasks if specialist_name(task) in names
        ]
        for arm in sweep.arms:
            if arm.name in names:
                options = chosen[arm.name] if arm.name in chosen else _untuned(models, arm, chosen)
                row = models.row(arm, options, (TEST,))
                rows.append({**row, "options": options} if isinstance(arm, Merge) and options else row)
    return [
        {
            "seed": seed,
            **{key: row[key] for key in _ROW_KEYS if key in row},
            "tasks": _rounded(row[TEST]),
            "late": _rounded(row["late"]),
        }
        for row in rows
    ]


def _untuned(models: "SeedModels", arm: Arm | Merge, chosen: Chosen) -> Options:
    """The options of an arm without tuning: those taken over, or a merge's best on the seed's validation."""
    if isinstance(arm, Arm):
        return _taken_over(arm, chosen)
    tries = arm.tries(models.tasks)
    return min(tries, key=partial(_worst_excess, models, arm, {})) if tries[1:] else tries[0]


def _rounded(tasks: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {task: {name: round(value, 5) for name, value in metrics.items()} for task, metrics in tasks.items()}


def experiment_without_paths(setup: Setup, data: Path | None, output: Path) -> dict[str, Any]:
    """The configuration as results record it, with file names instead of this machine's paths."""
    experiment = setup.configured(0, data, output / "sources").model_dump(
        mode="json", exclude_defaults=True, exclude={"methods", "seed"}
    )
    base = experiment["base_model"]
    if Path(base["source"]).is_relative_to(output):
        base["source"] = Path(base["source"]).name
    for task in experiment["tasks"]:
        (source,) = task.pop("sources")
        task["source"] = Path(source["path"]).name
    return experiment
