"""Defines the arms of the comparison: what each trains or merges, and which options are tuned on validation.

Every tuned generalist of a setup tries the same number of candidates. Baselines have only a learning rate, so
they try more rates; AMA-R and AMA-S share their tries between the learning rate and eta.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

Options = dict[str, Any]

REFERENCE = "reference"
"""The arm of the base model."""


@dataclass(frozen=True)
class Arm:
    """A generalist.

    `options` are those of its method (`automixalign.method.mixers`; `benchmarks.mixers` for ablations), and two
    of this benchmark: `learning_rate` multiplies the setup's rate, `average_iterates` is a key of the method.
    """

    name: str
    method: str
    options: Options = field(default_factory=dict)
    like: str | None = None
    """Takes over the tuned options of this arm; its own options come first."""
    candidates: tuple[Options, ...] = ()
    total_compute: bool = False
    """Trains for the steps of all specialists on top of its own."""
    cross_fit: bool = False
    """Uses cross-fitted specialist losses."""

    def tries(self, _tasks: Sequence[str]) -> tuple[Options, ...]:
        """The candidates that are tried on validation."""
        return self.candidates


@dataclass(frozen=True)
class Merge:
    """A merge of the specialists, at mergekit's defaults or with the best of `candidates` on validation."""

    name: str
    method: str
    candidates: tuple[Options, ...] = ({},)
    weights: tuple[float, ...] = ()
    """Each is tried as the weight of each task's specialist in turn, beside equal weights."""
    like: ClassVar[None] = None

    def tries(self, tasks: Sequence[str]) -> tuple[Options, ...]:
        """The candidates that are tried on validation."""
        one_task = tuple({"weights": {task: weight}} for task in tasks for weight in self.weights)
        return tuple({**options, **more} for options in self.candidates for more in ({}, *one_task))


def _grid(**values: Sequence[float]) -> tuple[Options, ...]:
    """Every combination of the values; those of the last option change fastest."""
    return tuple(dict(zip(values, each, strict=True)) for each in itertools.product(*values.values()))


def _tuned(candidates: tuple[Options, ...], *methods: str) -> tuple[Arm, ...]:
    return tuple(Arm(method, method, candidates=candidates) for method in methods)


_BASELINES, _AMA = ("standard", "uniform", "uniform-clip"), ("ama-r", "ama-s")
BASELINES = _tuned(_grid(learning_rate=(0.5, 1.0, 1.5, 2.0, 3.0, 4.0)), *_BASELINES)
AMA = _tuned(_grid(learning_rate=(1.0, 2.0, 3.0), eta=(0.01, 0.03)), *_AMA)
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
_TASK_CLIP = Arm("ama-r-task-clip", "ama-r-ablation", {"task_clip": True}, like="ama-r")
_ETAS, _SMALL_ETAS = (0.01, 0.02, 0.03, 0.06, 0.1, 0.2), (0.003, 0.01, 0.02, 0.03, 0.06, 0.1)
_DISCOUNTS = _grid(discount=(0.9, 0.97, 0.99), eta=(0.1, 0.3))
_SMOOTHINGS = _grid(c=(0.2, 0.3, 0.5), eta=(0.03, 0.1))
REMEDIES = (
    Arm("ama-r-allocate", "ama-r", {"allocate": True}, "ama-r", _grid(eta=_ETAS)),
    _TASK_CLIP,
    Arm("ama-r-discount", "ama-r-ablation", {}, "ama-r", _DISCOUNTS),
    Arm("ama-r-optimistic", "ama-r-ablation", {"optimistic": True}, "ama-r", _grid(eta=_SMALL_ETAS)),
    Arm("ama-r-smooth", "ama-r", {}, "ama-r", _SMOOTHINGS),
)
HELD_OUT_REMEDIES = (
    _TASK_CLIP,
    Arm("ama-r-allocate", "ama-r", {"allocate": True, "eta": 0.03}, like="ama-r"),
    Arm("ama-r-discount", "ama-r-ablation", {"discount": 0.99, "eta": 0.1}, like="ama-r"),
    Arm("ama-r-optimistic", "ama-r-ablation", {"optimistic": True, "eta": 0.01}, like="ama-r"),
)
"""The remedies with the options that `synthetic-conflict` chose, for a setup that took no part in choosing."""
FEW_TRIES = (
    *_tuned(_grid(learning_rate=(1.0, 1.5, 2.0, 3.0)), *_BASELINES),
    *_tuned(_grid(learning_rate=(1.0, 2.0), eta=(0.1, 0.4)), *_AMA),
)
"""For setups whose runs take minutes. Their etas keep eta times steps near that of the other setups."""
_TOTAL_RATES = _grid(learning_rate=(0.125, 0.25, 0.5, 1.0))
_TOTAL_ETAS = _grid(learning_rate=(0.25, 0.5), eta=(0.03, 0.1))
TUNED_TOTAL = (
    Arm("uniform-total", "uniform", candidates=_TOTAL_RATES, total_compute=True),
    Arm("standard-total", "standard", candidates=_TOTAL_RATES, total_compute=True),
    Arm("ama-r-total", "ama-r", candidates=_TOTAL_ETAS, total_compute=True),
)
"""Tuned on their own: at the rate chosen for 50 steps, 130 steps overfit the few pairs.

AMA-R needs the specialists on top of this; its arm shows what its weights are worth in a longer training.
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
"""The options that `smollm2-two` chose, for setups with more tasks on the same model (an hour a seed)."""
AMA_R_TOTAL_ON_SMOLLM2 = Arm("ama-r-total", "ama-r", {"learning_rate": 0.5, "eta": 0.03}, total_compute=True)
"""The options that `smollm2-two` chose."""


def _lambdas(*scales: float) -> tuple[Options, ...]:
    return _grid(**{"lambda": scales})


_LINEAR, _TIES = Merge("linear", "linear"), Merge("ties", "ties")
_LAMBDAS = (0.3, 0.5, 0.7, 1.0, 1.5)
_PRUNED = _grid(**{"density": (0.2, 0.5, 0.8), "lambda": _LAMBDAS})
DEFAULT_MERGES = tuple(
    Merge(method, method) for method in ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties")
)
TUNED_MERGES = (
    Merge("linear-tuned", "linear", weights=(0.5, 2.0, 4.0)),
    Merge("task_arithmetic-tuned", "task_arithmetic", _lambdas(0.2, *_LAMBDAS), weights=(2.0,)),
    Merge("ties-tuned", "ties", tuple({**each, "lambda": 2 * each["lambda"]} for each in _PRUNED)),
    Merge("dare_linear-tuned", "dare_linear", _PRUNED),
)
FEW_MERGES = (
    _LINEAR,
    _TIES,
    Merge("linear-tuned", "linear", weights=(2.0,)),
    Merge("task_arithmetic-tuned", "task_arithmetic", _lambdas(0.3, 0.5, 0.8)),
)
PLAIN_MERGES = (_LINEAR, _TIES, Merge("task_arithmetic-tuned", "task_arithmetic", _lambdas(0.3, 0.5, 0.8, 1.0)))
