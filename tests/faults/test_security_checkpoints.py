"""Checkpoints that somebody has altered: torch's own files are pickles, and a seal is no signature."""

import shutil
from pathlib import Path

import pytest

from automixalign.models.load import load_tokenizer
from automixalign.storage import files
from automixalign.system.errors import TrainingError
from automixalign.training import averaging
from automixalign.training.checkpoints import folder as checkpoints
from automixalign.training.checkpoints.schedule import Schedule
from automixalign.training.trainer import MixingTrainer
from tests.faults.common import raises, write_pickle
from tests.training.common import tiny_trainer

STEPS = 2


def trainer(base_model: Path, folder: Path) -> MixingTrainer:
    return tiny_trainer(
        base_model,
        folder,
        Schedule(every=1),
        steps=STEPS,
        average_iterates=1.0,
        processing_class=load_tokenizer(base_model),
    )


@pytest.fixture(scope="module")
def interrupted(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training with one checkpoint, as if it had been killed in its second step."""
    folder: Path = tmp_path_factory.mktemp("interrupted")
    trainer(base_model, folder).train()
    return folder


@pytest.fixture
def resumed(interrupted: Path, base_model: Path, tmp_path: Path) -> MixingTrainer:
    """A trainer that resumes in a copy of that training."""
    shutil.copytree(interrupted, tmp_path / "training")
    return trainer(base_model, tmp_path / "training")


def test_a_digest_excludes_an_altered_checkpoint(resumed: MixingTrainer, marker: Path, tmp_path: Path) -> None:
    write_pickle(tmp_path / "training" / "checkpoint-1" / "rng_state.pth", marker)
    resumed.train(resume_from_checkpoint=True)
    log = files.read_jsonl(tmp_path / "training" / checkpoints.TRAJECTORY)
    assert [row["step"] for row in log] == [1, 2], "it trained from the start"


@pytest.mark.parametrize("replaced", ["state-0.safetensors", "rng_state.pth", averaging.FILE])
def test_a_malicious_pickle_past_the_seal(
    resumed: MixingTrainer, marker: Path, tmp_path: Path, replaced: str
) -> None:
    checkpoint = tmp_path / "training" / "checkpoint-1"
    write_pickle(checkpoint / replaced, marker)
    with raises(TrainingError, str(checkpoint), "remove it"):
        resumed.train(str(checkpoint))
