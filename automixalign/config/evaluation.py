"""Scoring: its sections of an experiment, and the settings of `reference_logps`, `evaluate` and `benchmark`."""

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from automixalign.config.data import VerifierSpec
from automixalign.config.settings import Loading, Precision, Settings, is_task_file, shorthand
from automixalign.method.losses import Loss
from automixalign.system.schema import Count, Flag, Natural, NonNegative, PositiveFraction, Schema, Text

CHOSEN = "chosen"


def _check_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an address such as https://api.openai.com/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must be an address alone; the key comes from the variable OPENAI_API_KEY")
    return text


def _check_prompt(text: str) -> str:
    if missing := [name for name in ("prompt", "first", "second") if f"{{{name}}}" not in text]:
        raise ValueError(f"must contain {{{missing[0]}}}")
    return text


class JudgeSpec(Schema):
    """A language model that compares every model's answers with a baseline's, through an API as OpenAI has it.

    The key of the endpoint comes from the environment variable `OPENAI_API_KEY`, never from the configuration.
    """

    base_url: Annotated[Text, AfterValidator(_check_url)]
    """The address of the API, such as `https://api.openai.com/v1` or `http://localhost:8000/v1`."""
    model: Text
    """The name of the judge at the endpoint."""
    baseline: Literal["reference", "chosen"] = "reference"
    """The answers to compare with: those of the reference model, or the chosen answers of the rows."""
    prompt: Annotated[str, AfterValidator(_check_prompt)] | None = None
    """The question to the judge, with `{prompt}`, `{first}` and `{second}`; docs/data.md has the default."""
    temperature: NonNegative | None = 0.0
    """The judge's temperature; `null` sends none, for models that refuse it."""
    max_tokens: Count | None = 1024
    """The largest number of tokens of a reply, thoughts included; `null` sets no limit."""
    requests: Count = 4
    """Requests at a time."""
    timeout_seconds: Count = 120
    """How long to wait for a reply."""
    retries: Natural = 8
    """How often to repeat a request if the endpoint does not answer, is overloaded or limits the rate. The
    waits grow to 8 seconds, or are what the endpoint asks for."""


class EvaluationSpec(Schema):
    """What is measured on the held-out test split, for every model alike."""

    batch_size: Count = 32
    """Sequences of one forward pass that computes log-probabilities."""
    processes: Annotated[Count, Field(le=256)] = 1
    """Processes on one machine, one for each GPU, that share the batches of `reference_logps` and `evaluate`.
    Their number changes no batch."""
    precision: Precision = "auto"
    """Precision of all scoring: reference log-probabilities, specialist losses, evaluation. `auto`: bf16
    autocast on CUDA that has it, otherwise fp32."""
    generate: Flag = True
    """Whether to generate answers and verify them."""
    max_new_tokens: Count = 64
    """The largest number of tokens of an answer; the default also of `ama chat` and of a registered model."""
    max_prompts: Count | None = None
    """The largest number of test prompts of a task to generate for; by default all."""
    samples: Count = 1
    """Answers to each prompt. With several, `pass_rate` is pass@1, their mean, and `pass_at_k` is the share of
    prompts of which any answer passes."""
    temperature: NonNegative = 0.0
    """0 takes the most likely token. Otherwise tokens are drawn at this temperature. The draws depend on the
    seed, the task, the pair and the number of the sample alone."""
    top_p: PositiveFraction = 1.0
    """Tokens are drawn among the most likely ones that together have this probability."""

    judge: JudgeSpec | None = None
    """Compares answers to the test prompts of every task. `win_rate` is the share that it prefers to the
    baseline's. By default nothing is judged."""

    @property
    def compares_with_reference(self) -> bool:
        """Whether the judge needs the answers of the reference model."""
        return self.judge is not None and self.judge.baseline != CHOSEN

    def answers(self, has_verifier: bool) -> bool:
        """Whether models answer the prompts of a task with or without a verifier."""
        return self.generate and (has_verifier or self.judge is not None)

    @model_validator(mode="after")
    def _check_draws(self) -> Self:
        if self.judge and not self.generate:
            raise ValueError("'judge': it compares generated answers; set 'generate: true'")
        if not self.temperature:
            if self.samples > 1:
                raise ValueError(
                    "'samples': at temperature 0 all answers are equal; set 'temperature', such as 0.8"
                )
            if self.top_p < 1:
                raise ValueError("'top_p': nothing is drawn at temperature 0; set 'temperature', such as 0.8")
        return self


class BenchmarkSpec(Schema):
    """One benchmark of lm-evaluation-harness."""

    task: Text
    """A task or group of lm-evaluation-harness by its name (`toxigen`), or a task of your own: the path of its
    YAML file."""
    metric: Text | None = None
    """The metric that heads the benchmark's column, as lm-evaluation-harness names it: `acc`, or with a filter
    `exact_match,flexible-extract`. By default, the task's first one."""
    num_fewshot: Natural | None = None
    """The number of solved examples before each question. By default, the task decides."""
    limit: Count | None = None
    """Measure only this many examples of each task, the first ones. The numbers are then for a trial only."""
    apply_chat_template: Flag | None = None
    """Whether the chat template renders the prompts. By default, it does if the base model has one."""

    @property
    def is_file(self) -> bool:
        """Whether the task is a file of the user."""
        return is_task_file(self.task)

    @property
    def name(self) -> str:
        """The benchmark in the leaderboard: the name of the task, or of its file."""
        return Path(self.task).stem if self.is_file else self.task


class ScoringSettings(Settings):
    """Of `reference_logps`."""

    batch_size: int
    precision: Precision
    processes: int = 1
    """That share the batches; 1 where the stage has others, or none."""
    loading: Loading = Loading()


class EvaluationSettings(Settings):
    """Of `evaluate`."""

    evaluation: EvaluationSpec
    loading: Loading = Loading()
    loss: Loss
    verifiers: dict[str, Annotated[VerifierSpec, shorthand("name")]]
    """Task -> verifier, for the tasks whose generations can be verified."""

    def answers(self, task: str) -> bool:
        """Whether models answer the prompts of a task."""
        return self.evaluation.answers(task in self.verifiers)


class BenchmarkSettings(Settings):
    """Of `benchmark`."""

    benchmarks: list[BenchmarkSpec]
    batch_size: int
    precision: Precision
    loading: Loading = Loading()
    fingerprint: str
    """The version of lm-evaluation-harness, and the digest of every file of the user's tasks."""
