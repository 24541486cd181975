"""The best model of the run, as a version in MLflow's registry."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(
    settings: str,
    board: Input[Artifact],
    data: Input[Dataset],
    base_model: Input[Model],
    registration: Output[Artifact],
    generalists: Input[list[Model]] = None,  # kfp's form of an optional
    warm_generalists: Input[list[Model]] = None,
    merges: Input[list[Model]] = None,
) -> None:
    """Register the model that is chosen on the validation split; it is the champion if it passes the gate.

    Args:
        settings: `RegistrySettings` as JSON.
        board: the leaderboard.
        data: the prepared splits; the version's tags name their digests.
        base_model: the base of LoRA generalists; the version gets its tokenizer and chat template.
        registration: JSON: name, version, whether it is the champion, and why if not.
        generalists, warm_generalists: the generalists that start from the base model, and from a merge.
        merges: the merged models.
    """
    from pathlib import Path

    from automixalign.config.experiment import RegistrySettings
    from automixalign.release.register import register
    from automixalign.steps.step import run_step

    models = [*(generalists or []), *(warm_generalists or []), *(merges or [])]
    with run_step("register", reads=[board, data, base_model, *models], writes=[registration]):
        facts = register(
            settings=RegistrySettings.model_validate_json(settings),
            board=Path(board.path),
            candidates={model.metadata["model"]: Path(model.path) for model in models},
            data=Path(data.path),
            base_model=Path(base_model.path),
            output=Path(registration.path),
            costs={model.metadata["model"]: model.metadata for model in models},
        )
        registration.metadata.update(facts, run_path="registration.json")
