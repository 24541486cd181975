"""The copy of models, leaderboard and report that others read: the `output` of the configuration."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def publish(
    settings: str,
    board: Input[Artifact],
    page: Input[HTML],
    facts: Input[Artifact],
    base_model: Input[Model],
    publication: Output[Artifact],
    generalists: Input[list[Model]] = None,  # kfp's form of an optional
    warm_generalists: Input[list[Model]] = None,
    merges: Input[list[Model]] = None,
) -> None:
    """Copy the final models, the leaderboard and the report to S3 or a folder; write a manifest last.

    Args:
        settings: `PublicationSettings` as JSON.
        board: the leaderboard.
        page: the report.
        facts: the data of the report, as JSON.
        base_model: the reference model, which LoRA generalists need.
        publication: JSON: every published file with its size and SHA-256.
        generalists, warm_generalists: the generalists that start from the base model, and from a merge.
        merges: the merged models.
    """
    from pathlib import Path

    from automixalign.config.release import PublicationSettings
    from automixalign.release.publish import publish_run
    from automixalign.steps.step import run_step

    final_models = [*(generalists or []), *(warm_generalists or []), *(merges or [])]
    models = {model.metadata["model"]: model for model in final_models}
    artifacts = {f"models/{name}": model for name, model in [("reference", base_model), *models.items()]}
    artifacts |= {"leaderboard.json": board, "report/index.html": page, "report/data.json": facts}
    with run_step("publish", reads=artifacts.values(), writes=[publication]):
        summary = publish_run(
            PublicationSettings.model_validate_json(settings),
            {name: Path(artifact.path) for name, artifact in artifacts.items()},
            Path(publication.path),
        )
        publication.metadata.update(summary, run_path="publication.json")
