"""The arms of the comparison as data: what each trains, and what of it is tuned on validation.

Every arm that is tuned tries as many candidates. Uniform mixing and its like have a learning rate only, so they
try more of them; AMA-R and AMA-S share their tries between the learning rate and eta.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Options = dict[str, Any]

REFERENCE = "reference"
"""The name of the base model among the arms."""


@dataclass(frozen=True)
class Arm:
    """A generalist.

    `options` are those of its method (see `automixalign.method.mixers`, and `benchmarks.mixers` for ablations);
    two more are this benchmark's own: `learning_rate` multiplies the setup's, `average_iterates` goes to the
    method's specification.
    """

    name: str
    method: str
    options: Options = field(default_factory=dict)
    like: str | None = None
    """Takes over what was tuned for this arm, under its own options."""
    candidates: tuple[Options, ...] = ()
    total_compute: bool = False
    """Trains for the steps of the specialists on top."""
    cross_fit: bool = False
    """Its specialist losses are cross-fitted."""

    def tries(self, _tasks: Sequence[str]) -> tuple[Options, ...]:
        """What is tried on validation."""
        return self.candidates


@dataclass(frozen=True)
class Merge:
    """A merge of the specialists, at mergekit's defaults or by the best of `candidates` on validation."""

    name: str
    method: str
    candidates: tuple[Options, ...] = ({},)
    weights: tuple[float, ...] = ()
    """Tried for the specialist of each task in turn, beside one weight for all."""

    def tries(self, tasks: Sequence[str]) -> tuple[Options, ...]:
        """What is tried on validation."""
        each = tuple({"weights": {task: weight}} for task in tasks for weight in self.weights)
        return tuple({**options, **more} for options in self.candidates for more in ({}, *each))


_RATES = tuple({"learning_rate": factor} for factor in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0))
_ETAS = tuple({"learning_rate": rate, "eta": eta} for rate in (1.0, 2.0, 3.0) for eta in (0.01, 0.03))

BASELINES = (
    Arm("standard", "standard", candidates=_RATES),
    Arm("uniform", "uniform", candidates=_RATES),
    Arm("uniform-clip", "uniform-clip", candidates=_RATES),
)
AMA = (Arm("ama-r", "ama-r", candidates=_ETAS), Arm("ama-s", "ama-s", candidates=_ETAS))
TOTAL = (
    Arm("standard-total", "standard", like="standard", total_compute=True),
    Arm("uniform-total", "uniform", like="uniform", total_compute=True),
)
ABLATIONS = (
    Arm("ama-r-raw-loss", "ama-r", {"raw_loss": True}, like="ama-r"),
    Arm("ama-r-unclipped-gradient", "ama-r-ablation", {"unclipped_gradient": True}, like="ama-r"),
    Arm("ama-r-cross-fit", "ama-r", like="ama-r", cross_fit=True),
    Arm("ama-r-anneal", "ama-r-ablation", {"anneal": True, "eta": 0.5}, like="ama-r"),
    Arm("ama-r-average", "ama-r", {"average_iterates": 0.25}, like="ama-r"),
    Arm("uniform-average", "uniform", {"average_iterates": 0.25}, like="uniform"),
)
REMEDIES = (
    Arm(
        "ama-r-allocate",
        "ama-r",
        {"allocate": True},
        like="ama-r",
        candidates=tuple({"eta": eta} for eta in (0.01, 0.02, 0.03, 0.06, 0.1, 0.2)),
    ),
    Arm("ama-r-task-clip", "ama-r-ablation", {"task_clip": True}, like="ama-r"),
    Arm(
        "ama-r-discount",
        "ama-r-ablation",
        like="ama-r",
        candidates=tuple(
            {"discount": discount, "eta": eta} for discount in (0.9, 0.97, 0.99) for eta in (0.1, 0.3)
        ),
    ),
    Arm(
        "ama-r-optimistic",
        "ama-r-ablation",
        {"optimistic": True},
        like="ama-r",
        candidates=tuple({"eta": eta} for eta in (0.003, 0.01, 0.02, 0.03, 0.06, 0.1)),
    ),
    Arm(
        "ama-r-smooth",
        "ama-r",
        like="ama-r",
        candidates=tuple({"c": c, "eta": eta} for c in (0.2, 0.3, 0.5) for eta in (0.03, 0.1)),
    ),
)

DEFAULT_MERGES = tuple(
    Merge(method, method) for method in ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties")
)
_LAMBDAS = (0.3, 0.5, 0.7, 1.0, 1.5)
_DENSITIES = (0.2, 0.5, 0.8)
_SCALED = tuple({"lambda": scale} for scale in (0.2, *_LAMBDAS))
_PRUNED = tuple({"density": density, "lambda": scale} for density in _DENSITIES for scale in _LAMBDAS)
TUNED_MERGES = (
    Merge("linear-tuned", "linear", weights=(0.5, 2.0, 4.0)),
    Merge("task_arithmetic-tuned", "task_arithmetic", _SCALED, weights=(2.0,)),
    Merge("ties-tuned", "ties", tuple({**each, "lambda": 2 * each["lambda"]} for each in _PRUNED)),
    Merge("dare_linear-tuned", "dare_linear", _PRUNED),
)

HELD = (
    Arm("ama-r-task-clip", "ama-r-ablation", {"task_clip": True}, like="ama-r"),
    Arm("ama-r-allocate", "ama-r", {"allocate": True, "eta": 0.03}, like="ama-r"),
    Arm("ama-r-discount", "ama-r-ablation", {"discount": 0.99, "eta": 0.1}, like="ama-r"),
    Arm("ama-r-optimistic", "ama-r-ablation", {"optimistic": True, "eta": 0.01}, like="ama-r"),
)
"""The remedies as `synthetic-conflict` chose them, for a setup that had no say in it."""
_FEW_RATES = tuple({"learning_rate": factor} for factor in (1.0, 1.5, 2.0, 3.0))
_FEW_ETAS = tuple({"learning_rate": rate, "eta": eta} for rate in (1.0, 2.0) for eta in (0.1, 0.4))
FEW_TRIES = (
    Arm("standard", "standard", candidates=_FEW_RATES),
    Arm("uniform", "uniform", candidates=_FEW_RATES),
    Arm("uniform-clip", "uniform-clip", candidates=_FEW_RATES),
    Arm("ama-r", "ama-r", candidates=_FEW_ETAS),
    Arm("ama-s", "ama-s", candidates=_FEW_ETAS),
)
"""For setups whose runs take minutes.

The others chose etas of .01 and .03 for 400 steps: eta times steps is 4 to 12, and 5 or 20 for 50 steps.
"""
_TOTAL_RATES = tuple({"learning_rate": factor} for factor in (0.125, 0.25, 0.5, 1.0))
_TOTAL_ETAS = tuple({"learning_rate": rate, "eta": eta} for rate in (0.25, 0.5) for eta in (0.03, 0.1))
TUNED_TOTAL = (
    Arm("uniform-total", "uniform", candidates=_TOTAL_RATES, total_compute=True),
    Arm("standard-total", "standard", candidates=_TOTAL_RATES, total_compute=True),
    Arm("ama-r-total", "ama-r", candidates=_TOTAL_ETAS, total_compute=True),
)
"""With tries of their own: at the rate for 50 steps so few pairs are learnt by heart in 130.

AMA-R's, which needs the specialists as well, shows what its weights are worth in so long a training.
"""
_TWICE = {"learning_rate": 2.0}
ON_SMOLLM2 = (
    Arm("standard", "standard", {"learning_rate": 1.5}),
    Arm("uniform", "uniform", _TWICE),
    Arm("uniform-clip", "uniform-clip", _TWICE),
    Arm("ama-r", "ama-r", {**_TWICE, "eta": 0.1}),
    Arm("ama-s", "ama-s", {**_TWICE, "eta": 0.1}),
    Arm("uniform-total", "uniform", {"learning_rate": 0.5}, total_compute=True),
    Arm("standard-total", "standard", {"learning_rate": 0.5}, total_compute=True),
)
"""As `smollm2-two` chose them, for setups with more tasks on the same model, of which a seed takes an hour."""
AMA_R_TOTAL_ON_SMOLLM2 = Arm("ama-r-total", "ama-r", {"learning_rate": 0.5, "eta": 0.03}, total_compute=True)
"""As `smollm2-two` chose it, too."""
FEW_MERGES = (
    Merge("linear", "linear"),
    Merge("ties", "ties"),
    Merge("linear-tuned", "linear", weights=(2.0,)),
    Merge("task_arithmetic-tuned", "task_arithmetic", tuple({"lambda": scale} for scale in (0.3, 0.5, 0.8))),
)
PLAIN_MERGES = (
    Merge("linear", "linear"),
    Merge("ties", "ties"),
    Merge(
        "task_arithmetic-tuned", "task_arithmetic", tuple({"lambda": scale} for scale in (0.3, 0.5, 0.8, 1.0))
    ),
)
