"""A tokenizer's folder serves the stages that need no weights."""

from pathlib import Path

from automixalign.models.load import load_config, load_tokenizer
from automixalign.models.tokenizer import write_tokenizer


def test_the_folder_has_all_of_a_model_but_its_weights(base_model: Path, tmp_path: Path) -> None:
    write_tokenizer(base_model, tmp_path / "tokenizer")
    missing = {path.name for path in base_model.iterdir()} - {
        path.name for path in (tmp_path / "tokenizer").iterdir()
    }
    assert missing == {"model.safetensors"}
    assert load_config(tmp_path / "tokenizer").to_dict() == load_config(base_model).to_dict() | {
        "_name_or_path": str(tmp_path / "tokenizer")
    }
    tokenizer, original = load_tokenizer(tmp_path / "tokenizer"), load_tokenizer(base_model)
    assert (tokenizer.get_vocab(), tokenizer.chat_template) == (original.get_vocab(), original.chat_template)
