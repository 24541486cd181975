"""Which checkpoints a training takes up; `tests/faults/test_checkpoints.py` kills and damages."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from automixalign.config.methods import GeneralistSettings
from automixalign.config.training import Budget
from automixalign.storage import files
from automixalign.system.errors import StorageError
from automixalign.training.checkpoints import folder as checkpoints
from automixalign.training.checkpoints.store import checkpoint_store, checkpoints_location
from automixalign.training.generalist import GeneralistTraining
from automixalign.training.train import checkpoint_key
from tests.faults.interrupted import KILLED, Fault, inputs, settings, train


def test_checkpoints_of_another_training_are_not_used(tmp_path: Path) -> None:
    """Another eta, another seed: each has a folder of its own."""
    for given in (settings("ama-r", True, 4), settings("ama-r", True, 4, eta=0.4), settings("ama-s", True, 4)):
        assert train(given, tmp_path / "run", Fault("micro-step", 4)) == KILLED
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 3


def test_the_key_names_all_that_determines_a_training(tmp_path: Path) -> None:
    """Also what the reference's log-probabilities do not show of the base model."""

    def key(base_model: Path | None = None, start: Path | None = None, **changes: Any) -> str:
        given = GeneralistSettings.model_validate_json(settings("ama-r", True, 4)).model_copy(update=changes)
        where = {**inputs(), **({"base_model": base_model} if base_model else {}), "start": start}
        training = GeneralistTraining(settings=given, **where, output=tmp_path, trajectory=tmp_path)
        return checkpoint_key(training, training.read_tables("train"))

    other = tmp_path / "model"
    shutil.copytree(inputs()["base_model"], other)
    same = key(other)
    config = files.read_json(other / "config.json")
    files.write_json(other / "config.json", {**config, "attention_dropout": 0.1})
    keys = {key(), key(other), key(start=other), key(seed=4), key(code="other"), key(budget=Budget(steps=7))}
    assert (same, len(keys)) == (key(), 6)


def test_an_unreadable_checkpoint_is_named_and_stays(tmp_path: Path) -> None:
    """It may be whole. Without it, the training would start again."""
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / checkpoints.SEAL).symlink_to("/proc/self/mem")  # reading it is an I/O error
    with pytest.raises(StorageError, match=r"checkpoint-1 cannot be read: .*; make it readable, or remove it"):
        checkpoints.CheckpointStore(tmp_path).last_complete()
    assert (tmp_path / "checkpoint-1").exists()


def test_an_unwritable_location_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match=r"file/key cannot be made: .*; name another folder"),
        checkpoint_store(str(tmp_path / "file"), "key", tmp_path),
    ):
        pass


@pytest.mark.parametrize(("environment", "every", "location"), [(None, 5, None), ("", 5, None), ("x", 0, None)])
def test_where_no_checkpoints_are_stored(
    environment: str | None, every: int, location: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment is None:
        monkeypatch.delenv(checkpoints.CHECKPOINTS_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(checkpoints.CHECKPOINTS_VARIABLE, environment)
    assert checkpoints_location(every) == location
