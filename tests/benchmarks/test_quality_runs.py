"""The running side of the quality benchmark: store, models of a seed, arms, sweeps, pairs of reasoning-gym."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from automixalign.config.data import VerifierSpec
from automixalign.config.experiment import Experiment, parse_experiment
from automixalign.config.methods import MethodSpec
from automixalign.config.plan import Plan
from automixalign.data.store import TEST, VALIDATION, read_split
from automixalign.models.load import load_full_model
from automixalign.quickstart.tiny_model import build_tokenizer
from automixalign.scoring.verifiers.registry import make_verifier
from automixalign.scoring.verifiers.verifier import Generated
from automixalign.storage import files
from benchmarks import tiny
from benchmarks.quality import __main__ as command_line
from benchmarks.quality import capacity_map, reasoning, setups, sweep
from benchmarks.quality.arms import Arm, Merge
from benchmarks.quality.page import RESULTS
from benchmarks.quality.seed_models import SeedModels, drift
from benchmarks.quality.store import Store, write_results
from tests.data.rows import conversation


class TestStore:
    def test_makes_a_result_once(self, tmp_path: Path) -> None:
        calls = []

        def make(path: Path) -> None:
            calls.append(path)
            path.write_text("result")

        first = Store(tmp_path).result("kind", {"a": [1, 2.5]}, make)
        assert Store(tmp_path).result("kind", {"a": [1, 2.5]}, make) == first
        assert first.read_text() == "result"
        assert len(calls) == 1

    def test_other_inputs_are_another_result(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        keys: list[tuple[str, Any]] = [("a", 1), ("a", 2), ("b", 1), ("a", [store.root / "a" / "x"])]
        assert len({store.result(*key, Path.touch) for key in keys}) == 4

    def test_a_failure_leaves_nothing(self, tmp_path: Path) -> None:
        def fail(path: Path) -> None:
            path.write_text("half")
            raise RuntimeError("ended")

        with pytest.raises(RuntimeError, match="ended"):
            Store(tmp_path).result("kind", 1, fail)
        assert Store(tmp_path).result("kind", 1, lambda path: path.write_text("whole")).read_text() == "whole"

    def test_settings_identify_a_result_and_code_does_not(self, tmp_path: Path, experiment: Experiment) -> None:
        """In nested settings, too."""
        data = {**experiment.model_dump(), "specialist_losses": {"cross_fit": True}}
        plan = Plan.of(parse_experiment(data, "test"), {"base_model": "b", "arithmetic": "1", "format": "2"})
        settings = plan.specialist_losses
        assert settings.fold is not None
        fold = settings.fold.model_copy(update={"code": "other"})
        later = settings.model_copy(update={"code": "other", "environment": "other", "fold": fold})
        longer = settings.model_copy(update={"fold": fold.model_copy(update={"seed": 8})})
        same, also, other = (
            Store(tmp_path).result("kind", each, Path.touch) for each in (settings, later, longer)
        )
        assert same == also != other

    def test_an_input_without_a_stable_form_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="does not determine a result"):
            Store(tmp_path).result("kind", object(), Path.touch)


def test_results_have_a_row_a_line(tmp_path: Path) -> None:
    rows = [{"seed": 0, "tasks": {"x": 1.5}}, {"seed": 1}]
    results = {"setup": "s", "tuned": {"a": {"chosen": {}}}, "rows": rows}
    write_results(tmp_path / "s.json", results)
    assert files.read_json(tmp_path / "s.json") == results
    assert '{"seed": 0, "tasks": {"x": 1.5}},\n{"seed": 1}\n' in (tmp_path / "s.json").read_text()
    write_results(tmp_path / "none.json", {"rows": []})
    assert files.read_json(tmp_path / "none.json") == {"rows": []}


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return parse_experiment(tiny.experiment(), "test")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> SeedModels:
    return SeedModels(Store(tmp_path_factory.mktemp("store")), parse_experiment(three_splits(), "test"))


def three_splits() -> dict[str, Any]:
    return {**tiny.experiment(), "split": {"validation": 0.2, "test": 0.3}}


def loss(row: dict[str, Any], split: str) -> np.ndarray:
    return np.array([metrics["loss"] for metrics in row[split].values()])


@pytest.mark.slow
class TestSeedModels:
    def test_reference_model(self, models: SeedModels) -> None:
        row = models.reference_row((VALIDATION, TEST))
        assert loss(row, TEST) == pytest.approx(np.log(2))
        assert all(metrics["drift"] == 0 for metrics in row[TEST].values())
        assert "drift" not in row[VALIDATION]["arithmetic"]
        assert set(row[TEST]["arithmetic"]) >= {"excess", "margin", "pass_rate"}

    def test_a_specialist_has_no_excess_on_its_own_task(self, models: SeedModels) -> None:
        row = models.specialist_row("format", (TEST,))
        assert (row["family"], row["steps"], row["late"]) == ("specialist", 2, {})
        assert row[TEST]["format"]["excess"] == 0
        assert row[TEST]["format"]["drift"] > 0

    def test_a_generalist_is_trained_once(self, models: SeedModels) -> None:
        arm = Arm("mine", "ama-r", {"eta": 0.5}, cross_fit=True)
        first, again, other = (
            models.row(arm, {"learning_rate": 2.0, "eta": 0.1, "c": c}, (TEST,)) for c in (0.2, 0.2, 0.3)
        )
        assert first["steps"] == 3
        assert np.abs(loss(first, TEST) - np.log(2)).min() > 1e-6
        assert sum(task["weight"] for task in first["late"].values()) == pytest.approx(1)
        assert again == first  # with the same seconds
        assert other["late"] != first["late"]

    def test_total_compute_adds_the_steps_of_the_specialists(self, models: SeedModels) -> None:
        row = models.row(Arm("total", "uniform", total_compute=True), {}, (VALIDATION,))
        assert row["steps"] == 3 + 2 * 2
        assert TEST not in row

    def test_a_merge_with_all_weight_on_one_specialist_is_that_specialist(self, models: SeedModels) -> None:
        row = models.row(Merge("linear", "linear"), {"weights": {"format": 1e6}}, (TEST,))
        assert loss(row, TEST) == pytest.approx(loss(models.specialist_row("format", (TEST,)), TEST), abs=1e-4)
        assert row["family"] == "merge"

    def test_setups_share_the_tasks_that_they_have_in_common(self, models: SeedModels) -> None:
        data = models.experiment.model_dump()
        one_task = parse_experiment({**data, "tasks": data["tasks"][:1]}, "test")
        alone = SeedModels(models.store, one_task, base_tasks=models.tasks)
        assert alone.base_model == models.base_model
        assert alone.specialist("arithmetic") == models.specialist("arithmetic")

    def test_the_base_model_of_a_source_does_not_depend_on_the_seed(self, models: SeedModels) -> None:
        data = {**models.experiment.model_dump(), "base_model": str(models.base_model)}
        first, second = (
            SeedModels(models.store, parse_experiment({**data, "seed": seed}, "test")) for seed in (1, 2)
        )
        assert first.base_model == second.base_model
        assert first.data("format") != second.data("format")


@pytest.mark.slow
def test_drift_is_the_divergence_of_the_next_tokens(models: SeedModels) -> None:
    reference, policy = (load_full_model(models.base_model) for _ in range(2))
    with torch.no_grad():
        policy.lm_head.weight.mul_(1.5)
    pair = read_split(models.joint["data"], "format", TEST).slice(0, 1)
    row = pair.to_pylist()[0]
    ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]])
    start = len(row["prompt_ids"]) - 1
    mine, theirs = (
        torch.distributions.Categorical(logits=model(ids).logits[0, start:-1]) for model in (policy, reference)
    )
    expected = torch.distributions.kl_divergence(mine, theirs).mean().item()
    assert drift(policy, reference, pair, "fp32") == pytest.approx(expected, rel=1e-4)


class TestArms:
    @pytest.mark.parametrize("setup", setups.SETUPS.values(), ids=setups.SETUPS)
    def test_options_are_those_of_the_methods(self, setup: setups.Setup) -> None:
        for arm in setup.generalists:
            for options in arm.candidates or ({},):
                method = {"method": arm.method, **options, **arm.options}
                method.pop("learning_rate", None)
                MethodSpec.model_validate(method)
            assert arm.like is None or arm.like in {other.name for other in setup.generalists}

    @pytest.mark.parametrize("setup", setups.SETUPS.values(), ids=setups.SETUPS)
    def test_every_tuned_arm_tries_the_same_number(self, setup: setups.Setup) -> None:
        tried = {len(arm.candidates) for arm in setup.generalists if arm.candidates}
        assert len(tried) == bool(setup.tuning_seeds)

    def test_a_merge_tries_a_weight_for_each_task(self) -> None:
        merge = Merge("m", "linear", ({"weight": 1.0},), weights=(2.0,))
        assert merge.tries(["a", "b"]) == (
            {"weight": 1.0},
            {"weight": 1.0, "weights": {"a": 2.0}},
            {"weight": 1.0, "weights": {"b": 2.0}},
        )

    def test_a_setup_makes_a_configuration(self, tmp_path: Path) -> None:
        setup = setups.SETUPS["synthetic-conflict"]
        assert [task.name for task in setup.configured(3, None, tmp_path).tasks] == list(setups.CONFLICT_SIZES)
        with pytest.raises(SystemExit, match="--data"):
            setups.SETUPS["smollm2-hhh"].configured(0, None, tmp_path)


@pytest.mark.slow
def test_preference_pairs_are_selected_by_source_length_and_prompt(tmp_path: Path) -> None:
    def row(prompt: str, chosen: str, source: str) -> dict[str, Any]:
        return conversation(prompt, chosen, "No.", source=source)

    selected = [row("a", "One.", "X/1"), row("a", "Two.", "X/2"), row("b", "Three.", "X/1")]
    others = [row("a", "Four.", "X/1"), row("b", "word " * 200, "X/1"), row("c", "Five.", "Y")]
    files.write_jsonl(tmp_path / "task.jsonl", [*selected[:2], *others, selected[2]])
    (tmp_path / "scratch").mkdir()
    chosen = setups.select_pairs(tmp_path / "task.jsonl", tmp_path / "scratch", setups.PairFilter(100, 2, "X"))
    assert files.read_jsonl(chosen) == selected


@pytest.mark.parametrize("capacity", capacity_map.CAPACITIES)
def test_every_cell_of_the_map_is_a_configuration(capacity: int | str) -> None:
    """Cells with fewer tasks have the first tasks of the others, so that they share specialists."""
    for count in capacity_map.TASKS:
        cell = parse_experiment(capacity_map.experiment(4, capacity, count, 100), "the map")
        assert [task.name for task in cell.tasks] == list(capacity_map.SIZES)[:count]
        assert cell.budget.generalist.steps == 100
        assert (cell.training.lora is None) == (capacity == "full")


def add_setup(monkeypatch: pytest.MonkeyPatch, data: dict[str, Any], *fields: Any) -> setups.Setup:
    """Register the setup `tiny` with this configuration for every seed."""
    setup = setups.Setup("tiny", lambda _seed, _data, _scratch: data, *fields)
    monkeypatch.setitem(setups.SETUPS, "tiny", setup)
    return setup


class InThisProcess:
    """Takes the place of the process pool; records its work."""

    def __init__(self) -> None:
        self.units: list[Any] = []

    def map(self, call: Callable[..., object], units: Sequence[Any]) -> list[object]:
        self.units += units
        return [call(unit) for unit in units]


def run_tiny(folder: Path, seeds: list[int], before: Any = None, workers: Any = None) -> dict[str, Any]:
    return sweep.run(sweep.Sweep("tiny", None, folder), seeds, workers or InThisProcess(), before)


def through_json(results: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    return json.loads(json.dumps({**results, "rows": rows}))  # type: ignore[no-any-return]


def test_results_name_no_path_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny.experiment()
    data["base_model"] = {"source": str(tmp_path / "sources" / "base" / "abc")}
    data["tasks"] = [{"name": "one", "source": "/elsewhere/one.jsonl"}]
    written = sweep.experiment_without_paths(add_setup(monkeypatch, data, (), ()), None, tmp_path)
    assert written["base_model"]["source"] == "abc"
    assert [task["source"] for task in written["tasks"]] == ["one.jsonl"]


def test_the_map_keeps_the_rows_of_the_same_experiment(tmp_path: Path) -> None:
    """The committed map is that of the code."""
    assert capacity_map.rows_of(None) == capacity_map.rows_of(tmp_path / "none.json") == []
    committed = files.read_json(RESULTS / "map.json")
    assert capacity_map.rows_of(RESULTS / "map.json") == committed["rows"] != []
    committed["experiment"]["training"]["beta"] = 0.7
    files.write_json(tmp_path / "other.json", committed)
    assert capacity_map.rows_of(tmp_path / "other.json") == []


COMMON = ("reference", "specialist-arithmetic", "specialist-format")


@pytest.mark.slow
def test_a_sweep_tunes_on_validation_and_reports_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = ({"learning_rate": 1.0}, {"learning_rate": 30.0})
    longer = Arm("more", "uniform", like="uniform", total_compute=True)
    merges = (Merge("linear", "linear"), Merge("tuned", "task_arithmetic", ({"lambda": 0.1}, {"lambda": 50.0})))
    generalists = (Arm("uniform", "uniform", candidates=rates), longer)
    add_setup(monkeypatch, three_splits(), generalists, merges, (7,))
    results = run_tiny(tmp_path, [0, 1])
    for arm in ("uniform", "tuned"):
        tried = results["tuned"][arm]["tried"]
        best = min(tried, key=lambda candidate: candidate["worst_excess"])
        assert len(tried) == 2
        assert results["tuned"][arm]["chosen"] == best["options"]
    names = [(row["seed"], row["arm"]) for row in results["rows"]]
    assert names == [(seed, arm) for seed in (0, 1) for arm in (*COMMON, "uniform", "more", "linear", "tuned")]
    assert str(tmp_path) not in json.dumps(results)
    steps = {(row["seed"], row["arm"]): row["steps"] for row in results["rows"]}
    for seed in (0, 1):
        assert steps[seed, "more"] == sum(steps[seed, arm] for arm in COMMON[1:]) + steps[seed, "uniform"]
    # A new output folder keeps tuning and rows of the file, and makes only the missing seed.
    before = through_json(results, [row for row in results["rows"] if row["seed"] == 1])
    before["rows"][0]["seconds"] = 1234.5
    workers = InThisProcess()
    more = run_tiny(tmp_path / "new", [0], before, workers)
    assert [seed for seed, _ in workers.units] == [0]
    assert more["tuned"] == results["tuned"]
    assert [(row["seed"], row["arm"]) for row in more["rows"]] == names
    assert [row["tasks"] for row in more["rows"]] == [row["tasks"] for row in results["rows"]]
    assert 1234.5 in [row["seconds"] for row in more["rows"]]


@pytest.mark.slow
def test_a_sweep_runs_again_only_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new arm runs on all seeds, as does an arm like one that has changed; a removed arm disappears."""
    removed, merge = Arm("standard", "standard"), Merge("linear", "linear")
    uniform, like = Arm("uniform", "uniform"), Arm("longer", "uniform", like="uniform", total_compute=True)

    def swept(seeds: list[int], before: Any, *arms: Arm) -> tuple[dict[str, Any], list[tuple[int, str]]]:
        """The results with marked rows, and which rows are new."""
        add_setup(monkeypatch, three_splits(), arms, (merge,))
        results = run_tiny(tmp_path, seeds, before)
        marks = [row["seconds"] for row in before["rows"]] if before else []
        new = [(row["seed"], row["arm"]) for row in results["rows"] if row["seconds"] not in marks]
        rows = [{**row, "seconds": 1000.0 + number} for number, row in enumerate(results["rows"])]
        return through_json(results, rows), new

    first, _ = swept([3], None, removed, uniform)
    second, new = swept([1], first, uniform, like)
    assert new == [*((1, arm) for arm in (*COMMON, "uniform", "longer", "linear")), (3, "longer")]
    assert second["seeds"] == [1, 3]
    assert [arm["name"] for arm in second["arms"]] == ["uniform", "longer", "linear"]
    faster = dataclasses.replace(uniform, options={"learning_rate": 2.0})
    third, new = swept([], second, faster, like)
    assert new == [(1, "uniform"), (1, "longer"), (3, "uniform"), (3, "longer")]
    assert swept([], third, faster, like)[1] == []
    assert [row["arm"] for row in third["rows"]] == 2 * [*COMMON, "uniform", "longer", "linear"]


@pytest.mark.slow
def test_results_of_another_experiment_are_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_setup(monkeypatch, three_splits(), (), ())
    other = {"setup": "tiny", "experiment": {}, "seeds": [9], "tuned": {}}
    other |= {key: [] for key in ("tuning_seeds", "arms", "rows")}
    assert run_tiny(tmp_path, [0], other)["seeds"] == [0]
    assert "the results are those of another tiny: all of it runs again" in capsys.readouterr().err


@pytest.mark.slow
def test_without_tuning_seeds_each_seed_tunes_a_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = ({"lambda": 50.0}, {"lambda": 1.0}, {"lambda": 100.0})
    merge = Merge("tuned", "task_arithmetic", tries)
    setup = add_setup(monkeypatch, three_splits(), (), (merge,))
    (row,) = (row for row in run_tiny(tmp_path, [0])["rows"] if row["arm"] == "tuned")
    with sweep.seed_models(setup, 0, None, tmp_path) as models:
        rows = [models.row(merge, options, (VALIDATION, TEST)) for options in tries]
    worst = [max(task["excess"] for task in each[VALIDATION].values()) for each in rows]
    best = worst.index(min(worst))
    assert row["options"] == tries[best]
    losses = [metrics["loss"] for metrics in row["tasks"].values()]
    assert losses == pytest.approx(loss(rows[best], TEST), abs=1e-4)
    assert len({round(each, 3) for each in worst}) == 3


@pytest.mark.parametrize(("text", "seeds"), [("3", [0, 1, 2]), ("3,4", [3, 4]), ("3,", [3]), ("1", [0])])
def test_seeds_on_the_command_line(text: str, seeds: list[int]) -> None:
    assert command_line.parse_seeds(text) == seeds
    assert command_line.format_seeds(seeds) == text


Pairs = dict[str, list[dict[str, Any]]]


class TestReasoning:
    @pytest.fixture(scope="class")
    def pairs(self) -> Pairs:
        pytest.importorskip("reasoning_gym", reason="of the extra `quality`")
        return reasoning.pairs(3)

    @pytest.mark.parametrize("family", reasoning.FAMILIES)
    def test_the_scorer_tells_right_from_wrong(self, family: str, pairs: Pairs) -> None:
        scorer, rows = make_verifier(VerifierSpec(name=reasoning.register()[family])), pairs[family]

        def passes(output: str, answer: str) -> bool:
            return scorer.passes(Generated("", output, answer, {}))

        assert len(rows) == reasoning.FAMILIES[family][0] + reasoning.HELD_OUT
        assert len({row["prompt"][0]["content"] for row in rows}) == len(rows)
        assert all(passes(row["chosen"][0]["content"], row["answer"]) for row in rows)
        assert not any(passes(row["rejected"][0]["content"], row["answer"]) for row in rows)

    @pytest.mark.parametrize("family", reasoning.FAMILIES)
    def test_no_answer_is_frequent_or_too_long(self, family: str, pairs: Pairs) -> None:
        answers = Counter(row["chosen"][0]["content"] for row in pairs[family])
        assert max(answers.values()) < 0.42 * answers.total()
        tokenizer = build_tokenizer()
        assert max(len(tokenizer(answer)["input_ids"]) for answer in answers) < reasoning.MAX_ANSWER_TOKENS

    def test_pairs_depend_on_the_seed_alone(self, pairs: Pairs, tmp_path: Path) -> None:
        assert reasoning.pairs(3) == pairs != reasoning.pairs(4)
        reasoning.write_pairs(tmp_path, pairs)
        assert files.read_jsonl(tmp_path / "gcd.jsonl") == pairs["gcd"]

    def test_seeds_share_problems_only_by_chance(self, pairs: Pairs) -> None:
        """A seed shares as many with the next seed as with a distant one: words and small numbers are few."""

        def prompts(rows: list[dict[str, Any]]) -> set[str]:
            return {row["prompt"][0]["content"] for row in rows}

        def shared(seed: int) -> int:
            others = reasoning.pairs(seed)
            return sum(len(prompts(others[family]) & prompts(rows)) for family, rows in pairs.items())

        assert abs(shared(4) - shared(40)) < 0.03 * sum(map(len, pairs.values()))

    def test_the_base_model_is_not_trained_on_the_pairs(self, pairs: Pairs) -> None:
        """It reads every prompt without truncation."""
        texts = reasoning.base_texts(3)
        prompts = {row["prompt"][0]["content"] for rows in pairs.values() for row in rows}
        assert len(texts) == reasoning.BASE_ROWS * len(reasoning.FAMILIES)
        assert not prompts & {text[0]["content"] for text in texts}
        tokenizer = build_tokenizer()
        assert max(len(tokenizer(prompt)["input_ids"]) for prompt in prompts) + 20 < reasoning.MAX_LENGTH
