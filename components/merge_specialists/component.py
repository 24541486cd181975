"""A model made of the specialists' weights, without training."""

from kfp import dsl
from kfp.dsl import Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def merge_specialists(
    settings: str,
    base_model: Input[Model],
    specialists: Input[Model],
    model: Output[Model],
) -> None:
    """Merge the specialists by one of mergekit's methods.

    Args:
        settings: `MergeSettings` as JSON.
        base_model: the model that the specialists started from.
        specialists: folder with full models or LoRA adapters, `TASK/`.
        model: the merged full model.
    """
    from pathlib import Path

    from automixalign.config.merges import MergeSettings
    from automixalign.merging.merge import merge_specialists
    from automixalign.steps.step import run_step

    checked = MergeSettings.model_validate_json(settings)
    with run_step("merge_specialists", checked.name, reads=[base_model, specialists], writes=[model]):
        facts = merge_specialists(
            base=Path(base_model.path),
            specialists={task: Path(specialists.path) / task for task in checked.tasks},
            method=checked.merge.method,
            parameters=checked.merge.parameters,
            output=Path(model.path),
            seed=checked.seed,
            weights=checked.merge.weights,
        )
        labels = {"model": checked.name, "family": "merge"}
        model.metadata.update(facts, **labels, run_path=f"models/{checked.name}")
