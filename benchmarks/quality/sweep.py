"""Tune the arms of a setup, then run them all on every seed: a process works on a seed at a time."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from automixalign.config.training import Budget, specialist_name
from automixalign.data.store import TEST, VALIDATION
from automixalign.storage import files
from automixalign.system import orphans
from benchmarks.quality.arms import REFERENCE, Arm, Merge, Options
from benchmarks.quality.setups import SETUPS, Setup
from benchmarks.quality.store import Store

Chosen = dict[str, Options]
"""Of each arm, what was tuned."""


@contextmanager
def pool(jobs: int, output: Path) -> Iterator[ProcessPoolExecutor]:
    """Processes that share the processors, write what libraries say to a log, and end with this one."""
    logs = output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    os.environ[orphans.LOCK_VARIABLE] = str(logs / f"{os.getpid()}.alive")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    os.environ["HF_HUB_OFFLINE"] = "1"
    with (
        orphans.hold_lock(Path(os.environ[orphans.LOCK_VARIABLE])),
        ProcessPoolExecutor(jobs, get_context("forkserver"), initializer=_to_log, initargs=(logs,)) as workers,
    ):
        yield workers


def _to_log(logs: Path) -> None:
    from benchmarks.quality.world import TERMINAL

    os.setpgid(0, 0)  # what ends with us is this process and what it starts
    orphans.end_with_lock_holder()
    os.environ[TERMINAL] = str(os.dup(2))
    log = (logs / f"{os.getpid()}.log").open("a", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)


def run(
    name: str,
    seeds: Sequence[int],
    data: Path | None,
    output: Path,
    workers: ProcessPoolExecutor,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that a results file holds, but the command.

    Args:
        before: what a results file holds. Of the same experiment, its seeds and the tuning and rows of the
            arms that are what they were are taken.
    """
    setup = SETUPS[name]
    head = {
        "setup": name,
        "experiment": _without_places(setup, data, output),
        "tuning_seeds": list(setup.tuning_seeds),
    }
    if before and any(before.get(key) != value for key, value in head.items()):
        print(f"the results there are of another experiment than {name} is now: made anew", file=sys.stderr)
        before = None
    tasks = [task["name"] for task in head["experiment"]["tasks"]]
    order = [REFERENCE, *map(specialist_name, tasks), *(arm.name for arm in _arms(setup))]
    stale = _stale(setup, before["arms"]) if before else set(order)
    old = {name: found for name, found in before["tuned"].items() if name not in stale} if before else {}
    tuned = _tuned(setup, old, tasks, data, output, workers)
    rows = [row for row in before["rows"] if row["arm"] in order and row["arm"] not in stale] if before else []
    known: dict[int, set[str]] = {seed: set() for seed in (*(before["seeds"] if before else ()), *seeds)}
    for row in rows:
        known[row["seed"]].add(row["arm"])
    units = [(seed, set(order) - known[seed]) for seed in sorted(known) if set(order) - known[seed]]
    call = partial(_measured, name, data, output, _chosen(setup, tuned))
    rows += [row for found in workers.map(call, units) for row in found]
    rows.sort(key=lambda row: (row["seed"], order.index(row["arm"])))
    return {
        **head,
        "arms": [_plain(arm) for arm in _arms(setup)],
        "pilot": setup.pilot,
        "seeds": sorted(known),
        "tuned": {arm.name: tuned[arm.name] for arm in _arms(setup) if arm.name in tuned},
        "rows": rows,
    }


def _arms(setup: Setup) -> tuple[Arm | Merge, ...]:
    return *setup.generalists, *setup.merges


def _stale(setup: Setup, before: Sequence[Any]) -> set[str]:
    """The arms that are new or not what they were, and those that are like such a one."""
    changed = {arm.name for arm in _arms(setup) if _plain(arm) not in before}
    return changed | {arm.name for arm in setup.generalists if arm.like in changed}


def _tuned(
    setup: Setup,
    old: Mapping[str, dict[str, Any]],
    tasks: list[str],
    data: Path | None,
    output: Path,
    workers: ProcessPoolExecutor,
) -> dict[str, dict[str, Any]]:
    """Of each arm that is tuned, what was tried and chosen, beside what was known."""
    tuned = dict(old)
    for stage in (False, True):  # first the arms that others take over from
        arms = [
            arm
            for arm in _arms(setup)
            if arm.name not in old
            and arm.tries(tasks)[1:]
            and (isinstance(arm, Arm) and arm.like is not None) == stage
        ]
        call = partial(_tried, setup.name, data, output, arms, _chosen(setup, tuned))
        tried = list(workers.map(call, setup.tuning_seeds)) if arms else []
        for arm in arms if tried else ():
            candidates = arm.tries(tasks)
            means = [fmean(seed[arm.name][place] for seed in tried) for place in range(len(candidates))]
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


def _chosen(setup: Setup, tuned: Mapping[str, Mapping[str, Any]]) -> Chosen:
    """Of each tuned arm its options, over those of the arm that it is like."""
    best = {name: dict(found["chosen"]) for name, found in tuned.items()}
    return {arm.name: {**_taken_over(arm, best), **best[arm.name]} for arm in _arms(setup) if arm.name in best}


def _plain(arm: Arm | Merge) -> Any:
    return json.loads(json.dumps(asdict(arm)))


def _taken_over(arm: Arm | Merge, chosen: Mapping[str, Options]) -> Options:
    like = arm.like if isinstance(arm, Arm) else None
    return dict(chosen.get(like or "", {}))


@contextmanager
def world(
    setup: Setup,
    seed: int,
    data: Path | None,
    output: Path,
    steps: int | None = None,
    **training: Any,
) -> Iterator[Any]:
    """The models of one seed; pilots try other steps of the specialists, and other options of all trainings."""
    # With torch, for which the main process does not wait.
    from benchmarks.quality import frozen
    from benchmarks.quality.world import World

    scratch = output / "sources"
    scratch.mkdir(parents=True, exist_ok=True)
    experiment = setup.configured(seed, data, scratch)
    if training:
        changed = experiment.training.model_copy(update=training)
        experiment = experiment.model_copy(update={"training": changed})
    if steps is not None:
        budget = experiment.budget.model_copy(update={"specialist": Budget(steps=steps)})
        experiment = experiment.model_copy(update={"budget": budget})
    with frozen.remembered(setup.frozen_layers, output / "frozen"):
        yield World(Store(output / "store"), experiment, setup.verifiers(), drift_pairs=setup.drift_pairs)


def _tried(
    name: str, data: Path | None, output: Path, arms: list[Arm | Merge], chosen: Chosen, seed: int
) -> dict[str, list[float]]:
    """Worst-task excess on the validation split of every candidate of every arm, on one tuning seed."""
    with world(SETUPS[name], seed, data, output) as found:
        return {
            arm.name: [_validated(found, arm, chosen, options) for options in arm.tries(found.tasks)]
            for arm in arms
        }


def _validated(made: Any, arm: Arm | Merge, chosen: Chosen, options: Options) -> float:
    make = made.generalist_row if isinstance(arm, Arm) else made.merge_row
    row = make(arm, {**_taken_over(arm, chosen), **options}, (VALIDATION,))
    return max(measured["excess"] for measured in row[VALIDATION].values())


def _measured(
    name: str, data: Path | None, output: Path, chosen: Chosen, unit: tuple[int, set[str]]
) -> list[dict[str, Any]]:
    """The test results of a seed's arms, of those that are named."""
    seed, wanted = unit
    with world(SETUPS[name], seed, data, output) as made:
        runs = _runs(SETUPS[name], made, chosen)
        return [_row(seed, make()) for arm, make in runs.items() if arm in wanted]


def _runs(setup: Setup, made: Any, chosen: Chosen) -> dict[str, Callable[[], dict[str, Any]]]:
    runs = {REFERENCE: partial(made.reference_row, (TEST,))}
    runs |= {specialist_name(task): partial(made.specialist_row, task, (TEST,)) for task in made.tasks}
    for arm in setup.generalists:
        options = chosen.get(arm.name, _taken_over(arm, chosen))
        runs[arm.name] = partial(made.generalist_row, arm, options, (TEST,))
    return {**runs, **{merge.name: partial(_merged, made, merge, chosen) for merge in setup.merges}}


def _merged(made: Any, merge: Merge, chosen: Chosen) -> dict[str, Any]:
    options = chosen[merge.name] if merge.name in chosen else _best_here(made, merge)
    return {**made.merge_row(merge, options, (TEST,)), "options": options}


def _row(seed: int, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "seed": seed,
        **{key: found.get(key) for key in ("arm", "family", "steps", "tokens", "seconds")},
        **({"options": found["options"]} if found.get("options") else {}),
        "tasks": _rounded(found[TEST]),
        "late": _rounded(_late(found["folder"])),
    }


def _best_here(made: Any, merge: Merge) -> Options:
    """Without tuning seeds a merge is tuned on the validation split of the seed itself: it costs seconds."""
    tries = merge.tries(made.tasks)
    return min(tries, key=partial(_validated, made, merge, {})) if tries[1:] else tries[0]


def _rounded(tasks: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        task: {name: round(value, 5) for name, value in measured.items()} for task, measured in tasks.items()
    }


def _late(folder: Path) -> dict[str, dict[str, float]]:
    """Of each task, over the last quarter of a generalist's steps: weight, pairs a step, excess a pair."""
    log = folder / "trajectory.jsonl"
    steps = files.read_jsonl(log) if log.exists() else []
    steps = steps[-len(steps) // 4 :]
    late = {}
    for task in steps[0]["weights"] if steps else ():
        pairs = sum(step["pairs"][task] for step in steps)
        excess = sum(step["pairs"][task] * (step["excess"][task] or 0) for step in steps)
        late[task] = {
            "weight": fmean(step["weights"][task] for step in steps),
            "pairs": pairs / len(steps),
            "excess": excess / max(pairs, 1),
        }
    return late


def _without_places(setup: Setup, data: Path | None, output: Path) -> dict[str, Any]:
    """The configuration as it is kept, without the places of this machine."""
    experiment = setup.configured(0, data, output / "sources").model_dump(
        mode="json", exclude_defaults=True, exclude={"methods", "seed"}
    )
    base = experiment["base_model"]
    for source in (*experiment["tasks"], *([base] if Path(base["source"]).is_relative_to(output) else [])):
        source["source"] = Path(source["source"]).name
    return experiment
