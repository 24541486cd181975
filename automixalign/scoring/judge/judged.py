"""Generated answers with what the judge says of them."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from automixalign.config.evaluation import JudgeSpec
from automixalign.data.pairs import answer_text, text_of
from automixalign.scoring.caches import GENERATIONS
from automixalign.scoring.generation import Prompt
from automixalign.scoring.judge.client import Judge
from automixalign.scoring.judge.verdicts import Verdict, score
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.system.errors import CacheError, ConfigError

_OUTCOMES = {1.0: "win", 0.5: "tie", 0.0: "loss"}


def read_baseline(evaluation: Path) -> dict[tuple[str, str, int], str]:
    """The answers of an evaluated model by task, pair and sample."""
    rows = files.read_jsonl(evaluation / GENERATIONS)
    return {(row["task"], row["pair_id"], row["sample"]): row["output"] for row in rows}


def judge_answers(
    spec: JudgeSpec,
    task: str,
    prompts: Sequence[Prompt],
    answers: Sequence[dict[str, Any]],
    baseline: Mapping[tuple[str, str, int], str] | None,
) -> None:
    """Compare each answer with the baseline's, in both orders, and add the outcome to it.

    `win` is 1 if the judge prefers the model's answer in both orders, 0 if it prefers the baseline's in both,
    and else 0.5, a tie. `judge` has the `baseline`'s answer, and two `verdicts` on the model with their
    `reasons`: `win`, `tie`, `loss`, or null if the reply holds none. In the first, the model's answer is first.

    Args:
        spec: the judge.
        task: the task.
        prompts: of the answers.
        answers: as `answer_rows` returns them.
        baseline: as `read_baseline` returns it; None for the chosen answers of the rows.

    Raises:
        CacheError: the baseline lacks an answer.
        ConfigError: no reply holds a verdict, or the endpoint refuses the requests.
        UnreachableError: the endpoint does not answer.
    """
    by_pair = {prompt.pair_id: prompt for prompt in prompts}
    others = [_other(task, by_pair[answer["pair_id"]], answer, baseline) for answer in answers]
    judge = Judge(spec)

    def compare(request: tuple[dict[str, Any], str, bool]) -> Verdict:
        answer, other, swapped = request
        sides = (other, answer["output"]) if swapped else (answer["output"], other)
        return judge.compare(text_of(by_pair[answer["pair_id"]].prompt), *sides)

    requests = [(*pair, swapped) for pair in zip(answers, others, strict=True) for swapped in (False, True)]
    with ThreadPoolExecutor(spec.requests) as pool:
        try:
            verdicts = list(current_step().track(pool.map(compare, requests), len(requests)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    unread = [verdict for verdict in verdicts if verdict.winner is None]
    if unread and len(unread) == len(verdicts):
        raise ConfigError(
            f"task {task}: no reply of the judge {spec.model} at {spec.base_url} holds a verdict; the first is "
            f"{unread[0].reason!r:.200}; change evaluation.judge"
        )
    if unread:
        current_step().warn(
            f"task {task}: {len(unread)} of {len(verdicts)} replies of the judge hold no verdict, and count as "
            "ties"
        )
    for number, answer in enumerate(answers):
        first, second = verdicts[2 * number : 2 * number + 2]
        answer["win"] = score(first, second)
        answer["judge"] = {
            "baseline": others[number],
            "verdicts": [_outcome(first), _outcome(second, swapped=True)],
            "reasons": [first.reason, second.reason],
        }


def _other(
    task: str,
    prompt: Prompt,
    answer: Mapping[str, Any],
    baseline: Mapping[tuple[str, str, int], str] | None,
) -> str:
    if baseline is None:
        return answer_text(prompt.chosen)
    try:
        return baseline[task, prompt.pair_id, answer["sample"]]
    except KeyError:
        raise CacheError(
            f"the baseline's evaluation has no answer {answer['sample']} to pair {prompt.pair_id} of task "
            f"{task}; evaluate it again"
        ) from None


def _outcome(verdict: Verdict, swapped: bool = False) -> str | None:
    """The verdict on the model's answer."""
    if verdict.winner is None:
        return None
    won = {"first": 1.0, "second": 0.0, "tie": 0.5}[verdict.winner]
    return _OUTCOMES[1 - won if swapped else won]
