"""The specialist's loss of every pair of its task, which the excess is measured against."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def specialist_losses(
    settings: str,
    task_name: str,
    data: Input[Dataset],
    reference_logps: Input[Dataset],
    scores: Input[Dataset],
    evaluation: Input[Dataset],
    losses: Output[Dataset],
    base_model: Input[Model] = None,  # kfp's form of an optional
) -> None:
    """Cache the loss of each pair of a task under its specialist, keyed by pair id.

    Args:
        settings: `SpecialistLossesSettings` as JSON.
        task_name: the task.
        data: the prepared splits.
        reference_logps: the reference log-probabilities.
        scores: the specialist's scores of its training pairs, from its training.
        evaluation: the specialist's evaluation, which scored the held-out splits.
        losses: folder with `SPLIT.parquet` and a manifest that names its data and model.
        base_model: from which the specialists of cross-fitting start; without cross-fitting, none.
    """
    from pathlib import Path

    from automixalign.config.training import SpecialistLossesSettings
    from automixalign.steps.step import run_step
    from automixalign.training.specialist_losses import write_specialist_losses

    reads = [data, reference_logps, scores, evaluation, *([base_model] if base_model else [])]
    with run_step("specialist_losses", task_name, reads=reads, writes=[losses]):
        manifest = write_specialist_losses(
            settings=SpecialistLossesSettings.model_validate_json(settings),
            task=task_name,
            data=Path(data.path),
            reference_logps=Path(reference_logps.path),
            scores=Path(scores.path),
            evaluation=Path(evaluation.path),
            output=Path(losses.path),
            base_model=Path(base_model.path) if base_model else None,
        )
        losses.metadata.update(manifest, run_path=f"specialist_losses/{task_name}")
