"""Scoring: log-probabilities as TRL computes them, losses, and caches that refuse what does not fit."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from automixalign import files, scoring
from automixalign.data.prepare import prepare_data
from automixalign.data.store import read_split
from automixalign.errors import CacheError, ModelError
from automixalign.models import load_full_model
from automixalign.settings import DataSettings, ScoringSettings

SETTINGS = ScoringSettings(seed=0, batch_size=5, precision="fp32", beta=0.1)


@pytest.fixture(scope="module")
def data(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scoring") / "data"
    settings = {
        "seed": 0,
        "tasks": [{"name": name, "source": f"synthetic:{name}", "limit": 30} for name in ("format", "refusal")],
        "split": {"test": 0.3},
        "max_length": 64,
        "fingerprints": ["", ""],
    }
    prepare_data(DataSettings.model_validate(settings), base_model, folder)
    return folder


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_log_probabilities_are_trl_s(batch_size: int, base_model: Path, data: Path) -> None:
    table = read_split(data, "format", "train")
    chosen, rejected = scoring.Scorer(load_full_model(base_model), batch_size, "fp32").logps(table)
    model = load_full_model(base_model)
    add_fused_lm_head(model)
    batch = DataCollatorForPreference(pad_token_id=0)(table.to_pylist())
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    with torch.no_grad():
        logps = model(
            batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels, fused_lm_head=True
        ).log_probs.sum(1)
    assert np.concatenate([chosen, rejected]) == pytest.approx(logps.numpy(), abs=1e-4)


def test_bf16_scores_are_near_fp32(base_model: Path, data: Path) -> None:
    table = read_split(data, "format", "train")
    model = load_full_model(base_model)
    exact = scoring.Scorer(model, 8, "fp32").logps(table)
    near = scoring.Scorer(model, 8, "bf16").logps(table)
    assert np.allclose(exact, near, rtol=0.02)
    assert not np.array_equal(exact, near)


def test_a_model_that_gives_nan_is_refused(base_model: Path, data: Path) -> None:
    model = load_full_model(base_model)
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = math.nan
    with pytest.raises(ModelError, match="not finite, first for pair"):
        scoring.Scorer(model, 8, "fp32").logps(read_split(data, "format", "test"))


def test_dpo_loss_does_not_overflow() -> None:
    margins = np.array([-1e4, -1.0, 0.0, 1.0, 1e4])
    expected = [1e4, math.log1p(math.e), math.log(2), math.log1p(math.exp(-1)), 0.0]
    assert scoring.dpo_loss(margins) == pytest.approx(expected)


def test_join_follows_ids_not_rows() -> None:
    cache = pa.table({"pair_id": ["a", "b", "c"], "loss": [1.0, 2.0, 3.0]})
    joined = scoring.join(cache, ["c", "a", "c"], "here")
    assert joined.column("loss").to_pylist() == [3.0, 1.0, 3.0]
    with pytest.raises(CacheError, match="here: 1 of 2 pairs are missing in the cache, first d"):
        scoring.join(cache, ["a", "d"], "here")
    with pytest.raises(CacheError, match="twice"):
        scoring.join(pa.concat_tables([cache, cache]), ["a"], "here")


def test_a_specialist_that_is_the_reference_has_a_loss_of_ln_2(
    base_model: Path, data: Path, tmp_path: Path
) -> None:
    scoring.write_reference_logps(SETTINGS, data, base_model, tmp_path / "reference")
    evaluation = tmp_path / "evaluation"
    test = read_split(data, "format", "test")
    scores = scoring._scores(scoring.Scorer(load_full_model(base_model), 5, "fp32"), test)
    files.write_table(evaluation / "format.parquet", scores)
    output = tmp_path / "losses"
    manifest = scoring.write_specialist_losses(
        SETTINGS, "format", data, tmp_path / "reference", base_model, base_model, evaluation, output
    )
    assert manifest["pairs"] == {"train": 18, "validation": 3, "test": 9}
    for split, mean in manifest["mean_loss"].items():
        losses = scoring.column(scoring.read_cache(output, split), scoring.LOSS)
        assert losses == pytest.approx(np.full(len(losses), math.log(2)), abs=1e-5)
        assert mean == pytest.approx(math.log(2), abs=1e-5)
    scoring.check_cache(output, data, "format")


def test_a_cache_of_other_data_is_refused(base_model: Path, data: Path, tmp_path: Path) -> None:
    scoring.write_reference_logps(SETTINGS, data, base_model, tmp_path)
    scoring.check_cache(tmp_path / "format", data, "format")
    with pytest.raises(CacheError, match="not computed for this data of task refusal"):
        scoring.check_cache(tmp_path / "format", data, "refusal")
    with pytest.raises(CacheError, match="no cache of task other"):
        scoring.check_cache(tmp_path / "other", data, "other")
