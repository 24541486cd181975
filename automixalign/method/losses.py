"""The preference losses: TRL's per-pair loss types, as functions of the two log-ratios of a pair.

A mixer weighs and clips the loss of each pair, but TRL returns the mean of a batch. Its formulas
(trl.DPOTrainer._compute_loss of TRL 1.16, which cites the papers) are therefore written here again, one line
each. Tests compare each to TRL's value and gradient. Training, scoring and evaluation use these.
"""

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, assert_never

from pydantic import BeforeValidator, Field, model_validator

from automixalign.system.schema import Number, Positive, Schema

if TYPE_CHECKING:
    from torch import Tensor

_REFUSED = {
    "aot": "it sorts the log-ratios of a whole batch, so a pair has no loss of its own",
    "aot_unpaired": "it sorts the log-ratios of a whole batch, so a pair has no loss of its own",
    "sft": "it is a mean over all tokens of a batch; for an NLL term set training.nll_weight",
}
_SMOOTHED = ("robust", "exo_pair")
_DISCOPOP_TAU = 0.05
"""The paper's value, and TRL's default."""


def _refuse_batch_losses(value: Any) -> Any:
    if isinstance(value, str) and value in _REFUSED:
        raise ValueError(f"the loss {value!r} cannot be mixed: {_REFUSED[value]}")
    return value


LossType = Annotated[
    Literal[
        "sigmoid",
        "sigmoid_norm",
        "hinge",
        "ipo",
        "robust",
        "exo_pair",
        "nca_pair",
        "bco_pair",
        "sppo_hard",
        "apo_zero",
        "apo_down",
        "discopop",
    ],
    BeforeValidator(_refuse_batch_losses),
]


class Loss(Schema):
    """The loss of a preference pair; `sigmoid` is DPO (arXiv 2305.18290)."""

    loss_type: LossType = "sigmoid"
    """TRL's name of the loss."""
    beta: Positive = 0.1
    """Strength of the pull towards the reference model."""
    label_smoothing: Annotated[Number, Field(ge=0, lt=0.5)] = 0.0
    """The assumed share of swapped labels; for `robust` and `exo_pair` only."""

    @model_validator(mode="after")
    def _smoothing_belongs_to_its_losses(self) -> Self:
        if self.label_smoothing and self.loss_type not in _SMOOTHED:
            raise ValueError(f"'label_smoothing' goes with the losses {' and '.join(_SMOOTHED)} only")
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            raise ValueError("the loss exo_pair needs 'label_smoothing' above 0")
        return self

    def per_pair(  # noqa: PLR0911, PLR0912  one line a loss
        self, chosen: "Tensor", rejected: "Tensor", chosen_tokens: "Tensor", rejected_tokens: "Tensor"
    ) -> "Tensor":
        """The loss of each of n pairs.

        Args:
            chosen: log-ratio log pi_theta(y+|x) - log pi_ref(y+|x), summed over tokens, shape (n,).
            rejected: the same of y-, shape (n,).
            chosen_tokens: length of y+, shape (n,); `ipo` and `sigmoid_norm` divide by it.
            rejected_tokens: length of y-, shape (n,).

        Returns:
            L of each pair, shape (n,).
        """
        from torch.nn.functional import logsigmoid, relu, softplus

        beta, epsilon = self.beta, self.label_smoothing
        margin = beta * (chosen - rejected)
        match self.loss_type:
            case "sigmoid":
                return -logsigmoid(margin)
            case "sigmoid_norm":
                return -logsigmoid(beta * (chosen / chosen_tokens - rejected / rejected_tokens))
            case "hinge":
                return relu(1 - margin)
            case "ipo":
                return (chosen / chosen_tokens - rejected / rejected_tokens - 1 / (2 * beta)) ** 2
            case "robust":
                flipped = epsilon * logsigmoid(-margin)
                return (flipped - (1 - epsilon) * logsigmoid(margin)) / (1 - 2 * epsilon)
            case "exo_pair":
                right, wrong = logsigmoid(margin), logsigmoid(-margin)
                log_right, log_wrong = math.log(1 - epsilon), math.log(epsilon)
                return right.exp() * (right - log_right) + wrong.exp() * (wrong - log_wrong)
            case "nca_pair":
                return -logsigmoid(beta * chosen) + (softplus(beta * chosen) + softplus(beta * rejected)) / 2
            case "bco_pair":
                return -logsigmoid(beta * chosen) - logsigmoid(-beta * rejected)
            case "sppo_hard":
                return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2
            case "apo_zero":
                return (-beta * chosen).sigmoid() + (beta * rejected).sigmoid()
            case "apo_down":
                return (beta * chosen).sigmoid() + (-margin).sigmoid()
            case "discopop":
                blend = (margin / _DISCOPOP_TAU).sigmoid()
                return -logsigmoid(margin) * (1 - blend) + (-margin).exp() * blend
            case _:
                assert_never(self.loss_type)
