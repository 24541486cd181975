"""`ama validate` refuses data with a token that the base model's embedding lacks."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from automixalign.config.experiment import parse_experiment
from automixalign.preflight.full_check import check_in_full
from automixalign.storage import files
from automixalign.system.errors import DataError


def test_only_data_with_such_a_token_are_refused(
    experiment_data: dict[str, Any], base_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(base_model, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(model)
    experiment_data["base_model"] = str(model)
    check_in_full(parse_experiment(experiment_data, "test"))
    rows = [{"prompt": f"say {n}", "chosen": "an <image>", "rejected": "no"} for n in range(20)]
    files.write_jsonl(tmp_path / "rows.jsonl", rows)
    experiment_data["tasks"][0] = {"name": "seen", "source": str(tmp_path / "rows.jsonl")}
    with pytest.raises(DataError, match=r"task seen: pair .* has the token '<image>' with the id"):
        check_in_full(parse_experiment(experiment_data, "test"))
