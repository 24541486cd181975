"""Answers to the test prompts: their draws, and what the verifiers make of them."""

from typing import Any, ClassVar

import pytest

from automixalign.config.evaluation import EvaluationSettings
from automixalign.config.experiment import parse_experiment
from automixalign.models.load import load_config
from automixalign.scoring.generation import Answering, answer_rows, decoding, questions, read_prompts, verify
from automixalign.scoring.verifiers import registry
from automixalign.scoring.verifiers.verifier import Generated, Undecided, Verifier
from automixalign.steps.step import collect_warnings
from automixalign.system.errors import ConfigError
from benchmarks import tiny

TASK = "format"


def settings(verifier: str = "exact", seed: int = 0, **evaluation: Any) -> EvaluationSettings:
    loss = parse_experiment(tiny.experiment(), "the test").training.loss
    return EvaluationSettings.model_validate(
        {"seed": seed, "evaluation": evaluation, "loss": loss.model_dump(), "verifiers": {TASK: verifier}}
    )


def answers(given: EvaluationSettings) -> list[dict[str, Any]]:
    world = tiny.world()
    config = load_config(world.base_model)
    prompts = read_prompts(world.data, TASK, "test", config, given.evaluation.max_prompts)
    answering = Answering(
        model=world.base_model,
        tokenizer=world.base_model,
        data=world.data,
        loading=given.loading,
        batch_size=given.evaluation.batch_size,
        precision=given.evaluation.precision,
        pairs=[],
        questions={TASK: questions(given.evaluation, given.seed, TASK, prompts)},
        decoding=decoding(given.evaluation),
    )
    _, made = answering.scores_and_answers(1)
    generated = answer_rows(given.evaluation, TASK, prompts, made[TASK])
    verify(given, TASK, prompts, generated)
    return generated


def test_draws_depend_on_seed_and_sample_and_not_on_the_batch() -> None:
    drawn = {"samples": 3, "temperature": 1.0, "top_p": 0.9, "max_new_tokens": 8}
    together = answers(settings(**drawn, batch_size=7))
    assert together == answers(settings(**drawn, batch_size=1))
    assert together[:6] == answers(settings(**drawn, max_prompts=2))
    assert [each["sample"] for each in together[:4]] == [0, 1, 2, 0]
    assert len({each["output"] for each in together}) > len(together) / 2
    assert together != answers(settings(**drawn, seed=1))


def test_one_answer_is_greedy_by_default() -> None:
    greedy = answers(settings(max_new_tokens=8))
    assert greedy == answers(settings(max_new_tokens=8, temperature=1e-9))
    assert {each["sample"] for each in greedy} == {0}


@pytest.mark.parametrize("evaluation", [{"samples": 2}, {"top_p": 0.5}])
def test_draws_need_a_temperature(evaluation: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="set 'temperature'"):
        settings(**evaluation)


class Odd(Verifier):
    """Cannot decide, or fails, by its class."""

    error: ClassVar[Exception] = Undecided("the moon is full")

    def passes(self, generated: Generated) -> bool:
        assert generated.prompt[-1]["role"] == "user"
        raise self.error


class Broken(Odd):
    """Fails."""

    error = KeyError("day")


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> None:
    verifiers = {**registry.registered_verifiers(), "odd": Odd, "broken": Broken}
    monkeypatch.setattr(registry, "registered_verifiers", lambda: verifiers)


@pytest.mark.usefixtures("register")
def test_undecided_answers_count_as_failed_and_are_counted() -> None:
    with collect_warnings() as warnings:
        made = answers(settings("odd", max_new_tokens=2, max_prompts=3))
    assert [each["passed"] for each in made] == [False] * 3
    assert warnings[-1] == (
        f"task {TASK}: 3 of 3 answers count as failed, because they cannot be verified: the moon is full"
    )


@pytest.mark.usefixtures("register")
def test_a_verifier_that_fails_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"the verifier 'broken' fails on an answer to pair \w+: KeyError: 'day'"
    ):
        answers(settings("broken", max_new_tokens=2))
