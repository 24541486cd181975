"""The reference model's log-probabilities of every pair, once for the whole DAG."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def reference_logps(
    settings: str, data: Input[Dataset], base_model: Input[Model], reference_logps: Output[Dataset]
) -> None:
    """Score both answers of every pair under the reference model, keyed by pair id.

    Args:
        settings: `ScoringSettings` as JSON.
        data: the prepared splits.
        base_model: the reference model.
        reference_logps: one folder for each task, with `SPLIT.parquet` and a manifest that names its data.
    """
    from pathlib import Path

    from automixalign.config.evaluation import ScoringSettings
    from automixalign.scoring.reference_logps import write_reference_logps
    from automixalign.steps.step import run_step

    with run_step("reference_logps", reads=[data, base_model], writes=[reference_logps]):
        manifests = write_reference_logps(
            ScoringSettings.model_validate_json(settings),
            Path(data.path),
            Path(base_model.path),
            Path(reference_logps.path),
        )
        reference_logps.metadata.update(manifests, run_path="reference_logps")
