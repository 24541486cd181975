"""The scorer gives the log-probabilities that TRL computes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from automixalign.data.store import read_split
from automixalign.models.load import load_full_model
from automixalign.scoring.scorer import Scorer
from automixalign.system.errors import ModelError


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_log_probabilities_are_those_of_trl(batch_size: int, base_model: Path, two_tasks: Path) -> None:
    table = read_split(two_tasks, "format", "train")
    chosen, rejected = Scorer(load_full_model(base_model), batch_size, "fp32").logps(table)
    model = load_full_model(base_model)
    add_fused_lm_head(model)
    batch = DataCollatorForPreference(pad_token_id=0)(table.to_pylist())
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    with torch.no_grad():
        logps = model(
            batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels, fused_lm_head=True
        ).log_probs.sum(1)
    assert np.concatenate([chosen, rejected]) == pytest.approx(logps.numpy(), abs=1e-4)


def test_bf16_scores_are_near_fp32(base_model: Path, two_tasks: Path) -> None:
    table = read_split(two_tasks, "format", "train")
    model = load_full_model(base_model)
    exact = Scorer(model, 8, "fp32").logps(table)
    near = Scorer(model, 8, "bf16").logps(table)
    assert np.allclose(exact, near, rtol=0.02)
    assert not np.array_equal(exact, near)


def test_a_model_that_gives_nan_is_refused(base_model: Path, two_tasks: Path) -> None:
    model = load_full_model(base_model)
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = math.nan
    with pytest.raises(ModelError, match="not finite, first for pair"):
        Scorer(model, 8, "fp32").logps(read_split(two_tasks, "format", "test"))
