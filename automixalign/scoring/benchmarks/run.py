"""The stage `benchmark`: one model's results on benchmarks of lm-evaluation-harness.

The model is loaded as `evaluate` loads it, so what is measured is what a run hands on. No code that the model
writes is run.
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from automixalign.config.evaluation import BenchmarkSettings, BenchmarkSpec
from automixalign.models.load import load_model, load_tokenizer, position_limit, uses_bf16
from automixalign.models.rope import depends_on_length
from automixalign.scoring.benchmarks.results import RESULTS, SAMPLES, STDERR
from automixalign.scoring.benchmarks.tasks import PACKAGE, load_benchmark, version
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.system.errors import ConfigError, DataError
from automixalign.system.shortages import is_full_disk_error

_CUT = "runcat"
"""In lm-evaluation-harness's warnings about a prompt that is too long: `truncating`, `Left truncation`."""


def run_benchmarks(
    settings: BenchmarkSettings,
    name: str,
    family: str,
    tokenizer: Path,
    model: Path,
    output: Path,
    base_model: Path | None = None,
) -> dict[str, Any]:
    """Write the results of every benchmark, `results.json`, and each example with the model's answers.

    Args:
        settings: the benchmarks, batch size and precision.
        name: the model's name in the leaderboard.
        family: `reference`, `generalist` or `merge`.
        tokenizer: folder with the tokenizer of all models.
        model: the model to measure.
        output: folder to write: `results.json`, and `samples/TASK.jsonl`.
        base_model: the model under a LoRA adapter.

    Returns:
        The content of `results.json`. Each of `benchmarks` has its `metrics`: metric -> value, and
        `METRIC_stderr` -> standard error. The metric that heads the column comes first.

    Raises:
        ConfigError: a benchmark cannot run, or has no such metric.
        DataError: a benchmark's data or code cannot be loaded, or it fails.
        ModelError: the model cannot be loaded.
    """
    from lm_eval.models.huggingface import HFLM

    policy = load_model(model, base_model, settings.loading.of(family), settings.precision)
    encoder = load_tokenizer(tokenizer)
    harness = HFLM(
        pretrained=policy,
        backend="causal",
        tokenizer=encoder,
        # Where positions depend on a row's length, padding would change the numbers of a row.
        batch_size=1 if depends_on_length(policy.config) else settings.batch_size,
        max_length=position_limit(policy.config),
        mixed_precision_dtype="bfloat16" if uses_bf16(settings.precision) else None,
    )
    results: dict[str, Any] = {"model": name, "family": family, PACKAGE: version(), "seed": settings.seed}
    results["benchmarks"] = {}
    step = current_step()
    step.record.add_params({"model": name, "family": family, PACKAGE: version()})
    with files.replacing(output) as folder:
        for number, spec in enumerate(step.track(settings.benchmarks, len(settings.benchmarks))):
            template = spec.apply_chat_template
            use_template = encoder.chat_template is not None if template is None else template
            if use_template and encoder.chat_template is None:
                raise ConfigError(
                    f"benchmarks.{number}.apply_chat_template: the base model has no chat template"
                )
            measured = _measure(number, spec, harness, settings.seed, use_template)
            for task, examples in measured.pop("samples").items():
                lines = [json.dumps(each, ensure_ascii=False, default=str) + "\n" for each in examples]
                files.write_text(folder / SAMPLES / f"{task}.jsonl", "".join(lines))
            results["benchmarks"][spec.name] = _facts(number, spec, measured) | {"chat_template": use_template}
        files.write_json(folder / RESULTS, results)
    for benchmark, facts in results["benchmarks"].items():
        # MLflow allows no comma in a name.
        step.record.add_metrics({benchmark: {key.replace(",", "/"): v for key, v in facts["metrics"].items()}})
        step.record.add_params({benchmark: {key: facts[key] for key in ("versions", "num_fewshot", "samples")}})
    return results


def _measure(number: int, spec: BenchmarkSpec, harness: Any, seed: int, use_template: bool) -> dict[str, Any]:
    """The results of one benchmark, as lm-evaluation-harness returns them."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    task = load_benchmark(number, spec)
    try:
        with _reporting_cuts(f"benchmarks.{number}: {spec.name}"):
            measured: dict[str, Any] = simple_evaluate(
                model=harness,
                tasks=[task],
                task_manager=TaskManager(include_defaults=False),
                num_fewshot=spec.num_fewshot,
                limit=spec.limit,
                apply_chat_template=use_template,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
                confirm_run_unsafe_code=False,
            )
    except Exception as error:
        if is_full_disk_error(error):
            raise
        raise DataError(f"benchmarks.{number}: {spec.name} failed: {type(error).__name__}: {error}") from error
    return measured


def _facts(number: int, spec: BenchmarkSpec, measured: Mapping[str, Any]) -> dict[str, Any]:
    """What `results.json` says of a benchmark."""
    tasks = {task: _metrics(values) for task, values in measured["results"].items()}
    name = spec.task if spec.task in tasks else next(iter(tasks))
    metrics = tasks.pop(name)
    first = spec.metric or next(iter(metrics), None)
    if first not in metrics:
        known = ", ".join(key for key in metrics if not key.endswith(STDERR)) or "none that is a number"
        raise ConfigError(f"benchmarks.{number}.metric: {spec.name} has no metric {first}; there are: {known}")
    return {
        "task": name,
        "metrics": {first: metrics[first], **metrics},
        "tasks": tasks,
        "higher_is_better": measured["higher_is_better"].get(name, {}),
        "versions": measured["versions"],
        "num_fewshot": measured["n-shot"],
        "samples": {task: counts["effective"] for task, counts in measured["n-samples"].items()},
        "limit": spec.limit,
    }


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a task, by `METRIC` or `METRIC,FILTER`, with `_stderr` at the end of a name."""
    metrics = {}
    for key, value in values.items():
        metric, _, filter_ = key.partition(",")
        if filter_ and isinstance(value, int | float) and math.isfinite(value):
            base = metric.removesuffix(STDERR)
            name = base if filter_ == "none" else f"{base},{filter_}"
            metrics[name + metric.removeprefix(base)] = float(value)
    return metrics


class _Cuts(logging.Handler):
    """Counts the warnings of prompts that are cut."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += _CUT in record.getMessage()


@contextmanager
def _reporting_cuts(title: str) -> Iterator[None]:
    """Warn of prompts that lm-evaluation-harness cuts, because it only logs them."""
    logger, cuts = logging.getLogger(PACKAGE), _Cuts()
    logger.addHandler(cuts)
    try:
        yield
    finally:
        logger.removeHandler(cuts)
    if cuts.count:
        current_step().warn(
            f"{title}: lm-evaluation-harness cut prompts from the left, because they are longer than the model "
            f"accepts ({cuts.count} warnings in the log); lower num_fewshot"
        )
