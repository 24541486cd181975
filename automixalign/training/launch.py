"""Run a training in the processes of this machine, or on several nodes."""

from typing import Any

from automixalign.steps.jobs.launch import run_job
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.training.checkpoints.store import remove_checkpoints
from automixalign.training.job import Training
from automixalign.training.nodes import train_job

_COSTS = (
    "steps",
    "pairs",
    "trained_parameters",
    "seconds",
    "tokens",
    "tokens_per_second",
    "validation_seconds",
    "kept_step",
)


def train(training: Training) -> dict[str, Any]:
    """Train a specialist or a generalist, and record the training in MLflow.

    Returns:
        Steps, pairs, tokens, seconds and machine; with a validation also `kept_step` and `validation_seconds`;
        of a generalist also its method and its last task weights.

    Raises:
        CacheError: a cache is missing, incomplete, or belongs to other data.
        TrainingError: the loss became not finite.
    """
    facts, rows = launch(training), files.read_jsonl(training.trajectory)
    tokens = sum(row["pairs"][task] * (mean or 0) for row in rows for task, mean in row["tokens"].items())
    facts = {**facts, "tokens": round(tokens), "tokens_per_second": round(tokens / max(facts["seconds"], 0.1))}
    record = current_step().record
    record.add_metrics({key: facts[key] for key in _COSTS if key in facts})
    record.add_params({**training.options(), "steps": facts["steps"], "machine": facts["machine"]})
    record.add_curves(training.trajectory)
    record.add_artifact(training.trajectory, "trajectory.jsonl")
    return facts


def launch(training: Training) -> dict[str, Any]:
    """Run a training in `training.processes` processes on each of `training.nodes`.

    Kubeflow Trainer starts several nodes (`nodes/`), and `run_job` the processes of this machine.

    Returns:
        What the training returned in the first process.

    Raises:
        AutoMixAlignError: the error of the process that failed first; a ProcessError if the error came from
            another package. The other processes have ended.
    """
    spec = training.settings.training
    if spec.nodes > 1:
        facts = train_job.run(training)
    else:
        facts, *_ = run_job(training, spec.processes)
        training.finish()
    # Not before: if `finish` fails, the next start of the stage goes on from them.
    remove_checkpoints(facts.pop("checkpoints"))
    return facts
