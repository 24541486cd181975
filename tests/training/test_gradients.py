"""The measurement of the tasks' gradients, against enumeration and against gradients made one by one."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from automixalign.config.experiment import parse_experiment
from automixalign.method.baselines.pike import Pike
from automixalign.system.errors import ConfigError, TrainingError
from automixalign.training.gradients import gradient_moments
from tests.training.test_trainer import TASKS, Tasks, Train, tasks, train

__all__ = ["tasks", "train"]


def test_the_moments_have_no_bias() -> None:
    """Over all 27 draws of three pairs of a task of three, their means are the task's own values."""
    gradients = torch.tensor([[1.0, 2.0], [-3.0, 0.5], [0.0, 4.0]])
    true = gradients.mean(0).square().sum().item(), (gradients - gradients.mean(0)).square().sum().item() / 3
    weight = torch.nn.Parameter(torch.zeros(2))
    unused = torch.nn.Parameter(torch.zeros(1))
    moments = [
        gradient_moments((weight @ gradients[z] for z in drawn), [weight, unused], 3, Accelerator(cpu=True))
        for drawn in itertools.product(range(3), repeat=3)
    ]
    assert np.mean(moments, axis=0) == pytest.approx(true, abs=1e-6)


def test_a_training_measures_the_gradient_of_each_task(
    train: Train, tasks: Tasks, base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before steps 1 and 4: the first at the base model, where all margins are 0 and -log sigmoid' is 1/2."""
    seen = []
    monkeypatch.setattr(Pike, "learn_gradients", lambda _, *moments: seen.append(moments))
    train(tasks, "pike", every=3, pairs=5)
    assert len(seen) == 2
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32).eval()
    for number, task in enumerate(TASKS):
        rows = np.random.default_rng([42, 0, number, 1]).integers(12, size=5)
        each = torch.stack([margin_gradient(model, tasks[task][int(row)]) for row in rows]) * 0.1 / 2
        variance = float((each - each.mean(0)).square().sum() / 4)
        norm = float(each.mean(0).square().sum()) - variance / 5
        measured_norms, measured_variances, batch_size = seen[0]
        assert (measured_norms[number], measured_variances[number]) == pytest.approx((norm, variance), rel=1e-3)
        assert batch_size == 4


def margin_gradient(model: Any, row: dict[str, Any]) -> torch.Tensor:
    """The gradient of log pi(y-) - log pi(y+) with respect to all weights, as one vector."""
    logps = []
    for side in ("chosen_ids", "rejected_ids"):
        ids = torch.tensor([row["prompt_ids"] + row[side]])
        start = len(row["prompt_ids"])
        logits = model(ids).logits.log_softmax(-1)[0, start - 1 : -1]
        logps.append(logits.gather(1, ids[0, start:, None]).sum())
    gradients = torch.autograd.grad(logps[1] - logps[0], list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def test_a_measurement_changes_nothing_but_the_weights(train: Train, tasks: Tasks) -> None:
    measured, _, _ = train(tasks, "pike", every=2, pairs=2, zeta1=0.0, zeta2=0.0)
    static, _, _ = train(tasks, "static", weights=dict.fromkeys(TASKS, 1.0))
    assert torch.equal(measured, static)


def test_the_weights_follow_the_measurements(train: Train, tasks: Tasks) -> None:
    _, log, trainer = train(tasks, "pike", every=2, pairs=4, zeta1=5.0)
    weights = [row["weights"]["left"] for row in log]
    assert weights[0] == weights[1] != weights[2] == weights[3]
    assert weights[0] != 0.5, "the first measurement comes before the first step"
    assert math.isclose(trainer.mixer.weights()[0], weights[-1])


def test_weights_that_are_not_finite_are_refused(train: Train, tasks: Tasks) -> None:
    broken = tasks["left"].map(lambda _: {"ref_chosen_logps": float("nan")})
    with pytest.raises(TrainingError, match="step 1: the task weights of the method are not finite; lower"):
        train({**tasks, "left": broken}, "pike", pairs=2)


def test_divided_parameters_are_refused(experiment_data: dict[str, Any]) -> None:
    experiment_data["training"] |= {"fsdp": True, "processes": 2}
    experiment_data["methods"] = ["uniform", "pike"]
    with pytest.raises(ConfigError, match=r"methods\.pike: it measures whole gradients"):
        parse_experiment(experiment_data, "test")
