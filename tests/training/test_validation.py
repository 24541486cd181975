"""Validation during a training: what it measures, what it keeps, and that it changes nothing else."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from automixalign.config.experiment import parse_experiment
from automixalign.data.store import VALIDATION, read_split
from automixalign.models.load import load_model
from automixalign.scoring import caches
from automixalign.storage import files
from automixalign.system.errors import ConfigError
from automixalign.training.launch import train
from automixalign.training.validation import sample
from benchmarks import tiny
from tests.faults import interrupted
from tests.training.common import STEPS, generalist

BETA = 0.1
SCORING = {"seed": 0, "batch_size": 8, "precision": "fp32"}
AVERAGED = {"method": "ama-r", "eta": 0.5, "average_iterates": 0.75}
LORA = {"rank": 2, "alpha": 4}


def logp(model: Any, prompt: list[int], answer: list[int]) -> float:
    """Log-probability of an answer, in nats."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return float(logits.double().log_softmax(-1)[range(len(answer)), answer].sum())


def gap(model: Any, inputs: dict[str, Any], task: str) -> float:
    """Mean over a task's validation pairs of the loss minus the specialist's, one answer at a time."""
    (losses,) = (folder for folder in inputs["losses"] if folder.name == task)
    pairs = read_split(inputs["data"], task, VALIDATION).to_pylist()
    references = caches.read_cache(inputs["reference_logps"] / task, VALIDATION).to_pylist()
    specialist = caches.read_cache(losses, VALIDATION).column("loss").to_pylist()
    differences = []
    for pair, reference, loss in zip(pairs, references, specialist, strict=True):
        chosen, rejected = (
            logp(model, pair["prompt_ids"], pair[f"{side}_ids"]) - reference[f"{side}_logps"]
            for side in ("chosen", "rejected")
        )
        margin = torch.tensor(BETA * (chosen - rejected), dtype=torch.float64)
        differences.append(-float(torch.nn.functional.logsigmoid(margin)) - loss)
    return sum(differences) / len(differences)


@pytest.mark.parametrize(
    ("method", "training", "kept"),
    [
        (AVERAGED, {"learning_rate": 2.0, "precision": "bf16"}, 3),
        (None, {"learning_rate": 0.1, "precision": "bf16", "lora": LORA}, 1),
    ],
    ids=["an average of iterates", "LoRA"],
)
def test_the_model_is_the_policy_with_the_smallest_worst_gap(
    method: dict[str, Any] | None,
    training: dict[str, Any],
    kept: int,
    inputs: dict[str, Any],
    tmp_path: Path,
) -> None:
    """It has the gap of its step, in the precision of the scoring, not in that of the training."""
    facts = train(generalist(tmp_path, inputs, method, validate_every=1, keep="best", beta=BETA, **training))
    rows = [row["validation"] for row in files.read_jsonl(tmp_path / "log.jsonl")]
    assert [row["worst_gap"] for row in rows] == [max(row["gap"].values()) for row in rows]
    best = min(rows, key=lambda row: row["worst_gap"])
    assert (facts["kept_step"], rows.index(best) + 1) == (kept, kept)
    model = load_model(tmp_path / "model", inputs["base_model"])
    measured = {task: gap(model, inputs, task) for task in tiny.TASKS}
    assert best["gap"] == pytest.approx(measured, abs=2e-6)
    assert facts["validation_seconds"] >= 0


@pytest.mark.parametrize(
    ("method", "training"),
    [(AVERAGED, {}), (None, {"lora": LORA, "precision": "bf16", "gradient_checkpointing": True})],
    ids=["an average of iterates", "LoRA, bf16, gradient checkpointing"],
)
def test_validation_changes_no_bit_of_a_training(
    method: dict[str, Any] | None, training: dict[str, Any], tmp_path: Path
) -> None:
    """The policy has dropout, so that one random number too many would show."""
    inputs = interrupted.inputs()
    train(generalist(tmp_path / "without", inputs, method, **training))
    facts = train(generalist(tmp_path / "with", inputs, method, validate_every=3, **training))
    assert files.digest(tmp_path / "with" / "model") == files.digest(tmp_path / "without" / "model")
    rows = files.read_jsonl(tmp_path / "with" / "log.jsonl")
    validated = {row["step"]: row.pop("validation") for row in rows if "validation" in row}
    assert rows == files.read_jsonl(tmp_path / "without" / "log.jsonl")
    assert list(validated) == [3, STEPS], "also after the last step"
    assert facts["kept_step"] == STEPS
    model = load_model(tmp_path / "with" / "model", inputs["base_model"])
    measured = {task: gap(model, inputs, task) for task in tiny.TASKS}
    assert validated[STEPS]["gap"] == pytest.approx(measured, abs=2e-6), "that of the model, also if averaged"


def test_a_specialist_is_validated_by_its_loss(tmp_path: Path) -> None:
    training = tiny.specialist_training(tmp_path, validate_every=1, keep="best", learning_rate=0.3)
    settings = training.settings.model_validate({**training.settings.model_dump(), "scoring": SCORING})
    facts = train(training.model_copy(update={"settings": settings}))
    losses = []
    for row in files.read_jsonl(tmp_path / "trajectory.jsonl"):
        assert row["validation"].keys() == {"loss"}
        losses.append(row["validation"]["loss"]["format"])
    assert facts["kept_step"] == losses.index(min(losses)) + 1


def test_the_sample_depends_on_seed_and_task_alone() -> None:
    pairs = pa.table({"pair_id": [str(number) for number in range(100)]})
    samples = [sample(pairs, 10, seed, task) for seed, task in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))]
    first, again, other_seed, other_task = (each.column("pair_id").to_pylist() for each in samples)
    assert first == again == sorted(first, key=int)
    assert len({*map(tuple, (first, other_seed, other_task))}) == 3
    assert sample(pairs, 100, 0, "a") == pairs


@pytest.mark.parametrize(
    ("training", "split", "message"),
    [
        ({"keep": "best"}, 0.1, "'keep: best' needs 'validate_every'"),
        ({"validate_every": 5}, 0.0, r"training.validate_every: .* set split.validation above 0"),
        ({"validate_every": 5, "fsdp": True, "processes": 2}, 0.1, "'validate_every' needs whole parameters"),
    ],
)
def test_what_cannot_be_validated_is_refused(
    training: dict[str, Any], split: float, message: str, experiment_data: dict[str, Any]
) -> None:
    experiment_data["training"] |= training
    with pytest.raises(ConfigError, match=message):
        parse_experiment({**experiment_data, "split": {"validation": split}}, "test")
