"""The trainer against TRL's own DPOTrainer and against the definition of its objective."""

import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

import benchmarks.mixers  # noqa: F401  registers the ablations
from automixalign.config.evaluation import ScoringSettings
from automixalign.config.settings import Loading
from automixalign.method.losses import Loss
from automixalign.method.mixers import registered_mixers
from automixalign.models.load import load_full_model
from automixalign.scoring.logps import forward
from automixalign.scoring.logps.layout import attending
from automixalign.scoring.reference_logps import write_reference_logps
from automixalign.scoring.scorer import Scorer
from automixalign.storage import files
from automixalign.system.errors import TrainingError
from automixalign.training.trainer import MixingTrainer
from benchmarks import tiny
from tests.method.needed_options import needed_options

ROWS = 12
TASKS = ("left", "right")
Tasks = dict[str, Dataset]
Train = Callable[..., tuple[torch.Tensor, list[dict[str, Any]], MixingTrainer]]
MIXERS = registered_mixers()
DPO = Loss()


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
def tasks(base_model: Path) -> Tasks:
    return {task: pairs(seed, base_model) for seed, task in enumerate(TASKS)}


def settings(folder: Path, **options: Any) -> DPOConfig:
    defaults: dict[str, Any] = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
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


def train_in(
    base_model: Path,
    folder: Path,
    tasks: Tasks,
    method: str,
    specialist_loss: float | list[float] = 0.0,
    config: dict[str, Any] | None = None,
    loss: Loss = DPO,
    nll_weight: float = 0.0,
    average_iterates: float | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **options: Any,
) -> tuple[torch.Tensor, list[dict[str, Any]], MixingTrainer]:
    """Train; return all weights as one vector, the trajectory and the trainer."""
    losses = specialist_loss if isinstance(specialist_loss, list) else [specialist_loss] * ROWS
    data = {name: table.add_column("specialist_loss", losses) for name, table in tasks.items()}
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    log = folder / "trajectory.jsonl"
    log.unlink(missing_ok=True)
    args = settings(folder, **(config or {}))
    mixer = MIXERS[method]({name: len(table) for name, table in data.items()}, args.seed, **options)
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    trainer = MixingTrainer(
        model,
        args,
        datasets=data,
        mixer=mixer,
        loss=loss,
        nll_weight=nll_weight,
        trajectory=log,
        average_iterates=average_iterates,
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    trainer.train()
    return torch.cat([p.detach().flatten() for p in model.parameters()]), files.read_jsonl(log), trainer


@pytest.fixture
def train(base_model: Path, tmp_path: Path) -> Train:
    """`train_in` with the tiny base model, in the folder of the test."""
    return partial(train_in, base_model, tmp_path)


@pytest.mark.parametrize("method", MIXERS)
def test_every_loss_is_ln_2_before_the_first_step(method: str, train: Train, tasks: Tasks) -> None:
    _, log, _ = train(tasks, method, **needed_options(method, TASKS))
    losses = [loss for loss in log[0]["loss"].values() if loss is not None]
    assert losses == pytest.approx([math.log(2)] * len(losses), abs=1e-6)
    assert sum(log[0]["pairs"].values()) == 4
    assert [row["step"] for row in log] == [1, 2, 3, 4]


def test_eta_zero_is_uniform_mixing_bit_for_bit(train: Train, tasks: Tasks) -> None:
    uniform, _, _ = train(tasks, "uniform-clip", 0.5)
    ama_r, log, _ = train(tasks, "ama-r", 0.5, eta=0.0)
    assert torch.equal(uniform, ama_r)
    assert log[-1]["weights"] == pytest.approx(dict.fromkeys(TASKS, 0.5))


def test_eta_zero_is_uniform_mixing_for_three_tasks_too(train: Train, base_model: Path, tasks: Tasks) -> None:
    """1/3 has no exact double; what the trainer multiplies by is single."""
    three = {**tasks, "middle": pairs(2, base_model)}
    config = {"per_device_train_batch_size": 7}
    uniform, _, _ = train(three, "uniform-clip", 0.5, config)
    ama_r, _, _ = train(three, "ama-r", 0.5, config, eta=0.0)
    assert torch.equal(uniform, ama_r)


def test_without_specialists_eta_zero_is_uniform_dpo(train: Train, tasks: Tasks) -> None:
    uniform, _, _ = train(tasks, "uniform", 0.5)
    raw, log, _ = train(tasks, "ama-r", 0.5, raw_loss=True, eta=0.0)
    assert torch.equal(uniform, raw)
    _, log, _ = train(tasks, "ama-r", 0.5, raw_loss=True, eta=0.5)
    alpha = {task: math.exp(0.5 * loss) for task, loss in log[0]["loss"].items()}
    expected = {task: 0.9 * value / sum(alpha.values()) + 0.05 for task, value in alpha.items()}
    assert log[1]["weights"] == pytest.approx(expected), "the update sees the loss itself"


def test_an_unclipped_gradient_is_that_of_the_loss(train: Train, tasks: Tasks) -> None:
    """Where every specialist is far ahead, nothing is clipped; where it is behind, only the option trains."""
    uniform, _, _ = train(tasks, "uniform")
    for specialist_loss in (0.0, 100.0):
        unclipped, _, _ = train(tasks, "ama-r-ablation", specialist_loss, unclipped_gradient=True, eta=0.0)
        assert torch.allclose(uniform, unclipped, atol=1e-6)


def test_the_task_clip_changes_only_the_weights_update(train: Train, tasks: Tasks) -> None:
    """Half of each task's pairs are behind their specialist, half are far ahead: so is the task as a whole."""
    losses = [0.0, 10.0] * (ROWS // 2)
    config = {"max_steps": 3, "per_device_train_batch_size": 24}  # every step holds every pair
    _, plain, _ = train(tasks, "ama-r", losses, config, eta=0.5)
    _, clipped, _ = train(tasks, "ama-r-ablation", losses, config, eta=0.5, task_clip=True)
    assert plain[0]["excess"] == clipped[0]["excess"]
    assert plain[0]["clipped"] == dict.fromkeys(TASKS, 0.5)
    assert plain[-1]["weights"] != dict.fromkeys(TASKS, 0.5)
    assert clipped[-1]["weights"] == pytest.approx(dict.fromkeys(TASKS, 0.5), abs=1e-12)


class Iterates(TrainerCallback):
    """The policy after every step."""

    def __init__(self) -> None:
        self.policies: list[torch.Tensor] = []

    def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
        self.policies.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))


@pytest.mark.parametrize(("share", "count"), [(1.0, 5), (0.5, 3), (0.01, 1)])
def test_the_average_is_that_of_the_last_policies(share: float, count: int, train: Train, tasks: Tasks) -> None:
    """ceil(share x 5) of them; the training itself goes on from the iterates, not from their mean."""
    iterates = Iterates()
    config = {"max_steps": 5}
    averaged, _, _ = train(tasks, "ama-r", 0.3, config, average_iterates=share, callbacks=[iterates])
    plain, _, _ = train(tasks, "ama-r", 0.3, config)
    assert torch.equal(plain, iterates.policies[-1])
    assert torch.allclose(averaged, torch.stack(iterates.policies[-count:]).mean(0), atol=1e-7)


def test_data_without_specialist_losses_serve_only_methods_that_need_none(
    base_model: Path, tmp_path: Path, tasks: Tasks
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    for method, options, fits in (
        ("uniform", {}, True),
        ("ama-r", {"raw_loss": True}, True),
        ("ama-r", {}, False),
        ("uniform-clip", {}, False),
    ):
        mixer = MIXERS[method](dict.fromkeys(TASKS, ROWS), 0, **options)
        with nullcontext() if fits else pytest.raises(TrainingError, match="no column specialist_loss"):
            MixingTrainer(
                model,
                settings(tmp_path),
                datasets=tasks,
                mixer=mixer,
                loss=DPO,
                trajectory=tmp_path / "log.jsonl",
                processing_class=tokenizer,
            )


class Prepared(DPOTrainer):
    """TRL's trainer on pairs that are tokenised already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


@pytest.mark.parametrize("loss_type", ["ipo", "hinge", "apo_zero"])
def test_other_losses_train_as_trl_trains_them(
    loss_type: str, train: Train, base_model: Path, tmp_path: Path, tasks: Tasks
) -> None:
    """Without clipping or weighting, three steps of our trainer are three steps of TRL's on the same pairs."""
    config = {"max_steps": 3, "per_device_train_batch_size": ROWS}
    one = {"left": tasks["left"]}  # every step holds every pair
    ours, log, _ = train(one, "uniform", config=config, loss=Loss.model_validate({"loss_type": loss_type}))
    theirs = Prepared(
        AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32),
        args=settings(tmp_path, loss_type=[loss_type], **config),
        train_dataset=tasks["left"].remove_columns(["ref_chosen_logps", "ref_rejected_logps"]),
        processing_class=AutoTokenizer.from_pretrained(base_model),
    )
    theirs.train()
    weights = torch.cat([p.detach().flatten() for p in theirs.model.parameters()])
    assert log[0]["loss"]["left"] != log[-1]["loss"]["left"]
    assert torch.allclose(ours, weights, atol=1e-5)


@pytest.mark.parametrize("method", ["ama-r", "ama-s"])
def test_one_task_is_clipped_dpo(method: str, train: Train, tasks: Tasks) -> None:
    """With k = 1 and specialist losses of 0, nothing is clipped: plain DPO on the same draws."""
    one = {"left": tasks["left"]}
    plain, _, _ = train(one, "uniform")
    clipped, log, _ = train(one, method, eta=0.5)
    assert torch.allclose(plain, clipped, atol=1e-7)
    assert all(row["weights"] == {"left": pytest.approx(1.0)} for row in log)


def test_no_excess_no_change(train: Train, base_model: Path, tasks: Tasks) -> None:
    """Where the specialist is worse on every pair, e = 0 everywhere and the gradient is zero."""
    start = torch.cat([p.detach().flatten() for p in load_full_model(base_model).parameters()])
    after, log, _ = train(tasks, "ama-r", 100.0)
    assert torch.equal(start, after)
    assert log[-1]["clipped"] == dict.fromkeys(TASKS, 1.0)
    assert log[-1]["excess"] == dict.fromkeys(TASKS, 0.0)


@pytest.mark.parametrize("nll", [0.0, 0.3])
def test_loss_and_gradient_are_trl_s_for_equal_weights(
    nll: float, train: Train, base_model: Path, tmp_path: Path, tasks: Tasks
) -> None:
    """One batch through TRL's DPOTrainer, with TRL's own reference pass, and through ours."""
    _, _, ours = train(tasks, "uniform", config={"max_steps": 1}, nll_weight=nll)
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
    expected = theirs.compute_loss(theirs.model, theirs.data_collator([_bare(row) for row in rows]))
    expected.backward()
    with attending(ours.policy, ours.loading) as ours.layout:
        actual = ours.compute_loss(ours.model, ours._collate(rows))
    actual.backward()
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, left), (_, right) in zip(
        ours.model.named_parameters(), theirs.model.named_parameters(), strict=True
    ):
        assert torch.allclose(left.grad, right.grad, rtol=1e-4, atol=1e-6), name


def _bare(row: dict[str, Any]) -> dict[str, Any]:
    """Without the reference's log-probabilities, which TRL then computes itself."""
    return {key: row[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")}


def test_permuting_the_tasks_permutes_the_result(train: Train, tasks: Tasks) -> None:
    """Where every step holds every pair, only the order of the tasks differs, and that must not matter."""
    config = {"per_device_train_batch_size": 2 * ROWS}
    forth, log, _ = train(tasks, "ama-r", 0.4, config, eta=0.5)
    back, back_log, _ = train(dict(reversed(tasks.items())), "ama-r", 0.4, config, eta=0.5)
    assert torch.allclose(forth, back, atol=1e-5)
    assert log[-1]["weights"]["left"] != log[-1]["weights"]["right"]
    for row, other in zip(log, back_log, strict=True):
        assert row["weights"] == pytest.approx(other["weights"], abs=1e-6)


@pytest.mark.parametrize("method", ["ama-r", "ama-s"])
def test_accumulation_follows_the_same_trajectory(method: str, train: Train, tasks: Tasks) -> None:
    """Eight pairs at once are two pairs four times."""
    whole, log, _ = train(tasks, method, 0.2, {"per_device_train_batch_size": 8}, eta=0.5)
    in_parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    parts, parts_log, _ = train(tasks, method, 0.2, in_parts, eta=0.5)
    assert torch.allclose(whole, parts, atol=1e-6)
    assert log[-1]["weights"] != log[0]["weights"]
    for left, right in zip(log, parts_log, strict=True):
        assert left["pairs"] == right["pairs"]
        assert left["weights"] == pytest.approx(right["weights"], abs=1e-6)


def test_the_objective_is_the_weighted_clipped_excess(train: Train, tasks: Tasks) -> None:
    _, _, trainer = train(tasks, "ama-r", config={"max_steps": 1})
    rows = [
        tasks["left"][row] | {"task": row % 2, "weight": weight, "specialist_loss": loss}
        for row, (weight, loss) in enumerate([(0.5, 0.1), (1.5, 0.9), (0.5, 0.2), (1.5, 0.3)])
    ]
    with torch.no_grad():
        actual = trainer.compute_loss(trainer.model, trainer._collate(rows)).item()
    chosen, rejected = Scorer(trainer.model, 8, "fp32").logps(Dataset.from_list(rows).data.table)
    ratios = [
        (c - row["ref_chosen_logps"]) - (r - row["ref_rejected_logps"])
        for c, r, row in zip(chosen, rejected, rows, strict=True)
    ]
    losses = [math.log1p(math.exp(-0.1 * ratio)) for ratio in ratios]
    expected = sum(
        row["weight"] * max(loss - row["specialist_loss"], 0) for loss, row in zip(losses, rows, strict=True)
    ) / len(rows)
    assert actual == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("way", "fused"), [("auto", False), ("sdpa", False), ("sdpa", True)])
def test_the_first_loss_is_ln_2(
    way: str, fused: bool, precision: str, lora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scoring and training have other batches, and the same head, attention and dtype of weights."""
    monkeypatch.setattr(forward, "fuses_head", lambda: fused)
    world = tiny.world()
    base = tmp_path / "base"
    shutil.copytree(world.base_model, base)
    load_full_model(base).bfloat16().save_pretrained(base)
    loading = Loading.model_validate(
        {"attn_implementation": way, "dtype": "source" if lora else "fp32", "max_length": 64}
    )
    scoring = ScoringSettings(seed=0, batch_size=6, precision=precision, loading=loading)
    write_reference_logps(scoring, world.data, base, tmp_path / "logps")
    options = {"lora": {"rank": 2}} if lora else {}
    training = tiny.specialist_training(
        tmp_path, batch_size=8, micro_batch_size=4, precision=precision, **options
    )
    settings = training.settings.model_copy(update={"loading": loading})
    changes = {"base_model": base, "reference_logps": tmp_path / "logps", "settings": settings}
    training.model_copy(update=changes).run(tmp_path)
    (loss,) = files.read_jsonl(training.trajectory)[0]["loss"].values()
    assert loss == pytest.approx(math.log(2), abs=1e-6)
