"""The preference losses: TRL's per-pair loss types, as functions of a pair's two log-ratios.

A mixer weighs and clips the loss of each pair, so it needs one number a pair. TRL returns the mean of a batch,
so its formulas (trl.DPOTrainer._compute_loss, TRL 1.16, where the papers are cited) stand here again, one line
each; the tests hold every one to TRL's value and gradient. Training, scoring and evaluation use these.
"""

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, assert_never

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from automixalign.system.errors import ConfigError
from automixalign.system.schema import Number, Positive, Schema, describe

if TYPE_CHECKING:
    from torch import Tensor
    from trl import DPOConfig

NLL = "sft"
"""TRL's name of the negative log-likelihood of the chosen answers, which may be added to a preference loss."""

_REFUSED = {
    "aot": "it sorts the log-ratios of a whole batch, so a pair has no loss of its own",
    "aot_unpaired": "it sorts the log-ratios of a whole batch, so a pair has no loss of its own",
    NLL: "it is a mean over all tokens of a batch; for an NLL term set training.nll_weight",
}
_SMOOTHED = ("robust", "exo_pair")
_DISCOPOP_TAU = 0.05  # the paper's, and TRL's default


def _per_pair(value: Any) -> Any:
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
    BeforeValidator(_per_pair),
]


class Loss(Schema):
    """Which loss of a preference pair; `sigmoid` is DPO (arXiv 2305.18290)."""

    loss_type: LossType = "sigmoid"
    """By TRL's name."""
    beta: Positive = 0.1
    """Strength of the pull towards the reference model."""
    label_smoothing: Annotated[Number, Field(ge=0, lt=0.5)] = 0.0
    """Of `robust` and `exo_pair`: the assumed share of swapped labels."""

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
        """L of every pair, shape (pairs,).

        Args:
            chosen: log-ratio log pi_theta(y+|x) - log pi_ref(y+|x), summed over tokens, shape (pairs,).
            rejected: the same of y-.
            chosen_tokens: length of y+, shape (pairs,); `ipo` and `sigmoid_norm` divide by it.
            rejected_tokens: length of y-.
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


def from_trl(args: "DPOConfig", eval_dataset: Any = None) -> tuple[Loss, float]:
    """The preference loss, and the weight of the NLL term, that TRL's configuration asks for.

    Raises:
        ConfigError: it asks for something that `Loss` does not cover, by TRL's name.
    """
    kinds = [args.loss_type] if isinstance(args.loss_type, str) else list(args.loss_type)
    weights = args.loss_weights or [1.0] * len(kinds)
    if kinds[1:] not in ([], [NLL]) or weights[0] != 1:
        raise ConfigError(f"loss_type: one loss of weight 1, then perhaps {NLL}; it is {kinds} with {weights}")
    uncovered = {
        "ld_alpha": args.ld_alpha is not None,
        "use_weighting": args.use_weighting,
        "f_divergence_type": args.f_divergence_type != "reverse_kl",
        "sync_ref_model": args.sync_ref_model,
        "eval_dataset": eval_dataset is not None,
    }
    for key, given in uncovered.items():
        if given:
            raise ConfigError(f"{key}: cannot be mixed by task; leave it at its default")
    try:
        loss = Loss(loss_type=kinds[0], beta=args.beta, label_smoothing=args.label_smoothing)
    except ValidationError as error:
        raise ConfigError(describe(error)) from error
    return loss, weights[1] if len(kinds) == 2 else 0.0
