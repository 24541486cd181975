"""The policy that every training starts from, in one normal form."""

from kfp import dsl
from kfp.dsl import Artifact, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare_base_model(settings: str, base_model: Output[Model], tokenizer: Output[Artifact]) -> None:
    """Fetch, convert or train the base model, which is also the reference model.

    Args:
        settings: `BaseModelSettings` as JSON.
        base_model: folder with safetensors in the dtype of the source, config and tokenizer.
        tokenizer: folder with all of that but the weights, for stages that need no model.
    """
    from pathlib import Path

    from automixalign.config.models import BaseModelSettings
    from automixalign.models.prepare import prepare_base_model
    from automixalign.models.tokenizer import write_tokenizer
    from automixalign.steps.step import run_step

    with run_step("prepare_base_model", writes=[base_model, tokenizer]):
        facts = prepare_base_model(BaseModelSettings.model_validate_json(settings), Path(base_model.path))
        write_tokenizer(Path(base_model.path), Path(tokenizer.path))
        base_model.metadata.update(facts, model="reference", family="reference", run_path="models/reference")
