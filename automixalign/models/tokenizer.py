"""The files that a model needs besides its weights: tokenizer, chat template and configurations."""

import shutil
from pathlib import Path

from automixalign.storage import files

_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.*",
    "additional_chat_templates",
)


def write_tokenizer(model: Path, output: Path) -> None:
    """Write these files of a full model to the folder `output`, for stages that need no weights."""
    with files.replacing(output) as folder:
        folder.mkdir()
        copy_tokenizer(model, folder)


def copy_tokenizer(model: Path, folder: Path) -> None:
    """Copy these files of a full model into a folder."""
    for pattern in _FILES:
        for source in model.glob(pattern):
            if source.is_dir():
                shutil.copytree(source, folder / source.name, dirs_exist_ok=True)
            else:
                shutil.copy(source, folder / source.name)
