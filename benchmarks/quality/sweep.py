"""Tune the arms of a setup, then run them all on every seed: a process works on a seed at a time."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from automixalign import alive, files
from automixalign.config import Budget
from automixalign.data.split import TEST, VALIDATION
from benchmarks.quality.arms import Arm, Merge, Options
from benchmarks.quality.setups import SETUPS, Setup
from benchmarks.quality.store import Store

Chosen = dict[str, Options]
"""Of each arm, what was tuned."""


@contextmanager
def pool(jobs: int, output: Path) -> Iterator[ProcessPoolExecutor]:
    """Processes that share the processors, write what libraries say to a log, and end with this one."""
    logs = output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    os.environ[alive.FILE] = str(logs / f"{os.getpid()}.alive")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    os.environ["HF_HUB_OFFLINE"] = "1"
    with (
        alive.hold(Path(os.environ[alive.FILE])),
        ProcessPoolExecutor(jobs, get_context("forkserver"), initializer=_to_log, initargs=(logs,)) as workers,
    ):
        yield workers


def _to_log(logs: Path) -> None:
    from benchmarks.quality.world import TERMINAL

    os.setpgid(0, 0)  # what ends with us is this process and what it starts
    alive.depend()
    os.environ[TERMINAL] = str(os.dup(2))
    log = (logs / f"{os.getpid()}.log").open("a", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)


def run(
    name: str,
    seeds: int,
    data: Path | None,
    output: Path,
    workers: ProcessPoolExecutor,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that a results file holds, but the command.

    Args:
        before: what a results file holds: of the same experiment and arms, its tuning and its seeds are taken.
    """
    setup = SETUPS[name]
    head = {
        "setup": name,
        "experiment": _without_places(setup, data, output),
        "arms": [_plain(arm) for arm in (*setup.generalists, *setup.merges)],
        "tuning_seeds": list(setup.tuning_seeds),
    }
    if before and any(before.get(key) != value for key, value in head.items()):
        print(f"the results there are of another experiment than {name} is now: made anew", file=sys.stderr)
        before = None
    tasks = [task["name"] for task in head["experiment"]["tasks"]]
    tuned = before["tuned"] if before else _tuned(name, tasks, data, output, workers)
    chosen = _chosen(setup, tuned)
    rows = list(before["rows"]) if before else []
    known = {row["seed"] for row in rows}
    new = [seed for seed in range(seeds) if seed not in known]
    rows += [row for found in workers.map(partial(_measured, name, data, output, chosen), new) for row in found]
    rows.sort(key=lambda row: row["seed"])
    return {
        **head,
        "pilot": setup.pilot,
        "seeds": list(dict.fromkeys(row["seed"] for row in rows)),
        "tuned": tuned,
        "rows": rows,
    }


def _tuned(
    name: str, tasks: list[str], data: Path | None, output: Path, workers: ProcessPoolExecutor
) -> dict[str, dict[str, Any]]:
    """Of each arm that is tuned, what was tried and chosen."""
    setup, tuned = SETUPS[name], {}
    for stage in (False, True):  # first the arms that others take over from
        arms = [
            arm
            for arm in (*setup.generalists, *setup.merges)
            if arm.tries(tasks)[1:] and (isinstance(arm, Arm) and arm.like is not None) == stage
        ]
        call = partial(_tried, name, data, output, arms, _chosen(setup, tuned))
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
    arms = [arm for arm in (*setup.generalists, *setup.merges) if arm.name in best]
    return {arm.name: {**_taken_over(arm, best), **best[arm.name]} for arm in arms}


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
    rate: float | None = None,
    steps: int | None = None,
) -> Iterator[Any]:
    """The models of one seed; a pilot tries another learning rate and other steps of the specialists."""
    # With torch, for which the main process does not wait.
    from benchmarks.quality import frozen
    from benchmarks.quality.world import World

    scratch = output / "sources"
    scratch.mkdir(parents=True, exist_ok=True)
    experiment = setup.configured(seed, data, scratch)
    if rate is not None:
        training = experiment.training.model_copy(update={"learning_rate": rate})
        experiment = experiment.model_copy(update={"training": training})
    if steps is not None:
        budget = experiment.budget.model_copy(update={"specialist": Budget(steps=steps)})
        experiment = experiment.model_copy(update={"budget": budget})
    with frozen.remembered(setup.frozen_layers):
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


def _measured(name: str, data: Path | None, output: Path, chosen: Chosen, seed: int) -> list[dict[str, Any]]:
    """Every arm's test results on one seed."""
    with world(SETUPS[name], seed, data, output) as made:
        return _rows(SETUPS[name], made, chosen)


def _rows(setup: Setup, made: Any, chosen: Chosen) -> list[dict[str, Any]]:
    rows = [made.reference_row((TEST,))]
    rows += [made.specialist_row(task, (TEST,)) for task in made.tasks]
    for arm in setup.generalists:
        rows.append(made.generalist_row(arm, chosen.get(arm.name, _taken_over(arm, chosen)), (TEST,)))
    for merge in setup.merges:
        options = chosen[merge.name] if merge.name in chosen else _best_here(made, merge)
        rows.append({**made.merge_row(merge, options, (TEST,)), "options": options})
    keys = ("arm", "family", "steps", "tokens", "seconds")
    return [
        {
            "seed": made.experiment.seed,
            **{key: row.get(key) for key in keys},
            **({"options": row["options"]} if row.get("options") else {}),
            "tasks": _rounded(row[TEST]),
            "late": _rounded(_late(row["folder"])),
        }
        for row in rows
    ]


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
