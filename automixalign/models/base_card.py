"""The card of a prepared base model: a `README.md` that says where it comes from, and names its licence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automixalign.config.sources import BaseModelSource, HubSource
from automixalign.system.plain_text import printable

CARD = "README.md"
_LICENCE = ("license", "license_name", "license_link")
"""Keys of a card's front matter (https://huggingface.co/docs/hub/model-cards)."""
_MAX_CHARACTERS = 200


def write_base_card(source: BaseModelSource, path: Path | None, folder: Path) -> None:
    """Write the card of a base model, without paths of this machine.

    Args:
        source: the base model.
        path: its folder or GGUF file on this machine; None for one that the hub's client loads by its id.
        folder: the prepared model.
    """
    from huggingface_hub import ModelCard, ModelCardData

    hub_id, revision = (source.text, source.revision) if isinstance(source, HubSource) else (None, None)
    licence = _local_licence(path) if path else _hub_licence(hub_id, revision) if hub_id else {}
    data = ModelCardData(base_model=hub_id, library_name="transformers", tags=["automixalign"], **licence)
    origin = f"`{hub_id}`, revision `{revision or 'main'}`" if hub_id else "a model that is not on the hub"
    text = f"# Reference model\n\nThe base model of an AutoMixAlign run, in safetensors: {origin}."
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n").save(folder / CARD)


def read_licence(folder: Path) -> dict[str, Any]:
    """The licence of a prepared base model.

    Returns:
        `license`, `license_name` and `license_link`, as far as the base model's own card names them.
    """
    return _known(_front_matter(folder / CARD))


def _hub_licence(repo: str, revision: str | None) -> dict[str, Any]:
    """The licence that a model's card on the hub names."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        return _local_licence(Path(hf_hub_download(repo, CARD, revision=revision)).parent)
    except (EntryNotFoundError, HfHubHTTPError):  # it has no card, or one that needs a login
        return {}


def _local_licence(path: Path) -> dict[str, Any]:
    """The licence that the card in a folder, or a GGUF file, names."""
    if path.is_dir():
        return _known(_front_matter(path / CARD))
    from gguf import GGUFReader

    fields = ((key, GGUFReader(path).get_field(f"general.{key.replace('_', '.')}")) for key in _LICENCE)
    return {key: str(field.contents()) for key, field in fields if field}


def _known(data: Mapping[str, str]) -> dict[str, Any]:
    return {key: data[key] for key in _LICENCE if key in data}


def _front_matter(card: Path) -> Mapping[str, str]:
    """The texts in the front matter of a card; none if there is no card, or it is no YAML."""
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    try:
        data = vars(ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data)
    except (FileNotFoundError, UnicodeDecodeError, ValueError, YAMLError):
        return {}
    return {key: printable(value)[:_MAX_CHARACTERS] for key, value in data.items() if isinstance(value, str)}
