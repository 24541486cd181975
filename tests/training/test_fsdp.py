"""A model divided among two processes (FSDP2) learns what a whole one learns, and goes on after a kill."""

from pathlib import Path
from typing import Any

import pytest

from automixalign.config.experiment import parse_experiment
from automixalign.system.errors import ConfigError, ResourceError
from automixalign.training.checkpoints import folder as checkpoints
from automixalign.training.checkpoints.size import checkpoint_bytes
from tests.training.common import assert_same, base_with, tensor_bytes, train_divided, train_whole


@pytest.mark.slow
def test_a_divided_model_learns_what_a_whole_one_learns_with_a_kill_on_the_way(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_whole(tmp_path / "whole", inputs)
    monkeypatch.setenv(checkpoints.CHECKPOINTS_VARIABLE, str(tmp_path / "checkpoints"))
    options = {"gradient_checkpointing": True, "checkpoint_every": 2}
    with pytest.raises(ResourceError, match="one of the processes was killed"):
        train_divided(tmp_path / "divided", inputs, "3", **options)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert checkpoints.CheckpointStore(folder).last_complete() == folder / "checkpoint-2"
    shards = [tensor_bytes(file) for file in (folder / "checkpoint-2").glob("state-*.safetensors")]
    assert len(shards) == 2
    assert sum(shards) == pytest.approx(checkpoint_bytes(whole["trained_parameters"]), rel=0.01)
    assert max(shards) < 0.6 * sum(shards)
    divided = train_divided(tmp_path / "divided", inputs, **options)
    assert divided["trained_parameters"] == whole["trained_parameters"]
    assert_same(tmp_path / "whole", tmp_path / "divided", log_atol=1e-5)


def test_adapters_of_divided_and_whole_models_are_equal(inputs: dict[str, Any], tmp_path: Path) -> None:
    """The tolerance is wider: an adapter's first gradients are near 0, where Adam turns rounding into steps."""
    lora = {"rank": 2, "alpha": 4}
    train_whole(tmp_path / "whole", inputs, lora=lora)
    train_divided(tmp_path / "divided", inputs, lora=lora)
    assert_same(tmp_path / "whole", tmp_path / "divided", atol=1e-4, log_atol=1e-5)


@pytest.mark.slow
def test_a_partly_trained_model_with_tied_weights_accumulates_gradients_alike(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    shape = {"num_hidden_layers": 2, "tie_word_embeddings": True}
    inputs = {**inputs, "base_model": base_with(shape, inputs["base_model"], tmp_path / "base")}
    trainable = ["embed_tokens", r"layers\.1\..*proj"]
    whole = train_whole(tmp_path / "whole", inputs, micro_batch_size=4, trainable=trainable)
    divided = train_divided(tmp_path / "divided", inputs, micro_batch_size=2, trainable=trainable)
    assert divided["trained_parameters"] == whole["trained_parameters"]
    assert_same(tmp_path / "whole", tmp_path / "divided", log_atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "training": {"fsdp": True, "processes": 2},
                "methods": [{"method": "ama-r", "average_iterates": 1}],
            },
            "methods: 'average_iterates' needs whole parameters",
        ),
        ({"training": {"nodes": 2}}, "training.nodes: several nodes need 'cluster.train_job'"),
        (
            {
                "training": {"nodes": 2},
                "cluster": {"train_job": {"storage": "s3://jobs/here"}},
                "specialist_losses": {"cross_fit": True},
            },
            "specialist_losses.cross_fit: its trainings run in one pod",
        ),
    ],
)
def test_conflicts_are_refused(changes: dict[str, Any], message: str, experiment_data: dict[str, Any]) -> None:
    experiment_data["training"] |= {"batch_size": 8} | changes.pop("training")
    with pytest.raises(ConfigError, match=message):
        parse_experiment(experiment_data | changes, "test")
