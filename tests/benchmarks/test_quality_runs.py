"""What the quality benchmark runs: store, models of a world, arms, drift, and the pairs of reasoning-gym."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from automixalign.config.experiment import Experiment, parse_experiment
from automixalign.config.methods import MethodSpec
from automixalign.config.plan import Plan
from automixalign.data.store import TEST, VALIDATION, read_split
from automixalign.models.load import load_full_model
from automixalign.quickstart.tiny_model import build_tokenizer
from automixalign.scoring.verifiers.registry import registered_verifiers
from automixalign.storage import files
from benchmarks import tiny
from benchmarks.quality import __main__ as command_line
from benchmarks.quality import capacity_map, reasoning, setups, sweep
from benchmarks.quality.arms import Arm, Merge
from benchmarks.quality.drift import drift
from benchmarks.quality.page import RESULTS
from benchmarks.quality.store import Store, write_results
from benchmarks.quality.world import World


class TestStore:
    def test_makes_a_result_once(self, tmp_path: Path) -> None:
        calls = []

        def make(path: Path) -> None:
            calls.append(path)
            path.write_text("result")

        first = Store(tmp_path).made("kind", {"a": [1, 2.5]}, make)
        assert Store(tmp_path).made("kind", {"a": [1, 2.5]}, make) == first
        assert first.read_text() == "result"
        assert len(calls) == 1

    def test_other_inputs_are_another_result(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        paths = [
            store.made(kind, inputs, lambda path: path.write_text(""))
            for kind, inputs in (("a", 1), ("a", 2), ("b", 1), ("a", [store.root / "a" / "x"]))
        ]
        assert len(set(paths)) == 4

    def test_what_fails_leaves_nothing(self, tmp_path: Path) -> None:
        def fail(path: Path) -> None:
            path.write_text("half")
            raise RuntimeError("ended")

        with pytest.raises(RuntimeError, match="ended"):
            Store(tmp_path).made("kind", 1, fail)
        made = Store(tmp_path).made("kind", 1, lambda path: path.write_text("whole"))
        assert made.read_text() == "whole"

    def test_the_code_does_not_matter_but_the_settings_do(self, tmp_path: Path, experiment: Experiment) -> None:
        """Also of settings within settings."""
        data = {**experiment.model_dump(), "specialist_losses": {"cross_fit": True}}
        plan = Plan.of(parse_experiment(data, "test"), {"base_model": "b", "arithmetic": "1", "format": "2"})
        settings = plan.specialist_losses
        assert settings.fold is not None
        fold = settings.fold.model_copy(update={"code": "other"})
        later = settings.model_copy(update={"code": "other", "environment": "other", "fold": fold})
        longer = settings.model_copy(update={"fold": fold.model_copy(update={"seed": 8})})
        store = Store(tmp_path)
        same, also, other = (
            store.made("kind", each, lambda path: path.write_text("")) for each in (settings, later, longer)
        )
        assert same == also != other

    def test_what_cannot_be_compared_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="does not determine a result"):
            Store(tmp_path).made("kind", object(), lambda path: path.write_text(""))


def test_results_have_a_row_a_line(tmp_path: Path) -> None:
    found = {
        "setup": "s",
        "tuned": {"a": {"chosen": {}}},
        "rows": [{"seed": 0, "tasks": {"x": 1.5}}, {"seed": 1}],
    }
    write_results(tmp_path / "s.json", found)
    assert files.read_json(tmp_path / "s.json") == found
    assert '{"seed": 0, "tasks": {"x": 1.5}},\n{"seed": 1}\n' in (tmp_path / "s.json").read_text()
    write_results(tmp_path / "none.json", {"rows": []})
    assert files.read_json(tmp_path / "none.json") == {"rows": []}


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return parse_experiment(tiny.experiment(), "test")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, experiment: Experiment) -> World:
    data = {**experiment.model_dump(), "split": {"validation": 0.2, "test": 0.3}}
    return World(Store(tmp_path_factory.mktemp("store")), parse_experiment(data, "test"))


def loss(row: dict[str, object], split: str) -> np.ndarray:
    tasks = row[split]
    assert isinstance(tasks, dict)
    return np.array([measured["loss"] for measured in tasks.values()])


class TestWorld:
    def test_the_reference(self, world: World) -> None:
        row = world.reference_row((VALIDATION, TEST))
        assert loss(row, TEST) == pytest.approx(np.log(2))
        assert all(measured["drift"] == 0 for measured in row[TEST].values())
        assert "drift" not in row[VALIDATION]["arithmetic"]
        assert set(row[TEST]["arithmetic"]) >= {"excess", "accuracy", "margin", "pass_rate"}

    def test_a_specialist_has_no_excess_on_its_own_task(self, world: World) -> None:
        row = world.specialist_row("format", (TEST,))
        assert row["family"] == "specialist"
        assert row["steps"] == 2
        assert row[TEST]["format"]["excess"] == 0
        assert row[TEST]["format"]["drift"] > 0

    @pytest.mark.parametrize("cross_fit", [False, True])
    def test_a_generalist(self, world: World, cross_fit: bool) -> None:
        arm = Arm("mine", "ama-r", {"eta": 0.5}, cross_fit=cross_fit)
        row = world.generalist_row(arm, {"learning_rate": 2.0, "eta": 0.1, "c": 0.2}, (TEST,))
        assert row["steps"] == 3
        assert np.abs(loss(row, TEST) - np.log(2)).min() > 1e-6
        log = files.read_jsonl(row["folder"] / "trajectory.jsonl")
        assert len(log) == 3
        again = world.generalist_row(arm, {"learning_rate": 2.0, "eta": 0.1, "c": 0.2}, (TEST,))
        assert again == row  # the seconds, too: it was not trained again
        other = world.generalist_row(arm, {"learning_rate": 2.0, "eta": 0.1, "c": 0.3}, (TEST,))
        assert other["folder"] != row["folder"]

    def test_the_total_compute(self, world: World) -> None:
        row = world.generalist_row(Arm("total", "uniform", total_compute=True), {}, (VALIDATION,))
        assert row["steps"] == 3 + 2 * 2
        assert TEST not in row

    def test_a_merge(self, world: World) -> None:
        """A merge with nearly all the weight on a specialist is that specialist."""
        weighted = {"weights": {"format": 1e6}}
        row = world.merge_row(Merge("linear", "linear"), weighted, (TEST,))
        specialist = world.specialist_row("format", (TEST,))
        assert loss(row, TEST) == pytest.approx(loss(specialist, TEST), abs=1e-4)
        assert row["family"] == "merge"

    def test_a_setup_with_fewer_tasks_shares_what_it_has(self, world: World) -> None:
        data = world.experiment.model_dump()
        alone = World(
            world.store, parse_experiment({**data, "tasks": data["tasks"][:1]}, "test"), base_tasks=world.tasks
        )
        assert alone.base_model == world.base_model
        assert alone.specialist("arithmetic") == world.specialist("arithmetic")


def test_drift_is_the_divergence_of_the_next_tokens(world: World) -> None:
    reference = load_full_model(world.base_model)
    policy = load_full_model(world.base_model)
    with torch.no_grad():
        policy.lm_head.weight.mul_(1.5)
    data, _ = world.joint
    pairs = read_split(data, "format", TEST)
    row = pairs.slice(0, 1).to_pylist()[0]
    ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]])
    start = len(row["prompt_ids"]) - 1
    mine, theirs = (
        torch.distributions.Categorical(logits=model(ids).logits[0, start:-1]) for model in (policy, reference)
    )
    expected = torch.distributions.kl_divergence(mine, theirs).mean().item()
    assert drift(policy, reference, pairs.slice(0, 1), "fp32") == pytest.approx(expected, rel=1e-4)


class TestArms:
    @pytest.mark.parametrize("setup", setups.SETUPS.values(), ids=setups.SETUPS)
    def test_their_options_are_those_of_their_methods(self, setup: setups.Setup) -> None:
        for arm in setup.generalists:
            for options in arm.candidates or ({},):
                method = {
                    key: value for key, value in {**options, **arm.options}.items() if key != "learning_rate"
                }
                MethodSpec.model_validate({"method": arm.method, **method})
            assert arm.like is None or arm.like in {other.name for other in setup.generalists}

    @pytest.mark.parametrize("setup", setups.SETUPS.values(), ids=setups.SETUPS)
    def test_every_tuned_arm_tries_as_many(self, setup: setups.Setup) -> None:
        tried = {len(arm.candidates) for arm in setup.generalists if arm.candidates}
        assert len(tried) == bool(setup.tuning_seeds)

    def test_a_merge_tries_a_weight_for_each_task(self) -> None:
        merge = Merge("m", "linear", ({"weight": 1.0},), weights=(2.0,))
        assert merge.tries(["a", "b"]) == (
            {"weight": 1.0},
            {"weight": 1.0, "weights": {"a": 2.0}},
            {"weight": 1.0, "weights": {"b": 2.0}},
        )

    def test_the_setups_are_configurations(self, tmp_path: Path) -> None:
        setup = setups.SETUPS["synthetic-conflict"]
        assert [task.name for task in setup.configured(3, None, tmp_path).tasks] == list(setups.CONFLICT_SIZES)
        with pytest.raises(SystemExit, match="--data"):
            setups.SETUPS["smollm2-hhh"].configured(0, None, tmp_path)


def test_which_preference_pairs_take_part(tmp_path: Path) -> None:
    """Of the named source, short enough, and of a prompt the first few."""

    def row(prompt: str, chosen: str, source: str) -> dict[str, Any]:
        return {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": "No."}],
            "source": source,
        }

    kept = [row("a", "One.", "X/1"), row("a", "Two.", "X/2"), row("b", "Three.", "X/1")]
    others = [row("a", "Four.", "X/1"), row("b", "word " * 200, "X/1"), row("c", "Five.", "Y")]
    files.write_jsonl(tmp_path / "task.jsonl", [*kept[:2], *others, kept[2]])
    (tmp_path / "scratch").mkdir()
    chosen = setups._chosen(tmp_path / "task.jsonl", tmp_path / "scratch", setups.Pairs(100, 2, "X"))
    assert files.read_jsonl(chosen) == kept


@pytest.mark.parametrize("capacity", capacity_map.CAPACITIES)
def test_every_cell_of_the_map_is_a_configuration(capacity: int | str) -> None:
    """Fewer tasks are the first of more, so that specialists are shared."""
    for count in capacity_map.TASKS:
        found = parse_experiment(capacity_map.experiment(4, capacity, count, 100), "the map")
        assert [task.name for task in found.tasks] == list(capacity_map.SIZES)[:count]
        assert found.budget.generalist.steps == 100
        assert (found.training.lora is None) == (capacity == "full")


def test_results_name_no_place_of_this_machine(tmp_path: Path) -> None:
    """Neither of a task's pairs, nor of a base model that was made for the seed."""
    data = tiny.experiment()
    data["base_model"] = {"source": str(tmp_path / "sources" / "base" / "abc")}
    data["tasks"] = [{"name": "one", "source": "/elsewhere/one.jsonl"}]
    setup = setups.Setup("tiny", "", lambda _seed, _data, _scratch: data, (), ())
    kept = sweep._without_places(setup, None, tmp_path)
    assert kept["base_model"]["source"] == "abc"
    assert [task["source"] for task in kept["tasks"]] == ["one.jsonl"]


def test_the_map_goes_on_from_the_seeds_of_the_same_experiment(tmp_path: Path) -> None:
    """The committed file is of the experiment that the code has now."""
    assert capacity_map.known(None) == capacity_map.known(tmp_path / "none.json") == []
    committed = files.read_json(RESULTS / "map.json")
    assert capacity_map.known(RESULTS / "map.json") == committed["rows"] != []
    committed["experiment"]["training"]["beta"] = 0.7
    files.write_json(tmp_path / "other.json", committed)
    assert capacity_map.known(tmp_path / "other.json") == []


def test_a_sweep_tunes_on_validation_and_reports_each_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: what is chosen is the candidate with the least worst excess, for arms and for merges."""
    data = {**tiny.experiment(), "split": {"validation": 0.2, "test": 0.3}}
    rates = ({"learning_rate": 1.0}, {"learning_rate": 30.0})
    setup = setups.Setup(
        "tiny",
        "",
        lambda seed, _data, _scratch: data,
        (
            Arm("uniform", "uniform", candidates=rates),
            Arm("more", "uniform", like="uniform", total_compute=True),
        ),
        (Merge("linear", "linear"), Merge("tuned", "task_arithmetic", ({"lambda": 0.1}, {"lambda": 50.0}))),
        (7,),
    )
    monkeypatch.setitem(setups.SETUPS, "tiny", setup)
    found = sweep.run("tiny", [0, 1], None, tmp_path, Here())
    for arm in ("uniform", "tuned"):
        tried = found["tuned"][arm]["tried"]
        best = min(tried, key=lambda each: each["worst_excess"])
        assert len(tried) == 2
        assert found["tuned"][arm]["chosen"] == best["options"]
    assert [(row["seed"], row["arm"]) for row in found["rows"]] == [
        (seed, arm)
        for seed in (0, 1)
        for arm in (
            *("reference", "specialist-arithmetic", "specialist-format"),
            *("uniform", "more", "linear", "tuned"),
        )
    ]
    assert str(tmp_path) not in json.dumps(found)
    # What a file holds is kept, tuning and seeds, without anything of the folder that it was made in.
    here = Here()
    before = json.loads(json.dumps({**found, "rows": [row for row in found["rows"] if row["seed"] == 1]}))
    before["rows"][0]["seconds"] = 1234.5
    more = sweep.run("tiny", [0], None, tmp_path / "new", here, before)  # type: ignore[arg-type]
    assert [seed for seed, _ in here.done] == [0]
    assert more["tuned"] == found["tuned"]
    assert [(row["seed"], row["arm"]) for row in more["rows"]] == [
        (row["seed"], row["arm"]) for row in found["rows"]
    ]
    for row, same in zip(more["rows"], found["rows"], strict=True):
        assert row["tasks"] == same["tasks"]
    assert 1234.5 in [row["seconds"] for row in more["rows"]]
    assert {row["steps"] for row in found["rows"] if row["arm"] == "more"} == {
        sum(row["steps"] for row in found["rows"] if row["seed"] == 0 and row["family"] == "specialist")
        + next(row["steps"] for row in found["rows"] if row["arm"] == "uniform")
    }


def test_a_sweep_runs_again_what_has_changed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new arm on the seeds that are there, also one like an arm that has changed; what is gone goes."""
    data = {**tiny.experiment(), "split": {"validation": 0.2, "test": 0.3}}
    gone, merge = Arm("standard", "standard"), Merge("linear", "linear")
    uniform, like = Arm("uniform", "uniform"), Arm("longer", "uniform", like="uniform", total_compute=True)

    def swept(seeds: list[int], before: Any, *arms: Arm) -> tuple[dict[str, Any], list[tuple[int, str]]]:
        """The results, and which rows are not those of before."""
        setup = setups.Setup("tiny", "", lambda _seed, _data, _scratch: data, arms, (merge,))
        monkeypatch.setitem(setups.SETUPS, "tiny", setup)
        found = sweep.run("tiny", seeds, None, tmp_path, Here(), before)  # type: ignore[arg-type]
        old = [{**row, "tokens": -1} for row in before["rows"]] if before else []
        return found, [(row["seed"], row["arm"]) for row in found["rows"] if {**row, "tokens": -1} not in old]

    def marked(found: dict[str, Any]) -> dict[str, Any]:
        rows = [{**row, "seconds": 1000.0 + place} for place, row in enumerate(found["rows"])]
        return json.loads(json.dumps({**found, "rows": rows}))  # type: ignore[no-any-return]

    first, _ = swept([3], None, gone, uniform)
    second, new = swept([1], marked(first), uniform, like)
    common = ("reference", "specialist-arithmetic", "specialist-format")
    assert new == [*((1, arm) for arm in (*common, "uniform", "longer", "linear")), (3, "longer")]
    assert second["seeds"] == [1, 3]
    assert [arm["name"] for arm in second["arms"]] == ["uniform", "longer", "linear"]
    faster = dataclasses.replace(uniform, options={"learning_rate": 2.0})
    third, new = swept([], marked(second), faster, like)
    assert new == [(1, "uniform"), (1, "longer"), (3, "uniform"), (3, "longer")]
    assert swept([], marked(third), faster, like)[1] == []
    assert [row["arm"] for row in third["rows"]] == 2 * [*common, "uniform", "longer", "linear"]


@pytest.mark.parametrize(("text", "seeds"), [("3", [0, 1, 2]), ("3,4", [3, 4]), ("3,", [3]), ("1", [0])])
def test_which_seeds_are_meant(text: str, seeds: list[int]) -> None:
    assert command_line.seeds_of(text) == seeds
    assert command_line.named(seeds) == text


def test_without_tuning_seeds_a_merge_is_tuned_on_its_seed_s_validation_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = ({"lambda": 50.0}, {"lambda": 1.0}, {"lambda": 100.0})
    merge = Merge("tuned", "task_arithmetic", tries)
    data = {**tiny.experiment(), "split": {"validation": 0.2, "test": 0.3}}
    setup = setups.Setup("tiny", "", lambda seed, _data, _scratch: data, (), (merge,))
    monkeypatch.setitem(setups.SETUPS, "tiny", setup)
    found = sweep.run("tiny", [0], None, tmp_path, Here())  # type: ignore[arg-type]
    with sweep.world(setup, 0, None, tmp_path) as made:
        rows = [made.merge_row(merge, options, ("validation", "test")) for options in tries]
    worst = [max(task["excess"] for task in row["validation"].values()) for row in rows]
    (row,) = (row for row in found["rows"] if row["arm"] == "tuned")
    assert row["options"] == tries[worst.index(min(worst))]
    want = rows[worst.index(min(worst))]["test"]
    assert {task: measured["loss"] for task, measured in row["tasks"].items()} == pytest.approx(
        {task: measured["loss"] for task, measured in want.items()}, abs=1e-4
    )
    assert len({round(each, 3) for each in worst}) == 3


class Here:
    """Works in this process, as the pool's processes do; knows what it was given."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    def map(self, call: Callable[..., object], *items: Sequence[object]) -> list[object]:
        self.done += items[0]
        return [call(*each) for each in zip(*items, strict=True)]


class TestReasoning:
    @pytest.fixture(scope="class")
    def pairs(self) -> dict[str, list[dict[str, Any]]]:
        pytest.importorskip("reasoning_gym", reason="of the extra `quality`")
        return reasoning.pairs(3)

    @pytest.mark.parametrize("family", reasoning.FAMILIES)
    def test_the_packages_scorer_tells_right_from_wrong(
        self, family: str, pairs: dict[str, list[dict[str, Any]]]
    ) -> None:
        passes, rows = registered_verifiers()[reasoning.register()[family]], pairs[family]
        assert len(rows) == reasoning.FAMILIES[family][0] + reasoning.HELD_OUT
        assert len({row["prompt"][0]["content"] for row in rows}) == len(rows)
        assert all(passes(row["chosen"][0]["content"], row["answer"]) for row in rows)
        assert not any(passes(row["rejected"][0]["content"], row["answer"]) for row in rows)

    @pytest.mark.parametrize("family", reasoning.FAMILIES)
    def test_how_frequent_an_answer_is_says_little(
        self, family: str, pairs: dict[str, list[dict[str, Any]]]
    ) -> None:
        """And every answer fits into what is generated."""
        answers = Counter(row["chosen"][0]["content"] for row in pairs[family])
        assert max(answers.values()) < 0.42 * answers.total()
        tokenizer = build_tokenizer()
        assert max(len(tokenizer(answer)["input_ids"]) for answer in answers) < reasoning.LONGEST_ANSWER

    def test_they_depend_on_the_seed_alone(
        self, pairs: dict[str, list[dict[str, Any]]], tmp_path: Path
    ) -> None:
        assert reasoning.pairs(3) == pairs != reasoning.pairs(4)
        reasoning.write_pairs(tmp_path, pairs)
        assert files.read_jsonl(tmp_path / "gcd.jsonl") == pairs["gcd"]

    def test_seeds_have_problems_in_common_by_chance_alone(
        self, pairs: dict[str, list[dict[str, Any]]]
    ) -> None:
        """As many with the next seed as with one far off: words and small numbers are few."""

        def prompts(rows: list[dict[str, Any]]) -> set[str]:
            return {row["prompt"][0]["content"] for row in rows}

        def shared(seed: int) -> int:
            others = reasoning.pairs(seed)
            return sum(len(prompts(others[family]) & prompts(rows)) for family, rows in pairs.items())

        assert abs(shared(4) - shared(40)) < 0.03 * sum(map(len, pairs.values()))

    def test_the_base_model_has_not_seen_the_pairs(self, pairs: dict[str, list[dict[str, Any]]]) -> None:
        """And it reads every prompt whole."""
        texts = reasoning.base_texts(3)
        prompts = {row["prompt"][0]["content"] for rows in pairs.values() for row in rows}
        assert len(texts) == reasoning.BASE_ROWS * len(reasoning.FAMILIES)
        assert not prompts & {text[0]["content"] for text in texts}
        tokenizer = build_tokenizer()
        assert max(len(tokenizer(prompt)["input_ids"]) for prompt in prompts) + 20 < reasoning.MAX_LENGTH
