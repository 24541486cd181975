"""The judge: what it is asked, what its replies count as, and what becomes of an endpoint that fails."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from werkzeug import Response

from automixalign.config.evaluation import EvaluationSettings, EvaluationSpec, JudgeSpec
from automixalign.config.experiment import parse_experiment
from automixalign.scoring.caches import GENERATIONS, SUMMARY
from automixalign.scoring.evaluate import evaluate
from automixalign.scoring.generation import Prompt
from automixalign.scoring.judge import client
from automixalign.scoring.judge.client import Judge
from automixalign.scoring.judge.judged import judge_answers
from automixalign.scoring.judge.verdicts import PROMPT, Verdict, question, read, score
from automixalign.steps.step import collect_warnings
from automixalign.storage import files
from automixalign.system.errors import CacheError, ConfigError, UnreachableError
from benchmarks import tiny
from tests.scoring.judge_stub import KEY, Stub, completion, error, judge_stub

SHORT = "{prompt}|{first}|{second}"
PROMPTS = [Prompt(str(n), (), f"p{n}", f"chosen {n}", None, {}) for n in range(3)]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(client.KEY, f"{KEY}\n")


def spec(stub: Stub, **keys: Any) -> JudgeSpec:
    return JudgeSpec(**{"base_url": stub.url, "model": "judge", "prompt": SHORT, "retries": 0} | keys)


def answers(*outputs: str) -> list[dict[str, Any]]:
    return [{"pair_id": str(n), "sample": 0, "output": output} for n, output in enumerate(outputs)]


def longest(content: str) -> str:
    """Prefers the longer answer."""
    _, first, second = content.split("|")
    winner = "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
    return json.dumps({"reason": f"{winner} is longer", "winner": winner})


@pytest.mark.parametrize(
    ("reply", "winner"),
    [
        ('{"reason": "r", "winner": "A"}', "first"),
        ('{"winner": "b", "confidence": 0.9}', "second"),
        ('```json\n{"reason": "{", "winner": "Tie"}\n```', "tie"),
        ('<think>{"winner": "A"} or so</think>\nMy verdict: {"winner": "B"} Bye.', "second"),
        ('<think>{"winner": "A"', None),
        ('{"criteria": {"winner": "A"}, "winner": "B"}', "second"),
        ("Both are good, but [[A]]", "first"),
        ("[[C]]", "tie"),
        ("**Winner:** B", "second"),
        ("b.", "second"),
        ("Verdict: Answer A\n\nIt is correct.", "first"),
        ("{'Winner': 'answer_b'}", "second"),
        ('{"reason": "it says "no"", "winner": "A"}', "first"),
        ('{"VERDICT": "(B)"}', "second"),
        ('Perhaps {"winner": "A"}\n</think>\n\nB', "second"),
        ("The winner is a matter of taste", None),
        ("A better answer is hard to find", None),
        ('{"winner": "both"}', None),
        ('{"winner": ["A", "B"]}', None),
        ("", None),
        ("{" * 10_000, None),
    ],
)
def test_verdicts_of_any_make(reply: str, winner: str | None) -> None:
    assert read(reply).winner == winner


def test_an_answer_cannot_change_the_question() -> None:
    assert question(SHORT, "{first}", "{second}", "{prompt}") == "{first}|{second}|{prompt}"
    assert question(PROMPT, "p", "one", "two").count("one") == PROMPT.count("one") + 1


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        ("first", "second", 1),
        ("second", "first", 0),
        ("tie", "tie", 0.5),
        ("first", "first", 0.5),
        ("first", "tie", 0.5),
        (None, "second", 0.5),
        ("second", None, 0.5),
    ],
)
def test_orders_that_disagree_are_a_tie(first: Any, second: Any, value: float) -> None:
    assert score(Verdict(first, ""), Verdict(second, "")) == value


def test_each_answer_is_compared_in_both_orders() -> None:
    made = answers("longest of all", "short", "")
    with judge_stub(longest) as stub:
        judge_answers(spec(stub), "t", PROMPTS, made, None)
    assert [each["win"] for each in made] == [1, 0, 0]
    assert made[0]["judge"] == {
        "baseline": "chosen 0",
        "verdicts": ["win", "win"],
        "reasons": ["A is longer", "B is longer"],
    }
    asked = sorted(request["messages"][0]["content"] for request in stub.requests)
    assert asked[:2] == ["p0|chosen 0|longest of all", "p0|longest of all|chosen 0"]
    (request,) = [each for each in stub.requests if each["messages"][0]["content"] == asked[0]]
    assert request == {
        "model": "judge",
        "messages": [{"role": "user", "content": asked[0]}],
        "temperature": 0.0,
        "max_tokens": 1024,
    }


def test_a_judge_that_prefers_a_position_only_ties() -> None:
    made = answers("a", "b", "c")
    with judge_stub(lambda content: "[[A]]") as stub:
        judge_answers(spec(stub, temperature=None, max_tokens=None), "t", PROMPTS, made, None)
    assert [each["win"] for each in made] == [0.5] * 3
    assert made[0]["judge"]["verdicts"] == ["win", "loss"]
    assert stub.requests[0].keys() == {"model", "messages"}


def test_the_baseline_is_an_evaluation() -> None:
    made = answers("four", "x")
    with judge_stub(longest) as stub:
        judge_answers(spec(stub), "t", PROMPTS, made, {("t", "0", 0): "4", ("t", "1", 0): "yy"})
        with pytest.raises(CacheError, match="has no answer 0 to pair 1 of task t; evaluate it again"):
            judge_answers(spec(stub), "t", PROMPTS, made, {("t", "0", 0): "4"})
    assert [each["win"] for each in made] == [1, 0]


def test_replies_without_a_verdict_are_ties_and_counted() -> None:
    """Also a request that the endpoint refuses, such as one that is too long."""

    def reply(content: str) -> Any:
        return error(400, "too long") if "p1" in content else "no idea" if "p2" in content else longest(content)

    made = answers("longest of all", "b", "c")
    with judge_stub(reply) as stub, collect_warnings() as warnings:
        judge_answers(spec(stub), "t", PROMPTS, made, None)
    assert [each["win"] for each in made] == [1, 0.5, 0.5]
    assert made[1]["judge"]["verdicts"] == [None, None]
    assert "too long" in made[1]["judge"]["reasons"][0]
    assert warnings == ["task t: 4 of 6 replies of the judge hold no verdict, and count as ties"]


def test_no_verdict_at_all_is_an_error() -> None:
    with (
        judge_stub(lambda content: "I am a parrot") as stub,
        pytest.raises(
            ConfigError, match=r"no reply of the judge judge at \S+/v1 holds a verdict; .*'I am a parrot'"
        ),
    ):
        judge_answers(spec(stub), "t", PROMPTS, answers("a"), None)


@pytest.mark.parametrize(
    ("response", "winner"),
    [
        (completion('{"winner": "A"}') | {"service": {"name": "other"}, "usage": None}, "first"),
        ({"choices": [{"message": {"content": "[[B]]"}, "finish_reason": "eos"}]}, "second"),
        ({"choices": [{"message": {"content": [{"type": "text", "text": "[[A]]"}]}}]}, "first"),
        (
            {"choices": [{"message": {"content": None, "reasoning_content": "A"}, "finish_reason": "length"}]},
            None,
        ),
        ({"choices": []}, None),
        ({"choices": [{"text": "[[A]]"}]}, None),
        ({"choices": [{"message": {"content": {"winner": "A"}}}]}, None),
        (Response("[1]", mimetype="application/json"), None),
        (Response('{"choices": [', mimetype="application/json"), None),
        (Response("<html>Log in</html>", mimetype="text/html"), None),
    ],
)
def test_servers_of_other_makes(response: Any, winner: str | None) -> None:
    with judge_stub(lambda content: response) as stub:
        assert Judge(spec(stub)).compare("p", "a", "b").winner == winner


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (Response("<html>Log in</html>", mimetype="text/html"), "this is no chat completion: <html>Log in"),
        ({"choices": [{"message": {"content": None}, "finish_reason": "length"}]}, "finish_reason is 'length'"),
        ("I am a parrot", "'I am a parrot'"),
        (error(400, "no such parameter"), "the endpoint refuses the request: .*no such parameter"),
    ],
)
def test_an_endpoint_without_verdicts_is_refused_before_any_work(response: Any, reason: str) -> None:
    with (
        judge_stub(lambda content: response) as stub,
        pytest.raises(ConfigError, match=f"gives no verdict on a trial question: .*{reason}"),
    ):
        Judge(spec(stub)).check()


def test_an_overloaded_endpoint_is_asked_again() -> None:
    replies = iter([error(429, "slow down", **{"Retry-After": "0.01"}), error(503, "busy"), "[[A]]"])
    with judge_stub(lambda content: next(replies)) as stub:
        assert Judge(spec(stub, retries=2)).compare("p", "a", "b").winner == "first"
    assert len(stub.requests) == 3


@pytest.mark.parametrize(
    ("response", "kind", "message"),
    [
        (error(503, "busy"), UnreachableError, "answers 503: .*busy.*; try again later"),
        (
            error(404, f"no model; {KEY}"),
            ConfigError,
            r"answers 404: .*no model; \*\*\*.*; check evaluation.judge",
        ),
    ],
)
def test_an_endpoint_that_fails_is_named(response: Any, kind: type[Exception], message: str) -> None:
    with judge_stub(lambda content: response) as stub:
        with pytest.raises(kind, match=rf"the judge at {re.escape(stub.url)} {message}") as failure:
            judge_answers(spec(stub), "t", PROMPTS, answers("a", "b"), None)
        with pytest.raises(kind):
            Judge(spec(stub)).check()
    assert KEY not in str(failure.value)


def test_a_wrong_key_and_a_silent_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    with judge_stub(longest) as stub:
        Judge(spec(stub)).check()
        monkeypatch.setenv(client.KEY, "sk-other")
        with pytest.raises(
            ConfigError, match=r"401: .*provided: Bearer \*\*\*.*check the key in OPENAI_API_KEY"
        ):
            Judge(spec(stub)).check()
    with pytest.raises(
        UnreachableError, match=rf"the judge at {re.escape(stub.url)} does not answer: .*refused"
    ):
        Judge(spec(stub)).check()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"base_url": "localhost:8000"}, "must be an address such as"),
        ({"base_url": "https://user:key@host/v1"}, "the key comes from the variable OPENAI_API_KEY"),
        ({"prompt": "{prompt} {first}"}, "must contain {second}"),
        ({"api_key": "sk"}, "Extra inputs are not permitted"),
    ],
)
def test_an_impossible_judge_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JudgeSpec.model_validate({"base_url": "https://host/v1", "model": "judge"} | keys)
    with pytest.raises(ValueError, match="set 'generate: true'"):
        EvaluationSpec(generate=False, judge=JudgeSpec(base_url="https://host/v1", model="judge"))


def test_an_evaluation_is_judged_against_that_of_the_reference(tmp_path: Path) -> None:
    """Every task is judged; none needs a verifier. The reference is its own baseline."""
    world = tiny.world()
    with judge_stub(longest) as stub:
        settings = EvaluationSettings.model_validate(
            {
                "seed": 0,
                "evaluation": {"max_new_tokens": 4, "max_prompts": 2, "judge": spec(stub).model_dump()},
                "loss": parse_experiment(tiny.experiment(), "the test").training.loss.model_dump(),
                "verifiers": {},
            }
        )
        for name, baseline in (("reference", None), ("m", tmp_path / "reference")):
            inputs = (world.data, world.reference_logps, world.base_model, world.base_model)
            family = "reference" if baseline is None else "merge"
            evaluate(settings, name, family, *inputs, tmp_path / name, baseline=baseline)
    assert len(stub.requests) == 2 * 2 * 2
    reference, model = (files.read_json(tmp_path / name / SUMMARY)["tasks"] for name in ("reference", "m"))
    assert {task: "win_rate" in measured for task, measured in reference.items()} == dict.fromkeys(model, False)
    assert [measured["win_rate"] for measured in model.values()] == [0.5, 0.5], "the same answers"
    (row, *_) = files.read_jsonl(tmp_path / "m" / GENERATIONS)
    assert row["judge"]["baseline"] == row["output"]
    assert (row["passed"], row["win"]) == (None, 0.5)
