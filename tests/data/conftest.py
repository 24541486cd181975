"""Fixtures of the tests of data."""

from pathlib import Path

import pytest

from benchmarks import smollm2


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    smollm2.write_tokenizer(folder)
    return folder
