"""How many copies of models the pods transfer."""

from typing import Any

from automixalign.config.experiment import parse_experiment
from pipelines.cli.options import load_experiment
from pipelines.dag.transfers import Copies, transfers_of
from tests.pipeline.compiled import EXPERIMENTS, KUBEFLOW, with_transfers

Row = tuple[int, Copies, Copies]


def rows(experiment: Any) -> dict[str, Row]:
    return {each.title: (each.runs, each.downloads, each.uploads) for each in transfers_of(experiment)}


def models(runs: int, downloaded: int, uploaded: int = 0) -> Row:
    return runs, Copies(downloaded), Copies(uploaded)


def test_full_fine_tuning_downloads_each_model_only_where_its_weights_are_read() -> None:
    tasks = ["helpful=org/a", "harmless=org/b", "reasoning=org/c"]
    sets = ["methods=[standard, uniform, ama-r, ama-s]", "merges=[linear, ties]"]
    measured = rows(load_experiment("zephyr-7b", tasks=tasks, sets=sets))
    assert measured == {
        "validate_config": models(1, 0),
        "prepare_base_model": models(1, 0, 1),
        "prepare_data": models(1, 0),
        "reference_logps": models(1, 1),
        "evaluate": models(1, 0),
        "train_specialist (specialists)": models(3, 3, 3),
        "evaluate (specialists)": models(3, 3),
        "specialist_losses (specialists)": models(3, 0),
        "gather_specialists": models(1, 3, 3),
        "train_generalist (generalists)": models(4, 4, 4),
        "evaluate (generalists)": models(4, 4),
        "merge_specialists (merges)": models(2, 2 * (1 + 3), 2),
        "evaluate (merges)": models(2, 2),
        "compare": models(1, 0),
    }
    assert sum(downloads.models for _, downloads, _ in measured.values()) == 28


def test_adapters_come_with_their_base_model_and_what_starts_from_a_merge_is_full() -> None:
    changes = {
        "base_model": "org/base",
        "training": EXPERIMENTS["lora"].training.model_dump(),
        "evaluation": {"judge": {"base_url": "https://judge.example/v1", "model": "judge"}},
    }
    data = EXPERIMENTS["every-part"].model_dump(mode="json") | changes
    measured = rows(parse_experiment(data, "test"))
    assert measured["evaluate"] == models(1, 1), "it answers prompts"
    assert measured["benchmark"] == models(1, 1)
    assert measured["train_specialist (specialists)"] == (2, Copies(2), Copies(0, 2))
    assert measured["evaluate (specialists)"] == (2, Copies(2, 2), Copies())
    assert measured["gather_specialists"] == (1, Copies(0, 2), Copies(0, 2))
    assert measured["benchmark (generalists)"] == (1, Copies(1, 1), Copies())
    assert measured["gather_merges"] == models(1, 2, 1)
    assert measured["train_generalist (warm_generalists)"] == models(1, 2, 1)
    assert measured["evaluate (warm_generalists)"] == models(1, 1)
    assert measured["publish"] == (1, Copies(4, 1), Copies())


def test_adapters_of_a_base_model_without_an_address_are_full_models() -> None:
    measured = rows(EXPERIMENTS["lora"])
    assert measured["train_specialist (specialists)"] == models(2, 2, 2)


def test_the_page_has_the_present_table() -> None:
    page = KUBEFLOW.read_text()
    assert page == with_transfers(page), "run `make compile`"
