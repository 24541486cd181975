"""The tokenizer and the configuration of a base model, wherever it is, without its weights."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from automixalign.config.models import BaseModelSpec
from automixalign.models.inspect import is_at_hand, read_outline
from automixalign.models.load import load_full_model
from automixalign.system.errors import ModelError
from tests.models.test_base_model import write_gguf

TEXT = "2+2=4"
TINY = {"hidden_size": 8, "layers": 3, "heads": 2}


def test_a_folder(base_model: Path, tmp_path: Path, tokenizer: Any) -> None:
    outline = read_outline(BaseModelSpec(source=str(base_model)), tmp_path)
    assert outline.tokenizer(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert outline.config.max_position_embeddings == 2048


def test_a_model_of_this_shape(base_model: Path, tmp_path: Path) -> None:
    outline = read_outline(BaseModelSpec(source=str(base_model)), tmp_path)
    shapes = {name: weight.shape for name, weight in load_full_model(base_model).state_dict().items()}
    for model in (outline.empty_model(), outline.random_model()):
        assert {name: weight.shape for name, weight in model.state_dict().items()} == shapes
    assert all(weight.device.type == "meta" for weight in outline.empty_model().parameters())


def test_a_gguf_file(base_model: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", base_model)
    outline = read_outline(BaseModelSpec(source=str(tmp_path / "m.gguf")), tmp_path)
    assert outline.config.max_position_embeddings == 64
    assert outline.tokenizer.decode([1]) == "!!"


def test_the_tiny_model(tmp_path: Path, tokenizer: Any) -> None:
    outline = read_outline(BaseModelSpec.model_validate({"source": "tiny", "tiny": TINY}), tmp_path)
    assert outline.tokenizer(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert (outline.config.hidden_size, outline.config.num_hidden_layers) == (8, 3)


@pytest.fixture
def cached(base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a model in the hub's local copy, without its weights; there is no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "a" * 40
    copy = tmp_path / "models--owner--name"
    shutil.copytree(base_model, copy / "snapshots" / commit, ignore=shutil.ignore_patterns("*.safetensors"))
    (copy / "refs").mkdir()
    (copy / "refs" / "main").write_text(commit)
    return "owner/name"


def test_the_local_copy_of_the_hub(cached: str, tmp_path: Path, tokenizer: Any) -> None:
    spec = BaseModelSpec(source=cached)
    assert is_at_hand(spec)
    assert read_outline(spec, tmp_path).tokenizer(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert not is_at_hand(BaseModelSpec(source="owner/other"))
    assert not is_at_hand(BaseModelSpec(source=cached, revision="b" * 40))


@pytest.mark.parametrize(
    ("source", "at_hand"),
    [("./m", True), ("package:m/x.gguf", True), ("s3://b/k", False), ("models:/m/1", False)],
)
def test_what_is_at_hand(source: str, at_hand: bool) -> None:
    assert is_at_hand(BaseModelSpec(source=source)) == at_hand


def test_a_tokenizer_without_end_of_sequence_is_refused(
    base_model: Path, tmp_path: Path, tokenizer: Any
) -> None:
    model = shutil.copytree(base_model, tmp_path / "model")
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    tokenizer.save_pretrained(model)
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        read_outline(BaseModelSpec(source=str(model)), tmp_path)


def test_the_weights_on_s3_are_not_fetched(base_model: Path, tmp_path: Path, tokenizer: Any, s3: Any) -> None:
    s3.create_bucket(Bucket="outline")
    for file in base_model.iterdir():
        s3.upload_file(str(file), "outline", f"m/{file.name}")
    outline = read_outline(BaseModelSpec(source="s3://outline/m"), tmp_path)
    assert outline.tokenizer(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    fetched = {file.name for file in tmp_path.iterdir()}
    assert fetched == {file.name for file in base_model.iterdir()} - {"model.safetensors"}
