"""Preference pairs: read, cleaned, split by prompt, tokenised."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare_data(settings: str, tokenizer: Input[Artifact], data: Output[Dataset]) -> None:
    """Write the splits of every task as Parquet, with a statistics card.

    Args:
        settings: `DataSettings` as JSON.
        tokenizer: of the base model, with its chat template and configuration.
        data: folder with `TASK/{train,validation,test}.parquet` and `card.json`.
    """
    from pathlib import Path

    from automixalign.config.data import DataSettings
    from automixalign.data.prepare import prepare_data
    from automixalign.models.load import load_config, load_tokenizer
    from automixalign.scoring.verifiers.registry import make_verifier
    from automixalign.steps.step import run_step

    with run_step("prepare_data", reads=[tokenizer], writes=[data]):
        options, folder = DataSettings.model_validate_json(settings), Path(tokenizer.path)
        encoder = load_tokenizer(folder, options.max_length)
        vocabulary = load_config(folder).get_text_config().vocab_size
        card = prepare_data(options, encoder, make_verifier, Path(data.path), vocabulary)
        pairs = {task["name"]: task["pairs"] for task in card["tasks"]}
        data.metadata.update(
            pairs=pairs, run_path="data"
        )  # Kubeflow copies metadata; the card is in the artifact
