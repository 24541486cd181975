"""A model made of the specialists' weights, without training."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def merge_specialists(
    settings: str,
    base_model: Input[Model],
    specialists: Input[Model],
    model: Output[Model],
    data: Input[Dataset] = None,  # kfp's form of an optional
    reference_logps: Input[Dataset] = None,
    losses: Input[Dataset] = None,
) -> None:
    """Merge the specialists by one of mergekit's methods.

    Args:
        settings: `MergeSettings` as JSON.
        base_model: the model that the specialists started from.
        specialists: folder with full models or LoRA adapters, `TASK/`.
        model: the merged full model.
        data, reference_logps, losses: the prepared splits, the reference log-probabilities, and folder with the
            specialists' losses, `TASK/`; all for `weights: tuned`.
    """
    from pathlib import Path

    from automixalign.config.merges import MergeSettings
    from automixalign.merging.tuning import merge_by_settings
    from automixalign.steps.step import run_step

    checked = MergeSettings.model_validate_json(settings)
    to_tune = [data, reference_logps, losses] if checked.tuning else []
    with run_step("merge_specialists", checked.name, reads=[base_model, specialists, *to_tune], writes=[model]):
        facts = merge_by_settings(
            checked,
            base=Path(base_model.path),
            specialists=Path(specialists.path),
            output=Path(model.path),
            to_tune=[Path(artifact.path) for artifact in to_tune],
        )
        labels = {"model": checked.name, "family": "merge"}
        model.metadata.update(facts, **labels, run_path=f"models/{checked.name}")
