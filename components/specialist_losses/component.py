"""The specialist's loss of every pair of its task: what the excess is counted from."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def specialist_losses(
    settings: str,
    task_name: str,
    data: Input[Dataset],
    reference_logps: Input[Dataset],
    base_model: Input[Model],
    model: Input[Model],
    evaluation: Input[Dataset],
    losses: Output[Dataset],
) -> None:
    """Cache the per-example DPO losses of a specialist on its task, keyed by pair id.

    Args:
        settings: `SpecialistLossesSettings` as JSON.
        task_name: the task.
        data: the prepared splits.
        reference_logps: the reference log-probabilities.
        base_model: under a LoRA specialist.
        model: the specialist.
        evaluation: the specialist's, which scored the test split already.
        losses: folder with `SPLIT.parquet` and a manifest of what it belongs to.
    """
    from pathlib import Path

    from automixalign.config.training import SpecialistLossesSettings
    from automixalign.steps.step import run_step
    from automixalign.training.specialist_losses import write_specialist_losses

    reads = [data, reference_logps, base_model, model, evaluation]
    with run_step("specialist_losses", task_name, reads=reads, writes=[losses]):
        manifest = write_specialist_losses(
            SpecialistLossesSettings.model_validate_json(settings),
            task_name,
            Path(data.path),
            Path(reference_logps.path),
            Path(base_model.path),
            Path(model.path),
            Path(evaluation.path),
            Path(losses.path),
        )
        losses.metadata.update(manifest, run_path=f"specialist_losses/{task_name}")
