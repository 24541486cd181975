"""A real run whose models solve a benchmark of the user, and its second attempt after a change of the task."""

from pathlib import Path

import pytest
import yaml

from automixalign.config.experiment import parse_experiment
from automixalign.scoring.benchmarks.results import RESULTS
from automixalign.steps.events import EVENTS_FILE, parse_events
from automixalign.storage import files
from benchmarks import tiny
from pipelines.local.watching.time_left import list_stages
from tests.faults.command_line import ama
from tests.scoring.benchmark_tasks import write_generation


@pytest.mark.slow
def test_every_final_model_solves_the_benchmarks(tmp_path: Path) -> None:
    """The reference, the generalists and the merges do, each in a stage with a cache of its own."""
    write_generation(tmp_path / "tasks")
    data = {**tiny.experiment(), "merges": ["linear"]}
    data["benchmarks"] = [{"task": "tasks/choice.yaml", "metric": "acc_norm"}, "tasks/answers.yaml"]
    config = tmp_path / "my.yaml"
    config.write_text(yaml.safe_dump(data))
    done = ama("run", "--config", config, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr

    events = parse_events((tmp_path / "run" / "logs" / EVENTS_FILE).read_bytes())
    begun = [(event["stage"], event["name"]) for event in events if event["event"] == "started"]
    assert sorted(begun) == sorted(list_stages(parse_experiment(data, "test")))
    assert begun.index(("benchmark", "reference")) == 2, "before all training, so that a failure is cheap"
    models = {"reference", "uniform", "linear"}
    facts = {name: files.read_json(tmp_path / "run" / "benchmarks" / name / RESULTS) for name in models}
    entries = {entry["model"]: entry for entry in files.read_json(tmp_path / "run" / "leaderboard.json")}
    assert {name for name, entry in entries.items() if "benchmarks" in entry} == models
    for name, fact in facts.items():
        solved = entries[name]["benchmarks"]
        assert solved == {key: value["metrics"] for key, value in fact["benchmarks"].items()}
        assert list(solved["choice"]) == ["acc_norm", "acc", "acc_stderr", "acc_norm_stderr"]
    metrics = facts["linear"]["benchmarks"]["choice"]["metrics"]
    value = f"{metrics['acc_norm']:.3f} ± {metrics['acc_norm_stderr']:.3f}"
    markdown = (tmp_path / "run" / "leaderboard.md").read_text()
    assert "| model | family | choice acc_norm | answers passed |\n" in markdown
    assert f"\n| linear | merge | {value} | " in markdown
    assert value in done.stdout, "the terminal has room for two benchmarks"

    (tmp_path / "tasks" / "checks.py").write_text("def score(doc, results):\n    return {'passed': 1.0}\n")
    again = ama("run", "--config", config, "--output", tmp_path / "again")
    assert again.returncode == 0, again.stdout + again.stderr
    ran = [
        line.split()[1:3]
        for line in again.stdout.splitlines()
        if line.endswith(" s") and "from cache" not in line
    ]
    assert sorted(stage for stage, _ in ran) == sorted(["validate_config", *["benchmark"] * 3, "compare"])
