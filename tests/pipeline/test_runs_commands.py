"""`ama runs`, `status`, `logs` and `diff`: of runs that are running, ended or damaged."""

import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from automixalign.config.experiment import Experiment, parse_experiment
from automixalign.config.file import dump_yaml
from automixalign.storage import files
from pipelines.local.watching.time_left import list_stages
from tests.pipeline.conftest import Ama

START = 1000.0


@pytest.fixture
def experiment(experiment_data: dict[str, Any]) -> Experiment:
    return parse_experiment(experiment_data, "test")


def events_of(experiment: Experiment, count: int | None = None) -> list[dict[str, Any]]:
    """Each stage takes two seconds, and logs its start; the events of the first `count` stages."""
    events = []
    for number, (stage, name) in enumerate(list_stages(experiment)[:count]):
        event = {"stage": stage, "name": name}
        events += [
            {**event, "time": START + 3 * number, "event": "started"},
            {**event, "time": START + 3 * number + 2, "event": "finished", "seconds": 2.0},
        ]
    return events


def board(**gaps: float) -> list[dict[str, Any]]:
    """A leaderboard of generalists with these gaps on the worst task; the validation split agrees."""
    entries = []
    for model, gap in gaps.items():
        metrics = {"gap": gap, "excess": abs(gap), "loss": 0.5}
        views = {"tasks": {"a": metrics}, "average": metrics, "worst": metrics}
        entries.append({"model": model, "family": "generalist", **views, "validation": views})
    return entries


def write_run(
    folder: Path,
    experiment: Experiment,
    events: list[dict[str, Any]],
    entries: list[dict[str, Any]] | None = None,
) -> Path:
    for path in (folder / ".kfp", folder / "logs"):
        path.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_yaml(experiment))
    (folder / ".kfp" / "lock").write_text("process 7 on host since 2025-01-01 12:00:00\n")
    files.write_jsonl(folder / "logs" / "events.jsonl", events)
    for event in events:
        name = "-".join(filter(None, (event["stage"], event["name"])))
        (folder / "logs" / f"{name}.log").write_text(f"log of {name}\n")
    if entries is not None:
        files.write_json(folder / "leaderboard.json", entries)
    return folder


@pytest.fixture
def four_runs(tmp_path: Path, experiment: Experiment) -> Iterator[Path]:
    """One run in each state, and folders that are no runs."""
    runs = tmp_path / "runs"
    half = events_of(experiment, 5)
    write_run(runs / "done", experiment, events_of(experiment), board(uniform=0.25, **{"ama-r": 0.125}))
    failed = [*half[:-1], {**half[-1], "event": "failed", "error": "DataError: [no] rows"}]
    write_run(runs / "broken", experiment, failed)
    write_run(runs / "stopped", experiment, half[:-1])
    write_run(runs / "working", experiment, half[:-1])
    (runs / "notes").mkdir()
    (runs / "file").write_text("")
    with (runs / "working" / ".kfp" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield runs


def test_runs_lists_state_and_chosen_model_the_last_one_first(
    four_runs: Path, experiment: Experiment, ama: Ama
) -> None:
    damaged = write_run(four_runs / "damaged", experiment, [], board(uniform=0.5))
    (damaged / "leaderboard.json").write_text("[{")
    ended = ama("runs")
    assert ended.status == 0, ended.err
    rows = {line.split()[0]: line.split() for line in ended.out.splitlines() if re.match(r"runs/\w+ ", line)}
    assert {name: row[1] for name, row in rows.items()} == {
        "runs/done": "finished",
        "runs/broken": "failed",
        "runs/stopped": "interrupted",
        "runs/working": "running",
        "runs/damaged": "damaged",
    }
    assert next(iter(rows)) == "runs/done"
    assert rows["runs/done"][-2:] == ["ama-r", "0.125"]
    assert "runs/damaged: runs/damaged/leaderboard.json cannot be read: JSONDecodeError" in ended.out


def test_status_shows_each_stage_and_what_to_do(four_runs: Path, ama: Ama, experiment: Experiment) -> None:
    total = len(list_stages(experiment))
    done = ama("status", "runs/done")
    assert done.status == 0
    assert f"runs/done: finished, {total} of {total} stages\n  ama chat runs/done\n" in done.out
    assert len([line for line in done.out.splitlines() if "finished  2.0 s" in line]) == total
    broken = ama("status", "runs/broken")
    assert broken.status == 1
    assert f"runs/broken: failed, 4 of {total} stages" in broken.out
    assert "  train_specialist [arithmetic]: DataError: [no] rows\n  ama logs runs/broken\n" in broken.out
    assert broken.out.endswith("repeat the command of the run with --output runs/broken\n")
    assert "to come" in broken.out
    stopped = ama("status", "runs/stopped")
    assert stopped.status == 1
    assert re.search(r"train_specialist \[arithmetic\] +interrupted", stopped.out)
    working = ama("status", "runs/working")
    assert working.status == 0
    assert "  process 7 on host since 2025-01-01 12:00:00\n" in working.out
    assert re.search(r"train_specialist \[arithmetic\] +running", working.out)


@pytest.mark.parametrize("command", ["status", "logs"])
def test_a_folder_that_is_no_run(command: str, ama: Ama, tmp_path: Path) -> None:
    assert ama(command, "nowhere").err == (
        "error: nowhere does not exist; `ama runs` lists the run folders below ./runs\n"
    )
    (tmp_path / "notes").mkdir()
    assert "notes is not a run folder" in ama(command, "notes").err
    assert "no folder" in ama("runs").err


def test_status_of_a_damaged_folder_names_what_is_missing(four_runs: Path, ama: Ama) -> None:
    (four_runs / "done" / "config.yaml").unlink()
    ended = ama("status", "runs/done")
    assert ended.status == 1
    assert "there is no config.yaml" in ended.out
    assert "2.0 s" in ended.out, "what can be read is shown"


def test_a_second_attempt_forgets_what_the_first_left_unfinished(
    tmp_path: Path, experiment: Experiment, ama: Ama
) -> None:
    first = events_of(experiment, 6)[:-1]
    cached = [
        {**event, "event": "cached"} for event in events_of(experiment, 4) if event["event"] == "finished"
    ]
    write_run(tmp_path / "run", experiment, [*first, *cached])
    shown = ama("status", "run").out
    assert "interrupted, 5 of" in shown
    assert shown.count("2.0 s") == 5, "the seconds of the first attempt stay known"


def test_logs_finds_a_log_by_stage_name_or_beginning(four_runs: Path, ama: Ama) -> None:
    assert ama("logs", "runs/broken").out == "log of train_specialist-arithmetic\n"
    assert ama("logs", "runs/done").out == "log of compare\n"
    for name in ("evaluate-ama-s", "evaluate [ama-s]", "evaluate-ama-s.log", "gather"):
        assert ama("logs", "runs/done", name).out.startswith("log of "), name
    several = ama("logs", "runs/done", "merge_specialists-lineer")
    assert (
        "there is no log 'merge_specialists-lineer' (did you mean 'merge_specialists-linear'?)" in several.err
    )
    assert (
        "several logs begin with 'evaluate'; there are: evaluate-ama-r, "
        in ama("logs", "runs/done", "evaluate").err
    )


def test_a_log_shows_the_last_state_of_a_progress_bar_and_no_control_characters(
    four_runs: Path, ama: Ama
) -> None:
    (four_runs / "done" / "logs" / "compare.log").write_bytes(
        b"\rload 0%\rload 100%\r\n\x1b[31mred\x1b[0m \x07\n"
    )
    assert ama("logs", "runs/done").out == "load 100%\nred \\x07\n"


def test_logs_says_that_a_log_is_empty(four_runs: Path, ama: Ama) -> None:
    (four_runs / "done" / "logs" / "compare.log").write_text("")
    ended = ama("logs", "runs/done")
    assert (ended.out, ended.err) == ("", "runs/done/logs/compare.log is empty\n")


def test_logs_follow_all_stages_of_a_run_until_it_ends(
    experiment: Experiment, tmp_path: Path, ama: Ama
) -> None:
    events = events_of(experiment, 2)
    run = write_run(tmp_path / "run", experiment, events[:3])
    lock = (run / ".kfp" / "lock").open()
    fcntl.flock(lock, fcntl.LOCK_EX)

    def work() -> None:
        time.sleep(0.5)
        with (run / "logs" / "events.jsonl").open("a") as out:
            out.write(
                json.dumps({"stage": "prepare_data", "name": "", "time": 1100.0, "event": "started"}) + "\n"
            )
        (run / "logs" / "prepare_data.log").write_text("half a ")
        time.sleep(0.5)
        with (run / "logs" / "prepare_data.log").open("a") as out:
            out.write("line\nthe end")
        lock.close()

    worker = threading.Thread(target=work)
    worker.start()
    ended = ama("logs", "run", "--follow")
    worker.join()
    assert ended.out == "log of prepare_base_model\nhalf a line\nthe end\n"
    assert ended.err == "==> run/logs/prepare_base_model.log <==\n==> run/logs/prepare_data.log <==\n"


def test_diff_shows_settings_and_results_that_differ(
    four_runs: Path, ama: Ama, experiment_data: dict[str, Any]
) -> None:
    changed = experiment_data | {"seed": 7, "methods": ["standard", "ama-s", {"method": "ama-r", "eta": 0.5}]}
    other = parse_experiment(changed, "test")
    entries = board(uniform=0.25, **{"ama-r": 0.5})
    write_run(four_runs / "other", other, events_of(other), entries)
    lines = [line.split() for line in ama("diff", "runs/done", "runs/other").out.splitlines()]
    assert ["seed", "0", "7"] in lines
    assert ["methods.ama-r.eta", "0.1", "0.5"] in lines
    assert len([line for line in lines if line and line[0].startswith("methods")]) == 1, "their order is none"
    assert ["worst", "gap", "ama-r", "0.125", "0.500", "+0.375"] in lines
    assert not any("uniform" in line for line in lines)
    assert "no setting differs" in ama("diff", "runs/done", "runs/done").out
    assert "runs/stopped has no results: it is interrupted" in ama("diff", "runs/done", "runs/stopped").out


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("ama status runs/w", ["runs/working"]),
        ("ama logs runs/broken reference", ["reference_logps"]),
        ("ama validate --preset smol", ["smollm2"]),
    ],
)
def test_the_shell_completes_values(line: str, completions: list[str], four_runs: Path) -> None:
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_AMA_COMPLETE": "complete_bash"}
    command = [Path(sys.executable).with_name("ama")]
    environment = {**os.environ, **words}
    shown = subprocess.check_output(command, cwd=four_runs.parent, env=environment, text=True)
    assert shown.split() == completions
