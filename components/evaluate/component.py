"""One model on every task's held-out splits."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    settings: str,
    data: Input[Dataset],
    reference_logps: Input[Dataset],
    base_model: Input[Model],
    evaluation: Output[Dataset],
    model: Input[Model] = None,  # kfp's form of an optional
    baseline: Input[Dataset] = None,
) -> None:
    """Measure DPO loss, reward accuracy, margin, drift and verified or judged generations of one model.

    Args:
        settings: `EvaluationSettings` as JSON.
        data: the prepared splits.
        reference_logps: the reference log-probabilities.
        base_model: the base of a LoRA model.
        evaluation: folder with one row for each pair of the test split, the generations and a summary; and the
            same without generations for the validation split, in `validation/`.
        model: the model; its metadata hold its name and family. Without one, the base model.
        baseline: the evaluation of the base model, if a judge compares with its answers.
    """
    from pathlib import Path

    from automixalign.config.evaluation import EvaluationSettings
    from automixalign.scoring.evaluate import evaluate
    from automixalign.steps.step import run_step

    policy = model or base_model
    name, family = policy.metadata["model"], policy.metadata["family"]
    reads = [data, reference_logps, base_model, policy, *([baseline] if baseline else [])]
    with run_step("evaluate", name, reads=reads, writes=[evaluation]):
        summary = evaluate(
            settings=EvaluationSettings.model_validate_json(settings),
            name=name,
            family=family,
            data=Path(data.path),
            reference_logps=Path(reference_logps.path),
            base_model=Path(base_model.path),
            model=Path(policy.path),
            output=Path(evaluation.path),
            baseline=Path(baseline.path) if baseline else None,
        )
        tuning = {"tuning": policy.metadata["tuning"]} if "tuning" in policy.metadata else {}
        evaluation.metadata.update(summary, **tuning, run_path=f"evaluations/{name}")
