"""Model cards: what they say, and what they must not say."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from automixalign.config.experiment import parse_experiment
from automixalign.data.store import read_card
from automixalign.models.base_address import BaseAddress
from automixalign.release.model_card import RunFacts, model_card, write_model_card
from automixalign.report import leaderboard
from automixalign.report.runs import Run
from automixalign.storage import files
from automixalign.system.errors import ConfigError

COMMIT = "a" * 40


@pytest.fixture(scope="module")
def facts(finished_run: Path) -> RunFacts:
    return RunFacts.of_run(Run.read(finished_run))


def test_a_card_states_method_data_and_results(facts: RunFacts, tmp_path: Path) -> None:
    text = write_model_card(tmp_path, facts, "uniform").read_text()
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert {"automixalign", "generalist", "uniform"} <= set(card.data.tags)
    assert {result.metric_type for result in card.data.eval_results} == {
        "gap",
        "excess",
        "accuracy",
        "pass_rate",
        "loss",
        "margin",
    }
    for row in ("mixing method | uniform", "`beta` | 0.1", "`steps` | 3", "LoRA rank | 2", "`seed` | 3"):
        assert f"| {row} |" in text
    for task in read_card(facts.data)["tasks"]:
        row = rf"\| {task['name']} \| `synthetic:{task['name']}` \| 30 \| .* \| `{task['digest'][:16]}` \|"
        assert re.search(row, text)
    assert f"commit `{'c' * 40}`" in text
    assert "One run with one seed (3)" in text


def test_a_card_compares_with_reference_and_uniform_on_each_task(facts: RunFacts) -> None:
    text = str(model_card(facts, "linear"))
    measured = facts.entry("linear")["tasks"]["format"]
    number = r"-?\d\.\d{3} \[-?\d\.\d{3}, -?\d\.\d{3}\]"
    assert re.search(r"\| format \| uniform " + rf"\| {number} " * 6 + r"\| .* \|", text)
    assert f"| format | linear | {measured['gap']:.3f} [" in text
    # the merge of this run is the base model itself
    losses, no_accuracy = rf"\| {number} " * 2, rf"\| {leaderboard.NOT_MEASURED} "
    assert re.search(rf"\| format \| reference {losses}{no_accuracy}\| {number} \|", text)
    assert re.search(r"\| format \| linear .*\| [+-]\d\.\d{3} \[.*\] \|", text), "less that of uniform"
    assert "| refusal | uniform |" in text


def test_a_card_names_the_start_of_a_generalist_and_the_tuned_weights_of_a_merge(facts: RunFacts) -> None:
    (merge,), method = facts.experiment.merges, facts.experiment.methods[0]
    changes = {
        "merges": [merge.model_copy(update={"weights": "tuned"})],
        "methods": [method.model_copy(update={"init": merge.name})],
    }
    tries = [{"weights": {"format": 0.25}, "worst_gap": 0.1}, {"weights": {"format": 4.0}, "worst_gap": 0.2}]
    tuned = replace(
        facts,
        experiment=facts.experiment.model_copy(update=changes),
        tunings={merge.name: {"tries": tries}},
    )
    assert "| weight of format | 0.25 |" in str(model_card(tuned, merge.name))
    assert f"| starts from | the merge {merge.name} |" in str(model_card(tuned, method.name))


def test_a_card_of_an_earlier_run_has_no_intervals(facts: RunFacts) -> None:
    entries = [{**entry, "intervals": {}} for entry in facts.entries]
    text = str(model_card(replace(facts, entries=entries), "uniform"))
    assert "intervals" not in text
    assert f"| format | uniform | {facts.entry('uniform')['tasks']['format']['gap']:.3f} |" in text


def test_the_base_model_of_the_hub_and_its_licence_are_in_the_front_matter(
    facts: RunFacts, tmp_path: Path
) -> None:
    files.link(facts.base_model, tmp_path / "base")
    BaseAddress("org/base", COMMIT).write(tmp_path / "base")
    licence = "license: other\nlicense_name: gemma\nlicense_link: https://example.org"
    (tmp_path / "base" / "README.md").write_text(f"---\n{licence}\n---\n")
    card = model_card(replace(facts, base_model=tmp_path / "base"), "uniform", "adapter", "org/mine")
    assert (card.data.base_model, card.data.license, card.data.license_name) == ("org/base", "other", "gemma")
    assert card.data.library_name == "peft"
    assert f"`org/base`, commit `{COMMIT}`" in card.text
    assert 'name = "org/mine"' in card.text


def test_html_in_a_licence_is_shown_as_text(facts: RunFacts, tmp_path: Path) -> None:
    files.link(facts.base_model, tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text('---\nlicense_name: "mine` <script>"\n---\n')
    text = model_card(replace(facts, base_model=tmp_path / "base"), "uniform").text
    assert "Licence of the base model: `mine' <script>`." in text


def test_a_card_says_whether_the_run_chose_the_model(facts: RunFacts) -> None:
    chosen = leaderboard.chosen(facts.entries)
    assert chosen is not None
    (other,) = {"uniform", "linear"} - {chosen["model"]}
    sentence = f"The run has 2 generalists and merges. {leaderboard.choice(facts.entries)}"
    assert sentence in str(model_card(facts, chosen["model"]))
    assert "did not choose" not in str(model_card(facts, chosen["model"]))
    assert f"{sentence} This card is of {other}, which the run did not choose." in str(model_card(facts, other))


def test_a_card_names_the_step_whose_weights_were_kept(facts: RunFacts) -> None:
    sentence = "The weights are those of step 2 of its training, which had the smallest gap on the worst task"
    assert sentence not in str(model_card(facts, "uniform"))
    training = facts.experiment.training.model_copy(update={"validate_every": 1, "keep": "best"})
    experiment = facts.experiment.model_copy(update={"training": training})
    # KFP's server makes every number of an artifact's metadata a float.
    kept = replace(facts, experiment=experiment, costs={"uniform": {"steps": 3.0, "kept_step": 2.0}})
    assert sentence in str(model_card(kept, "uniform"))


def test_an_unknown_licence_is_not_guessed(facts: RunFacts) -> None:
    card = model_card(facts, "uniform")
    assert card.data.get("license") is None
    assert card.data.get("base_model") is None
    assert "unknown, because no card of it names one" in card.text


def test_data_sets_of_the_hub_are_named_and_paths_of_this_machine_are_not(
    facts: RunFacts, tmp_path: Path
) -> None:
    data: dict[str, Any] = read_card(facts.data)
    data["tasks"][0]["sources"][0] |= {"path": "org/pairs", "commit": COMMIT}
    data["tasks"][1]["sources"][0] |= {"path": "/home/someone/secret/rows.jsonl", "commit": None}
    files.write_json(tmp_path / "card.json", data)
    base_model = facts.experiment.base_model.model_copy(update={"source": "/home/someone/secret/base"})
    experiment = facts.experiment.model_copy(update={"base_model": base_model})
    card = model_card(replace(facts, experiment=experiment, data=tmp_path), "uniform")
    assert card.data.datasets == ["org/pairs"]
    assert card.data.eval_results[0].dataset_type == "org/pairs"
    assert f"`org/pairs` at `{COMMIT[:12]}`" in card.text
    assert "`rows.jsonl`" in card.text
    assert "`base`, which is not on the model hub" in card.text
    assert "secret" not in str(card)


def test_an_unknown_model_is_refused_with_those_there_are(facts: RunFacts) -> None:
    with pytest.raises(ConfigError, match=r"ama-x: the run has no such model; it has: reference, .*, linear"):
        model_card(facts, "ama-x")


@pytest.mark.slow
def test_the_snippet_of_a_card_runs(facts: RunFacts, finished_run: Path, tmp_path: Path) -> None:
    """In a new process without this project, beside the folder of the model."""
    files.link(finished_run / "models" / "linear", tmp_path / "linear")
    card = write_model_card(tmp_path / "linear", facts, "linear").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True, capture_output=True)


def test_a_card_says_that_its_numbers_are_of_a_quantised_base(facts: RunFacts) -> None:
    data = facts.experiment.model_dump(mode="json")
    data["training"] |= {"lora": {"quantize": "4bit", "dora": True}, "warmup": 0.1}
    quantized = replace(facts, experiment=parse_experiment(data, "test"))
    text = str(model_card(quantized, "uniform", "adapter"))
    assert "measured with the base model in 4bit" in text
    assert "| LoRA variant | DoRA |" in text
    assert "10% of the steps warm up" in text
    assert "compared with had theirs in 4bit" in str(model_card(quantized, "linear"))
