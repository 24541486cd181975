"""The trainer against TRL's own DPOTrainer and against the definition of its objective."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from automixalign import files
from automixalign.mixers import MIXERS
from automixalign.models import load_full_model
from automixalign.scoring import Scorer
from automixalign.trainer import MixingTrainer

ROWS = 12
TASKS = ("left", "right")


def pairs(seed: int, base_model: Path) -> Dataset:
    """Random token pairs with their log-probabilities under the reference model."""
    generator = np.random.default_rng(seed)

    def ids(length: int) -> list[int]:
        return generator.integers(10, 60, size=length).tolist()

    rows = [
        {
            "pair_id": str(row),
            "prompt_ids": ids(3 + row % 4),
            "chosen_ids": ids(2 + row % 5),
            "rejected_ids": ids(2 + row % 3),
        }
        for row in range(ROWS)
    ]
    data = Dataset.from_list(rows)
    chosen, rejected = Scorer(load_full_model(base_model), 8, "fp32").logps(data.data.table)
    return data.add_column("ref_chosen_logps", chosen).add_column("ref_rejected_logps", rejected)


@pytest.fixture(scope="module")
def tasks(base_model: Path) -> dict[str, Dataset]:
    return {task: pairs(seed, base_model) for seed, task in enumerate(TASKS)}


def settings(folder: Path, **options: Any) -> DPOConfig:
    defaults: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "loss_type": ["sigmoid"],
    }
    return DPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        max_length=None,
        **{**defaults, **options},
    )


def train(
    base_model: Path,
    folder: Path,
    tasks: dict[str, Dataset],
    method: str,
    specialist_loss: float | list[float] = 0.0,
    config: dict[str, Any] | None = None,
    **options: float,
) -> tuple[torch.Tensor, list[dict[str, Any]], MixingTrainer]:
    """Train; return all weights as one vector, the trajectory and the trainer."""
    losses = specialist_loss if isinstance(specialist_loss, list) else [specialist_loss] * ROWS
    data = {name: table.add_column("specialist_loss", losses) for name, table in tasks.items()}
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    log = folder / "trajectory.jsonl"
    log.unlink(missing_ok=True)
    args = settings(folder, **(config or {}))
    mixer = MIXERS[method]([len(table) for table in data.values()], args.seed, **options)
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    trainer = MixingTrainer(model, args, data, mixer, log, processing_class=tokenizer)
    trainer.train()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return weights, files.read_jsonl(log), trainer


@pytest.mark.parametrize("method", MIXERS)
def test_every_loss_is_ln_2_before_the_first_step(
    method: str, base_model: Path, tmp_path: Path, tasks: dict[str, Dataset]
) -> None:
    _, log, _ = train(base_model, tmp_path, tasks, method)
    seen = [loss for loss in log[0]["loss"].values() if loss is not None]
    assert seen == pytest.approx([math.log(2)] * len(seen), abs=1e-6)
    assert sum(log[0]["pairs"].values()) == 4
    assert [row["step"] for row in log] == [1, 2, 3, 4]


def test_eta_zero_is_uniform_mixing_bit_for_bit(
    base_model: Path, tmp_path: Path, tasks: dict[str, Dataset]
) -> None:
    uniform, _, _ = train(base_model, tmp_path, tasks, "uniform-clip", 0.5)
    ama_r, log, _ = train(base_model, tmp_path, tasks, "ama-r", 0.5, eta=0.0)
    assert torch.equal(uniform, ama_r)
    assert log[-1]["weights"] == pytest.approx(dict.fromkeys(TASKS, 0.5))


@pytest.mark.parametrize("method", ["ama-r", "ama-s"])
def test_one_task_is_clipped_dpo(
    method: str, base_model: Path, tmp_path: Path, tasks: dict[str, Dataset]
) -> None:
    """With k = 1 and specialist losses of 0, nothing is clipped: plain DPO on the same draws."""
    one = {"left": tasks["left"]}
    plain, _, _ = train(base_model, tmp_path, one, "uniform")
    clipped, log, _ = train(base_model, tmp_path, one, method, eta=0.5)
    assert torch.allclose(plain, clipped, atol=1e-7)
    assert all(row["weights"] == {"left": pytest.approx(1.0)} for row in log)


def test_no_excess_no_change(base_model: Path, tmp_path: Path, tasks: dict[str, Dataset]) -> None:
    """Where the specialist is worse on every pair, e = 0 everywhere and the gradient is zero."""
    before = load_full_model(base_model)
    start = torch.cat([p.detach().flatten() for p in before.parameters()])
    after, log, _ = train(base_model, tmp_path, tasks, "ama-r", 100.0)
    assert torch.equal(start, after)
    assert log[-1]["clipped"] == dict.fromkeys(TASKS, 1.0)
    assert log[-1]["excess"] == dict.fromkeys(TASKS, 0.0)


@pytest.mark.parametrize("nll", [0.0, 0.3])
def test_loss_and_gradient_are_trl_s_for_equal_weights(
    nll: float, base_model: Path, tmp_path: Path, tasks: dict[str, Dataset]
) -> None:
    """One batch through TRL's DPOTrainer, with TRL's own reference pass, and through ours."""
    config = {"loss_type": ["sft"], "loss_weights": [nll]} if nll else {}
    _, _, ours = train(base_model, tmp_path, tasks, "uniform", config={**config, "max_steps": 1})
    theirs = DPOTrainer(
        str(base_model),
        args=settings(tmp_path, loss_type=["sigmoid", "sft"], loss_weights=[1.0, nll]),
        train_dataset=Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}),
        processing_class=AutoTokenizer.from_pretrained(base_model),
    )
    rows = [tasks["left"][row] | {"task": 0, "weight": 1.0} for row in range(4)]
    # Move the policy away from the reference, alike in both, so that the loss is not ln 2 everywhere.
    for trainer in (ours, theirs):
        trainer.model.load_state_dict(load_full_model(base_model).state_dict())
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.mul_(1.1)
        trainer.model.train()
        trainer.model.zero_grad()
    batch = ours._collate(rows)
    expected = theirs.compute_loss(theirs.model, {k: v.clone() for k, v in batch.items() if k not in EXTRA})
    expected.backward()
    found = ours.compute_loss(ours.model, batch)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, left), (_, right) in zip(
        ours.model.named_parameters(), theirs.model.named_parameters(), strict=True
    ):
        assert torch.allclose(left.grad, right.grad, rtol=1e-4, atol=1e-6), name


EXTRA = ("task", "specialist_loss", "weight", "ref_chosen_logps", "ref_rejected_logps")


def test_accumulation_follows_the_same_trajectory(
    base_model: Path, tmp_path: Path, tasks: dict[str, Dataset]
) -> None:
    whole, log, _ = train(base_model, tmp_path, tasks, "ama-r", 0.2, eta=0.5)
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    parts, parts_log, _ = train(base_model, tmp_path, tasks, "ama-r", 0.2, halves, eta=0.5)
    assert torch.allclose(whole, parts, atol=1e-6)
    for left, right in zip(log, parts_log, strict=True):
        assert left["pairs"] == right["pairs"]
        assert left["weights"] == pytest.approx(right["weights"], abs=1e-6)


def test_the_objective_is_the_weighted_clipped_excess(
    base_model: Path, tmp_path: Path, tasks: dict[str, Dataset]
) -> None:
    _, _, trainer = train(base_model, tmp_path, tasks, "ama-r", config={"max_steps": 1})
    rows = [
        tasks["left"][row] | {"task": row % 2, "weight": weight, "specialist_loss": known}
        for row, (weight, known) in enumerate([(0.5, 0.1), (1.5, 0.9), (0.5, 0.2), (1.5, 0.3)])
    ]
    with torch.no_grad():
        found = trainer.compute_loss(trainer.model, trainer._collate(rows)).item()
    table = Dataset.from_list(rows).data.table
    chosen, rejected = Scorer(trainer.model, 8, "fp32").logps(table)
    ratios = [
        (c - row["ref_chosen_logps"]) - (r - row["ref_rejected_logps"])
        for c, r, row in zip(chosen, rejected, rows, strict=True)
    ]
    losses = [math.log1p(math.exp(-0.1 * ratio)) for ratio in ratios]
    expected = sum(
        row["weight"] * max(loss - row["specialist_loss"], 0) for loss, row in zip(losses, rows, strict=True)
    ) / len(rows)
    assert found == pytest.approx(expected, rel=1e-5)
