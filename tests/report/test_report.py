"""The report: its facts, its page as text, and the comparison of runs."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from automixalign.report import runs
from automixalign.report.comparison import compare_runs
from automixalign.report.facts.curves import MAX_POINTS, curves, last_mean
from automixalign.report.facts.examples import MAX_CHARACTERS, examples
from automixalign.report.facts.limits import limits
from automixalign.scoring.caches import GENERATIONS, SUMMARY
from automixalign.scoring.intervals import student_interval
from automixalign.storage import files
from automixalign.system.errors import ConfigError
from pipelines.cli import app
from tests.report.report_run import HOSTILE, STEPS, TASKS, TUNING, experiment, facts_of, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests must not change it."""
    return write_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def facts(run: Path) -> Any:
    """The facts of `run`."""
    return files.read_json(run / runs.FACTS)


@pytest.fixture(scope="module")
def seeds(run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs that differ only in the seed; tests must not change them."""
    folder = tmp_path_factory.mktemp("seeds")
    return [run, *(write_run(folder / f"seed-{seed}", seed) for seed in (2, 1))]


def rows(values: list[float | None], pairs: list[int]) -> list[dict[str, Any]]:
    """A trajectory of one task."""
    return [
        {"step": step, "weights": {"a": 1 / step}, "pairs": {"a": count}, "loss": {"a": value}}
        for step, (value, count) in enumerate(zip(values, pairs, strict=True), start=1)
    ]


def test_a_running_mean_is_weighted_by_pairs() -> None:
    curve = curves(rows([None, None, 1.0, 4.0] + [2.0] * 36, [0, 0, 3, 1] + [2] * 36))
    assert curve["window"] == 2
    # steps 1 and 2 have no pairs; 3: 1; 4: (3 * 1 + 1 * 4) / 4; 5: (4 + 2 * 2) / 3
    assert curve["loss"]["a"][:6] == [None, None, 1.0, 1.75, 2.667, 2.0]
    assert curve["weights"]["a"][:3] == [1.0, 0.5, 0.3333]
    assert "excess" not in curve, "the log of a specialist has no excess"


@pytest.mark.parametrize("length", [1, 3, MAX_POINTS, MAX_POINTS + 1, 5000])
def test_curves_are_thinned_out_and_keep_both_ends(length: int) -> None:
    curve = curves(rows([1.0] * length, [2] * length))
    steps = curve["steps"]
    assert len(steps) == min(length, MAX_POINTS) == len(curve["loss"]["a"])
    assert (steps[0], steps[-1]) == (1, length)
    assert steps == sorted(set(steps))
    assert set(curve["loss"]["a"]) == {1.0}


def test_the_mean_of_the_last_quarter_is_weighted_by_pairs() -> None:
    assert last_mean(rows([9.0] * 6 + [1.0, 0.0], [1] * 6 + [1, 3]), "loss", "a") == 0.25
    assert last_mean(rows([None] * 4, [0] * 4), "loss", "a") is None
    assert last_mean(rows([1.0], [1]), "loss", "a") == 1.0


def test_the_facts_of_a_run(run: Path, facts: Any) -> None:
    assert "On the test split, ama-r has the smallest worst-task gap" in facts["verdict"]
    assert facts["leaderboard"] == files.read_json(run / "leaderboard.json")
    assert list(facts["trainings"]) == ["specialist-alpha", "specialist-beta", "standard", "uniform", "ama-r"]
    assert facts["trainings"]["ama-r"]["weights"]["alpha"][-1] == 0.9
    assert facts["costs"]["uniform"] == {
        "steps": STEPS,
        "pairs": 4 * STEPS,
        "tokens": 1234,
        "seconds": 1.5,
        "machine": HOSTILE,
    }
    assert facts["validations"] == {}
    assert facts["versions"]["trl"]
    assert facts["library"] == "0123456789abcdef"
    assert facts["stages"] is None
    assert "label_noise: 0.25" in facts["config"]
    (warning,) = facts["warnings"]
    assert warning.startswith("specialist-alpha: its held-out loss is 0.25 above")


def test_the_facts_of_validations_name_the_kept_step(tmp_path: Path) -> None:
    training = {"batch_size": 4, "learning_rate": 0.1, "validate_every": 10, "keep": "best"}
    facts = facts_of(write_run(tmp_path, training=training) / runs.PAGE)
    values = {"steps": [10, 20, 30, 40], "worst": [0.25, 0.15, 0.25, 0.55]}
    kept = {"kept_step": 20, "kept_worst": 0.15, "last_worst": 0.55}
    by_task = dict.fromkeys(TASKS, values["worst"])
    assert facts["validations"]["ama-r"] == {**values, **kept, "loss": by_task, "gap": by_task}
    assert facts["validations"]["specialist-beta"].keys() == {*values, *kept, "loss"}
    assert facts["costs"]["ama-r"]["validation_seconds"] == 0.25


def test_the_prompts_that_separate_the_models_most_are_shown(facts: Any) -> None:
    """On pairs 2 and 3, two of four generalists and merges pass, and all give the same answer."""
    alpha, beta = facts["examples"]
    numbers = [prompt["messages"][0]["text"].split(":")[0] for prompt in alpha["prompts"]]
    assert numbers == ["2", "3", "4"], "on pair 4 three pass, and no other pair with three is before it"
    assert beta == {"task": "beta", "prompts": []}, "no answers were generated for it"
    answers = {answer["model"]: answer for answer in alpha["prompts"][0]["answers"]}
    assert list(answers) == [entry["model"] for entry in facts["leaderboard"]]
    linear = {"model": "linear", "text": f"{HOSTILE} of linear", "passed": 0, "wins": None, "samples": 1}
    assert answers["linear"] == linear
    assert (answers["uniform"]["passed"], alpha["prompts"][0]["expected"]) == (1, "42")


def test_a_long_text_loses_its_middle(facts: Any) -> None:
    text = facts["examples"][0]["prompts"][1]["messages"][1]["text"]
    assert len(text) < MAX_CHARACTERS + 50
    assert text.startswith("3: long long")
    assert text.endswith(HOSTILE)
    whole = len(f"3: {'long ' * 1000}{HOSTILE}")
    assert f"[… {whole - MAX_CHARACTERS:,} characters left out …]" in text


@pytest.mark.parametrize(("key", "total"), [("passed", "passed"), ("win", "wins")])
def test_of_several_samples_the_share_that_passes_or_wins_counts(
    run: Path, tmp_path: Path, key: str, total: str
) -> None:
    rows = [
        {"task": "alpha", "pair_id": f"alpha-{pair}", "sample": sample, "output": f"{sample}", "passed": None}
        | {key: mark}
        for pair, marks in enumerate([(1, 0), (1, 1), (0, 0)])
        for sample, mark in enumerate(marks)
    ]
    other = [{**row, key: 1} for row in rows]
    entries = [{"model": name, "family": "generalist"} for name in ("a", "b")]
    for name, answers in (("a", rows), ("b", other)):
        files.write_json(tmp_path / name / SUMMARY, {"model": name})
        files.write_jsonl(tmp_path / name / GENERATIONS, answers)
    (shown,) = examples(["alpha"], entries, [tmp_path / "b", tmp_path / "a"], run / "data")
    totals = [[answer[total] for answer in prompt["answers"]] for prompt in shown["prompts"]]
    assert totals == [[0, 2], [1, 2], [2, 2]], "0 of 2 and 2 of 2 are furthest apart"
    assert [answer["text"] for answer in shown["prompts"][0]["answers"]] == ["0", "0"], "the first sample"


def test_the_noise_is_estimated_in_two_ways(run: Path, facts: Any) -> None:
    alpha, beta = facts["tasks"]
    assert (alpha["contradicted"], beta["contradicted"]) == (0.0, 0.25)
    assert beta["swapped"] / beta["pairs"]["train"] == 0.25
    assert list(beta["clipped"]) == ["ama-r"], "the others do not train on the clipped excess"
    last = files.read_jsonl(run / "trajectories" / "ama-r.jsonl")[-STEPS // 4 :]
    share = sum(row["clipped"]["beta"] for row in last) / len(last)  # the same number of pairs in every step
    assert beta["clipped"]["ama-r"] == pytest.approx(share)


def test_the_limits_name_seed_and_budget(facts: Any) -> None:
    assert "one seed (0)" in facts["limits"][0]
    assert "160 pairs, 10.0 times the training data" in facts["limits"][1]


def test_the_page_knows_how_to_show_and_rank_every_metric(facts: Any) -> None:
    gap = {"better": "lower", "title": "gap", "format": ".3f", "headline": True}
    assert facts["metrics"]["gap"].items() >= gap.items()
    assert facts["metrics"]["gap"]["description"].startswith("L(theta, z) - L(theta_i, z).")
    assert facts["metrics"]["pass_rate"]["title"] == "pass rate"
    assert facts["baseline"] == "uniform"
    ama = next(entry for entry in facts["leaderboard"] if entry["model"] == "ama-r")
    low, high = ama["intervals"]["alpha"]["gap"]
    assert low < ama["tasks"]["alpha"]["gap"] < high
    difference = ama["difference"]["alpha"]["gap"]
    assert difference["low"] < difference["mean"] < difference["high"]


def test_the_limits_state_the_capacity_of_a_generalist_that_starts_from_a_merge() -> None:
    training = {"batch_size": 4, "learning_rate": 0.1, "lora": {"rank": 3}}
    warm = experiment(methods=["uniform", {"method": "ama-r", "init": "linear"}], training=training)
    (sentence,) = (text for text in limits(warm, {}, []) if "capacity" in text)
    assert "ama-r (from linear)" in sentence
    assert "in more than rank 3" in sentence


def test_the_page_contains_its_facts_as_json_and_not_as_html(run: Path, facts: Any) -> None:
    text = (run / runs.PAGE).read_text(encoding="utf-8")
    assert facts_of(run / runs.PAGE) == facts
    assert [task["name"] for task in facts["tasks"]] == list(TASKS)
    assert facts["tasks"][0]["sources"][0]["path"] == HOSTILE
    assert text.count("<script") == text.count("</script>") == 2
    assert "window.hacked = 1</script>" not in text
    assert "<img" not in text
    assert len(text) < 1_500_000

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((run / runs.FACTS).read_text(encoding="utf-8"), parse_constant=refuse)


def test_the_page_loads_nothing_and_allows_only_its_own_script(run: Path) -> None:
    text = (run / runs.PAGE).read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\"' ]*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\bsrc=\"|@import|url\(", text.replace(HOSTILE, ""))
    policy = re.search('Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none';")
    for kind, pattern in (("style", "<style>(.*?)</style>"), ("script", "<script>(.*?)</script>")):
        inline = re.search(pattern, text, re.DOTALL)
        assert inline is not None
        digest = base64.b64encode(hashlib.sha256(inline[1].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy[1]


def ama(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_a_rebuilt_report_adds_the_stages_and_warnings_of_the_logs(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "again")
    before = files.read_json(folder / runs.FACTS)
    (folder / runs.PAGE).unlink()
    files.write_text(folder / "models" / "ama-r" / "README.md", "card")
    events = [
        {"event": "started", "stage": "compare", "name": "", "time": 1.0},
        {"event": "warning", "stage": "specialist_losses", "name": "alpha", "message": HOSTILE},
        {"event": "finished", "stage": "train_specialist", "name": "alpha", "seconds": 2.5},
    ]
    files.write_jsonl(folder / "logs" / "events.jsonl", events)
    assert ama(folder).stdout.strip() == str(folder / runs.PAGE)
    after = files.read_json(folder / runs.FACTS)
    assert after == facts_of(folder / runs.PAGE)
    assert after.pop("stages") == [{"stage": "train_specialist", "name": "alpha", "seconds": 2.5}]
    assert after.pop("warnings") == [*before["warnings"], HOSTILE]
    assert after.pop("cards") == ["ama-r"], "only of models that have one"
    assert after == {key: value for key, value in before.items() if key in after}


def test_without_an_earlier_report_costs_come_from_the_records_of_kfp(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for path in (folder / runs.PAGE, folder / runs.FACTS):
        path.unlink()
    metadata = {"model": "uniform", "steps": 3, "seconds": 4.5, "method": "uniform"}
    record = {"artifacts": {"model": {"artifacts": [{"uri": "somewhere", "metadata": metadata}]}}}
    files.write_json(folder / ".kfp" / "step" / "executor_output.json", record)
    assert ama(folder).exit_code == 0
    facts = files.read_json(folder / runs.FACTS)
    assert facts["costs"] == {"uniform": {"steps": 3, "seconds": 4.5}}
    assert facts["versions"] is None, "the installed software is not the software that made the run"


def test_a_rebuilt_report_keeps_the_search_of_merge_weights(tmp_path: Path) -> None:
    write_run(tmp_path, merges=[{"method": "linear", "weights": "tuned"}])
    runs.rebuild(tmp_path, {})
    facts = facts_of(tmp_path / runs.PAGE)
    assert facts["tunings"] == {"linear": TUNING}
    assert any("weights of linear were tuned on the validation split" in text for text in facts["limits"])


def test_only_a_finished_run_has_a_report(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not the folder of a finished run: there is no config\.yaml"):
        runs.rebuild(tmp_path, {})
    folder = write_run(tmp_path / "broken")
    (folder / "trajectories" / "uniform.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"is incomplete: there is no .*uniform\.jsonl"):
        runs.rebuild(folder, {})


def test_runs_are_paired_by_seed(seeds: list[Path]) -> None:
    comparison = compare_runs(seeds, "standard")
    assert [row["seed"] for row in comparison["runs"]] == [0, 1, 2]
    boards = [
        {entry["model"]: entry for entry in files.read_json(seeds[at] / "leaderboard.json")} for at in (0, 2, 1)
    ]
    gap = {name: [board[name]["worst"]["gap"] for board in boards] for name in boards[0]}
    models = {row["model"]: row for row in comparison["models"]}
    for name, row in models.items():
        assert row["each"] == gap[name]
        assert row["worst"]["gap"] == pytest.approx(sum(gap[name]) / 3)
    differences = [mine - other for mine, other in zip(gap["ama-r"], gap["standard"], strict=True)]
    assert models["ama-r"]["difference"] == student_interval(differences)._asdict()
    assert models["ama-r"]["wins"] == 3
    assert models["linear"]["wins"] == 0
    assert models["standard"]["difference"] is None
    assert models["ama-r"]["worst"]["pass_rate"] is not None
    verdict = comparison["verdict"]
    assert verdict.startswith("ama-r has the smallest mean worst-task gap over 3 runs")
    assert "below standard" in verdict
    assert "better in 3 of 3 runs; its 95 % interval excludes 0" in verdict


def test_the_comparison_is_one_page(seeds: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "seeds.html"
    assert ama(*seeds, "--output", page).exit_code == 0
    facts = facts_of(page)
    assert facts["kind"] == "comparison"
    assert facts["baseline"] == "uniform"
    assert "<img" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("seed", "changes", "message"),
    [
        (
            1,
            {"methods": ["standard", "uniform", {"method": "ama-r", "eta": 0.5}]},
            r"only the seed may differ, but methods\.2\.eta is absent .* 0\.5 in the",
        ),
        (1, {"max_length": 99}, "max_length is 1024 in the one and 99 in the other"),
        (0, {}, "have the same seed, 0"),
    ],
)
def test_runs_with_other_settings_or_the_same_seed_are_refused(
    run: Path, tmp_path: Path, seed: int, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compare_runs([run, write_run(tmp_path / "other", seed, **changes)])


def test_an_unknown_baseline_is_refused(seeds: list[Path]) -> None:
    with pytest.raises(
        ConfigError,
        match=r"--baseline ama-s: there is no such model .did you mean .ama-r...; there are: reference, ",
    ):
        compare_runs(seeds, "ama-s")


@pytest.mark.parametrize("output", [[], ["--output", "x.html"]])
def test_the_option_output_is_only_for_several_runs(run: Path, output: list[str]) -> None:
    folders = [run] if output else [run, run]
    error = ama(*folders, *output).exception
    assert isinstance(error, ConfigError)
    assert "--output FILE goes with several run folders" in str(error)
