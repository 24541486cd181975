"""Each preference loss against TRL's own value and gradient, and what is refused."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from datasets import Dataset
from pydantic import ValidationError
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from automixalign.config.experiment import Experiment
from automixalign.method.losses import Loss, LossType
from automixalign.models.load import load_full_model
from automixalign.system.schema import describe

TYPES = get_args(get_args(LossType)[0])
LENGTHS = [(3, 7), (1, 1), (12, 2), (5, 5)]


def options(loss_type: str) -> dict[str, Any]:
    smoothed = {"label_smoothing": 0.2} if loss_type in ("robust", "exo_pair") else {}
    return {"loss_type": loss_type, "beta": 0.3, **smoothed}


@pytest.fixture(scope="module")
def trl_trainer(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> DPOTrainer:
    """TRL's trainer, whose loss type the tests set."""
    args = DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
    )
    row = {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    return DPOTrainer(
        str(base_model), args=args, train_dataset=Dataset.from_dict(row), processing_class=tokenizer
    )


def batch(trainer: DPOTrainer) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(10, 60, (count,), generator=generator).tolist()

    def logp(tokens: int) -> float:
        """Near what a policy with random weights gives, so that the log-ratios are of either sign."""
        return -4.6 * tokens + float(torch.randn(1, generator=generator))

    rows = [
        {
            "prompt_ids": ids(4),
            "chosen_ids": ids(chosen),
            "rejected_ids": ids(rejected),
            "ref_chosen_logps": logp(chosen),
            "ref_rejected_logps": logp(rejected),
        }
        for chosen, rejected in LENGTHS
    ]
    return dict(trainer.data_collator(rows))


@pytest.mark.parametrize("loss_type", TYPES)
def test_the_mean_and_its_gradient_are_trl_s(loss_type: str, trl_trainer: DPOTrainer, base_model: Path) -> None:
    given = options(loss_type)
    trl_trainer.loss_types, trl_trainer.beta = [loss_type], given["beta"]
    trl_trainer.loss_weights = [1.0]
    trl_trainer.precompute_ref_logps = True
    trl_trainer.label_smoothing = given.get("label_smoothing", 0.0)
    policy = trl_trainer.model
    policy.load_state_dict(load_full_model(base_model).state_dict())
    inputs = batch(trl_trainer)
    calls: list[torch.Tensor] = []
    hook = policy.register_forward_hook(lambda *call: calls.append(call[-1].log_probs.sum(1)))
    expected = trl_trainer.compute_loss(policy, {key: value.clone() for key, value in inputs.items()})
    hook.remove()
    logps, tokens = calls[0].chunk(2), inputs["completion_mask"].sum(1).chunk(2)
    chosen, rejected = logps[0] - inputs["ref_chosen_logps"], logps[1] - inputs["ref_rejected_logps"]
    assert (chosen - rejected).abs().min() > 0
    per_pair = Loss(**given).per_pair(chosen, rejected, *tokens)
    assert per_pair.shape == (len(LENGTHS),)
    assert per_pair.mean().item() == pytest.approx(expected.item(), rel=1e-5)
    parameters = list(policy.parameters())
    ours = torch.autograd.grad(per_pair.mean(), parameters, retain_graph=True)
    theirs = torch.autograd.grad(expected, parameters)
    for left, right in zip(ours, theirs, strict=True):
        assert torch.allclose(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss_type", TYPES)
def test_each_pair_has_a_loss_of_its_own(loss_type: str) -> None:
    """The loss of a pair does not change with the others in its batch, and is finite for a large margin."""
    chosen, rejected = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    tokens = torch.tensor([1, 5, 2, 9, 4, 3])
    loss = Loss(**options(loss_type))
    together = loss.per_pair(chosen, rejected, tokens, tokens.flip(0))
    for row in range(6):
        one = slice(row, row + 1)
        alone = loss.per_pair(chosen[one], rejected[one], tokens[one], tokens.flip(0)[one])
        assert torch.equal(alone, together[one])
    wide = loss.per_pair(*(torch.tensor([value], dtype=torch.float64) for value in (2e3, -2e3, 1.0, 1.0)))
    assert torch.isfinite(wide).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_type": "aot"}, r"^training\.loss_type: the loss 'aot' cannot be mixed: it sorts"),
        ({"loss_type": "aot_unpaired"}, r"^training\.loss_type: the loss 'aot_unpaired' cannot be mixed"),
        ({"loss_type": "sft"}, r"^training\.loss_type: .*'sft'.*set training\.nll_weight"),
        ({"loss_type": "kto"}, r"^training\.loss_type: .*'sigmoid'.*'apo_zero'.*'kto'"),
        ({"label_smoothing": 0.1}, r"^training: 'label_smoothing' goes with the losses robust and exo_pair"),
        ({"loss_type": "exo_pair"}, r"^training: the loss exo_pair needs 'label_smoothing' above 0"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, r"^training\.label_smoothing: .*less than 0\.5"),
    ],
)
def test_other_losses_are_refused_by_name(
    experiment_data: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    experiment_data["training"] |= changes
    with pytest.raises(ValidationError) as refusal:
        Experiment.model_validate(experiment_data)
    assert re.search(message, describe(refusal.value)), describe(refusal.value)
