"""One model on every task's held-out splits."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    settings: str,
    data: Input[Dataset],
    reference_logps: Input[Dataset],
    tokenizer: Input[Artifact],
    evaluation: Output[Dataset],
    model: Input[Model] = None,  # kfp's form of an optional
    base_model: Input[Model] = None,
    baseline: Input[Dataset] = None,
) -> None:
    """Measure DPO loss, reward accuracy, margin, drift and verified or judged generations of one model.

    Args:
        settings: `EvaluationSettings` as JSON.
        data: the prepared splits.
        reference_logps: the reference log-probabilities.
        tokenizer: of all models.
        evaluation: folder with one row for each pair of the test split, the generations and a summary; and the
            same without generations for the validation split, in `validation/`.
        model: the model; its metadata hold its name and family. The reference needs it only to answer prompts.
        base_model: the base of a LoRA model.
        baseline: the evaluation of the base model, if a judge compares with its answers.
    """
    from pathlib import Path

    from automixalign.config.evaluation import EvaluationSettings
    from automixalign.scoring.evaluate import REFERENCE, evaluate
    from automixalign.steps.artifacts import flat
    from automixalign.steps.step import run_step

    facts = model.metadata if model else {"model": REFERENCE, "family": REFERENCE}
    name, family = facts["model"], facts["family"]
    reads = flat(data, reference_logps, tokenizer, model, base_model, baseline)
    with run_step("evaluate", name, reads=reads, writes=[evaluation]):
        summary = evaluate(
            settings=EvaluationSettings.model_validate_json(settings),
            name=name,
            family=family,
            data=Path(data.path),
            reference_logps=Path(reference_logps.path),
            tokenizer=Path(tokenizer.path),
            model=Path(model.path) if model else None,
            output=Path(evaluation.path),
            base_model=Path(base_model.path) if base_model else None,
            baseline=Path(baseline.path) if baseline else None,
        )
        tuning = {key: facts[key] for key in ("tuning",) if key in facts}
        evaluation.metadata.update(summary, **tuning, run_path=f"evaluations/{name}")
