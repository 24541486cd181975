"""Several processes score and answer what one process does, to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from automixalign.config.evaluation import EvaluationSettings, ScoringSettings
from automixalign.config.settings import Loading
from automixalign.data.store import SPLITS
from automixalign.models.generate import Decoding
from automixalign.models.load import load_model
from automixalign.scoring.evaluate import evaluate
from automixalign.scoring.generation import Answering
from automixalign.scoring.reference_logps import write_reference_logps
from automixalign.storage import files
from automixalign.system.errors import ModelError
from benchmarks import tiny

WORLD = tiny.world()


def answering(**changes: Any) -> Answering:
    given = {
        "model": WORLD.base_model,
        "tokenizer": WORLD.base_model,
        "data": WORLD.data,
        "loading": Loading(),
        "batch_size": 4,
        "precision": "fp32",
        "pairs": [("format", split) for split in SPLITS],
        "questions": {"format": [([5 + number] * (1 + number % 3), str(number)) for number in range(7)]},
        "decoding": Decoding(max_new_tokens=4, batch_size=2, temperature=1.0),
    }
    return Answering(**given | changes)


@pytest.mark.parametrize("processes", [2, 3, 50])
def test_the_shares_of_the_processes_are_the_whole(processes: int) -> None:
    job = answering()
    model = load_model(WORLD.base_model, WORLD.base_model)
    whole = job.share(model, slice(None))
    shares = [job.share(model, slice(rank, None, processes)) for rank in range(processes)]
    assert job.tables(shares) == job.tables([whole])
    rows = [row for share in shares for row in share["answers"]["format"]]
    assert sorted(rows) == sorted(whole["answers"]["format"])
    assert len(rows) == 7


def test_without_work_no_model_is_loaded(tmp_path: Path) -> None:
    idle = answering(model=tmp_path / "none", pairs=[], questions={"format": []})
    assert idle.scores_and_answers(1) == ({}, {"format": []})
    with pytest.raises(ModelError, match="none"):
        answering(model=tmp_path / "none").scores_and_answers(1)


def write_all(processes: int, folder: Path) -> None:
    """The reference's log-probabilities, and an evaluation with drawn answers."""
    scoring = ScoringSettings(seed=0, batch_size=4, precision="fp32", processes=processes)
    write_reference_logps(scoring, WORLD.data, WORLD.base_model, folder / "logps")
    drawn = {"samples": 2, "temperature": 1.0, "max_new_tokens": 4}
    settings = EvaluationSettings.model_validate(
        {
            "seed": 0,
            "evaluation": {"batch_size": 6, "precision": "fp32", "processes": processes, **drawn},
            "loss": {},
            "verifiers": dict.fromkeys(tiny.TASKS, "exact"),
        }
    )
    inputs = {"data": WORLD.data, "reference_logps": WORLD.reference_logps, "tokenizer": WORLD.base_model}
    evaluate(settings, "m", "merge", **inputs, model=WORLD.base_model, output=folder / "evaluation")


@pytest.mark.slow
def test_two_processes_write_the_bits_of_one(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # each of two processes has one, too
        write_all(1, tmp_path / "one")
        write_all(2, tmp_path / "two")
    finally:
        torch.set_num_threads(threads)
    assert files.digest(tmp_path / "two") == files.digest(tmp_path / "one")


@pytest.mark.slow
def test_the_error_of_a_scoring_process_is_that_of_the_stage(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="none"):
        answering(model=tmp_path / "none").scores(2)
