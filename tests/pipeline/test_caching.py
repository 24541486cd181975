"""Which stages run again after a change: real stages, real files, kfp's runner and the stage cache."""

import builtins
import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kfp.local import cache as kfp_cache
from kfp.local import config as kfp_config
from kfp.local import logging_utils, subprocess_task_handler
from safetensors.torch import load_file, save_file

from automixalign.config.experiment import parse_experiment
from automixalign.steps.events import EVENTS_FILE, LOGS_VARIABLE
from automixalign.storage import files
from pipelines.local.attempt import Attempt
from pipelines.local.outputs import list_artifacts
from pipelines.local.runner import run_dag

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
BASE, DATA = "prepare_base_model", {"prepare_data", "reference_logps", "evaluate reference"}
LOSSES = "specialist_losses own"
OWN = {"train_specialist own", "evaluate specialist-own", LOSSES}
SPECIALISTS = {*OWN, *(stage.replace("own", "format") for stage in OWN)}
AMA_R, UNIFORM = {"train_generalist ama-r", "evaluate ama-r"}, {"train_generalist uniform", "evaluate uniform"}
MERGE = {"merge_specialists linear", "evaluate linear"}
WARM = {"train_generalist warm", "evaluate warm"}
"""It starts from the merge."""
AFTER_SPECIALISTS = {"gather_specialists", *AMA_R, *UNIFORM, *MERGE, "gather_merges", *WARM, "compare"}
AFTER_DATA = {*SPECIALISTS, *AFTER_SPECIALISTS}
ALL = {BASE, *DATA, *AFTER_DATA}


class World(NamedTuple):
    """An experiment and its files, which a change edits."""

    folder: Path
    experiment: dict[str, Any]
    patch: pytest.MonkeyPatch

    @property
    def rows(self) -> Path:
        return self.folder / "own.jsonl"

    @property
    def base_model(self) -> Path:
        return self.folder / "base"

    def result(self, run_path: str) -> Path:
        """The path of a result of the first run."""
        return result_of(self.folder / "first", run_path)[0]


def result_of(attempt: Path, run_path: str) -> tuple[Path, dict[str, Any]]:
    """Path and metadata of a result of a run."""
    return next(result for result in list_artifacts(attempt) if result[1].get("run_path") == run_path)


def set_(*keys: str | int, value: Any) -> Callable[[World], None]:
    """Change a key of the experiment."""

    def change(world: World) -> None:
        node: Any = world.experiment
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return change


def variable(name: str, value: str) -> Callable[[World], None]:
    return lambda world: world.patch.setenv(name, value)


def further_row(world: World) -> None:
    row = {"prompt": "say more:", "chosen": " more!", "rejected": " erom?"}
    with world.rows.open("a") as out:
        out.write(json.dumps(row) + "\n")


def other_weights(world: World) -> None:
    file = world.base_model / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"] += 0.01
    save_file(weights, file, metadata={"format": "pt"})


def edit(file: str) -> Callable[[World], None]:
    """Run a copy of the project in which one module of the library has a line more."""

    def change(world: World) -> None:
        code = world.folder / "code"
        for package in ("automixalign", "components", "pipelines"):
            shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
        append(code / "automixalign" / file, "CHANGED = 1")
        world.patch.setenv("PYTHONPATH", str(code))
        world.patch.chdir(code)

    return change


def append(file: Path, line: str) -> None:
    assert file.is_file()
    file.write_text(f"{file.read_text()}\n{line}\n")


def deleted_file(world: World) -> None:
    (world.result("models/specialist-own") / "adapter_model.safetensors").unlink()


def flipped_bit(world: World) -> None:
    file = world.result("models/ama-r") / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def deleted_result(world: World) -> None:
    shutil.rmtree(world.result("reference_logps"))


# `tests/config` says which settings and which code are those of which stage.
CHANGES: dict[str, tuple[Callable[[World], None], set[str]]] = {
    "nothing": (lambda world: None, set()),
    "eta": (set_("methods", 1, "eta", value=0.2), {*AMA_R, "compare"}),
    "another merge": (
        set_("merges", value=["linear", "ties"]),
        {"merge_specialists ties", "evaluate ties", "gather_merges", "compare"},
    ),
    "the merge that a generalist starts from": (
        set_("merges", value=[{"method": "task_arithmetic", "name": "linear", "parameters": {"weight": 0.5}}]),
        {*MERGE, "gather_merges", *WARM, "compare"},
    ),
    "data": (further_row, ALL - {BASE}),
    # Its tokenizer is the same.
    "the base model's content": (other_weights, ALL - {"prepare_data"}),
    "a mixer": (edit("method/mixers.py"), {*AMA_R, *UNIFORM, *WARM, "compare"}),
    # The merge is made again and is the same; gathering it has no settings.
    "relevant environment": (variable("ATEN_CPU_CAPABILITY", "default"), ALL - {"gather_merges"}),
    "irrelevant environment": (variable("EDITOR", "ed"), set()),
    # The specialist's scores are the same, and its losses are made of them.
    "a deleted file": (deleted_file, {*OWN - {LOSSES}, "gather_specialists", "compare"}),
    "an altered file": (flipped_bit, {*AMA_R, "compare"}),
    "a deleted result": (deleted_result, {"reference_logps"}),
}
RETRAINED = {
    "a mixer": {model: {f"evaluate {model}"} for model in ("ama-r", "uniform", "warm")},
    "a deleted file": {"specialist-own": {"evaluate specialist-own", "gather_specialists", "compare"}},
    "an altered file": {"ama-r": {"evaluate ama-r", "compare"}},
}
"""The models that a change trains again, each with the stages that only read its metadata. The model is the
same to the last bit, but its metadata hold the duration. These stages run again if that differs by a tenth of a
second."""


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    """Restores the settings that kfp's local runner keeps in its modules."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (kfp_cache, "get_local_cache"),
            (kfp_config.LocalExecutionConfig, "instance"),
            (subprocess_task_handler, "run_local_subprocess"),
            (logging_utils, "indented_print"),
        ):
            patch.setattr(owner, name, getattr(owner, name))
        yield patch


@pytest.fixture(scope="module")
def first(
    base_model: Path, patch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The folder of a world whose experiment has run, and the experiment."""
    folder = tmp_path_factory.mktemp("caching")
    shutil.copytree(base_model, folder / "base")
    rows = [
        {"prompt": f"say {word}:", "chosen": f" {word}!", "rejected": f" {word[::-1]}?"}
        for word in (f"word{number}" for number in range(20))
    ]
    files.write_jsonl(folder / "own.jsonl", rows)
    experiment = {
        "name": "caching",
        "seed": 5,
        "base_model": {"source": str(folder / "base")},
        "tasks": [
            {"name": "own", "source": str(folder / "own.jsonl")},
            {"name": "format", "source": "synthetic:format", "limit": 20, "verifier": "exact"},
        ],
        "max_length": 64,
        "split": {"validation": 0.1, "test": 0.2},
        "training": {"batch_size": 4, "learning_rate": 0.01, "lora": {"rank": 2}},
        "budget": {"specialist": {"steps": 2}, "generalist": {"steps": 2}},
        "methods": [
            "uniform",
            {"method": "ama-r", "eta": 0.1},
            {"method": "uniform", "name": "warm", "init": "linear"},
        ],
        "merges": ["linear"],
        "evaluation": {"max_new_tokens": 2},
    }
    with pytest.MonkeyPatch.context() as own:
        assert run(folder, "first", experiment, own) == ALL
    return folder, experiment


def run(folder: Path, name: str, experiment: dict[str, Any], patch: pytest.MonkeyPatch) -> set[str]:
    """Run an experiment into a new folder; return the stages that ran, as `STAGE NAME`."""
    logs = folder / f"logs-{name}"
    logs.mkdir()
    patch.setenv(LOGS_VARIABLE, str(logs))
    patch.setenv("HF_HUB_OFFLINE", "1")
    checked = parse_experiment(experiment, "test")
    before = builtins.print
    run_dag(
        Attempt(
            experiment=checked,
            folder=folder / name,
            cache=folder / f"own-{name}",
            shared_cache=folder / "shared",
        )
    )
    assert builtins.print is before, "kfp leaves an indenting print after stages that overlap"
    events = files.read_jsonl(logs / EVENTS_FILE)
    finished = {f"{event['stage']} {event['name']}".strip() for event in events if event["event"] == "finished"}
    cached = {f"{event['stage']} {event['name']}".strip() for event in events if event["event"] == "cached"}
    assert not finished & cached
    assert "validate_config" in finished, "each run checks the sources"
    return finished - {"validate_config"}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_runs_the_stages_that_depend_on_it_and_no_others(
    name: str, first: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, experiment = first
    shutil.copytree(folder, tmp_path / "unchanged")
    change, expected = CHANGES[name]
    try:
        world = World(folder, copy.deepcopy(experiment), monkeypatch)
        change(world)
        ran = run(folder, "again", world.experiment, monkeypatch)
        for model, stages in RETRAINED.get(name, {}).items():
            before, after = (
                result_of(folder / attempt, f"models/{model}")[1] for attempt in ("first", "again")
            )
            expected = expected - stages if after == before else expected
        assert ran == expected
        board = {path.name: path for path, _ in list_artifacts(folder / "again")}["leaderboard"]
        assert {entry["model"] for entry in files.read_json(board)} >= {"reference", "specialist-own", "ama-r"}
    finally:
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "unchanged", folder)


def test_every_generalist_may_start_from_a_tuned_merge(
    first: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search scores as the evaluation does, and its cost is in the report."""
    folder, experiment = first
    merge = {"method": "task_arithmetic", "name": "tuned", "weights": "tuned", "tries": 3}
    method = {"method": "uniform", "name": "warm", "init": "tuned"}
    ran = run(folder, "tuned", experiment | {"merges": [merge], "methods": [method]}, monkeypatch)
    models = {*WARM, "merge_specialists tuned", "evaluate tuned"}
    assert ran == {*models, "gather_merges", "compare"}
    tuning = files.read_json(result_of(folder / "tuned", "report/data.json")[0])["tunings"]["tuned"]
    board = files.read_json(result_of(folder / "tuned", "leaderboard.json")[0])
    (entry,) = (entry for entry in board if entry["model"] == "tuned")
    lowest = min(one["worst_gap"] for one in tuning["tries"])
    assert (len(tuning["tries"]), tuning["scored_pairs"]) == (3, 3 * 4)
    assert entry["validation"]["worst"]["gap"] == pytest.approx(lowest, abs=1e-9)
