"""mergekit's methods of merging specialists of one base model, and the parameters of each.

The configuration checks merges with this module, so it imports neither torch nor mergekit.

Every specialist has the merge weight 1, unless a merge has `weights` by task. As in mergekit, `linear`, `ties`
and `della` divide by the sum of the weights: they average models or task vectors. `task_arithmetic`, `dare_*`,
`della_linear` and `breadcrumbs*` add the task vectors. `normalize`, `weight` and `lambda` change that:
`task_arithmetic` with `normalize: 1` averages the task vectors. Flags are the numbers 0 and 1. Methods
that drop part of a task vector keep half of it (`density` 0.5). All other defaults are mergekit's.

mergekit's guide: https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from automixalign.system.plugins import Plugins
from automixalign.system.schema import did_you_mean

GUIDE = "https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md"


@dataclass(frozen=True)
class Limits:
    """The values of a parameter: from `low` to `high`, both included."""

    low: float = -math.inf
    high: float = math.inf
    above_low: bool = False
    """Excludes `low` itself."""
    kind: Literal["number", "integer", "flag"] = "number"

    def allow(self, value: float) -> bool:
        """Whether `value` is finite, of this kind and within the bounds."""
        if not math.isfinite(value) or (self.kind != "number" and value != int(value)):
            return False
        return (value > self.low if self.above_low else value >= self.low) and value <= self.high

    def convert(self, value: float) -> float:
        """`value` in mergekit's type: a bool for a flag, an int for an integer."""
        if self.kind == "flag":
            return bool(value)
        return int(value) if self.kind == "integer" else float(value)

    def __str__(self) -> str:
        if self.kind == "flag":
            return "0 or 1"
        noun = "an integer" if self.kind == "integer" else "a number"
        if math.isfinite(self.high):
            return f"{noun} in {'(' if self.above_low else '['}{self.low:g}, {self.high:g}]"
        return f"{noun} {'above' if self.above_low else 'of at least'} {self.low:g}"


FLAG = Limits(0, 1, kind="flag")
POSITIVE = Limits(0, above_low=True)
NOT_NEGATIVE = Limits(0)
FRACTION = Limits(0, 1)
SHARE = Limits(0, 1, above_low=True)

_AVERAGING = ("normalize", "normalize_weights")
"""Flags with which a method divides by the sum of the weights."""


@dataclass(frozen=True)
class MergeMethodSpec:
    """A merge method of mergekit, for specialists of one base model."""

    name: str
    paper: str
    """Address of the paper or page that describes it."""
    needs_base: bool
    """The method works on task vectors, so it needs mergekit's `base_model`."""
    limits: Mapping[str, Limits]
    """The range of every parameter."""
    default_parameters: Mapping[str, float] = field(default_factory=dict)
    per_model_parameters: Mapping[str, float] = field(default_factory=dict)
    """Defaults of the parameters that mergekit reads for each model; all specialists get the same value."""
    min_models: int = 1
    max_models: int | None = None
    averages: bool = False
    """Only the ratios of the `weight`s count. Methods with a flag of `_AVERAGING` leave it False."""
    first_is_base: bool = False
    """mergekit's `base_model` is the first specialist: the method moves it towards the second."""
    implementation: Any = None
    """The `MergeMethod` of mergekit that another package made; None for a method of mergekit itself."""

    def __post_init__(self) -> None:
        for key, limits in self.limits.items():
            if not isinstance(limits, Limits):
                raise TypeError(f"the limits of {key!r} must be Limits(low, high), not {limits!r:.80}")

    @property
    def module(self) -> str:
        """The module that defines the method."""
        return __name__ if self.implementation is None else str(self.implementation.implementation.__module__)

    @property
    def parameters(self) -> frozenset[str]:
        """The names of the parameters that may be set."""
        return frozenset(self.limits)

    @property
    def accepts(self) -> str:
        """The number of specialists in words, such as "exactly 2"."""
        if self.max_models is None:
            return f"at least {self.min_models}"
        if self.min_models == self.max_models:
            return f"exactly {self.max_models}"
        return f"{self.min_models} to {self.max_models}"


def _task_vectors(
    name: str,
    arxiv: str,
    *,
    signs: bool = False,
    normalize: bool = False,
    rescale: bool = False,
    **prune: float,
) -> MergeMethodSpec:
    """A method of mergekit's family "generalised task arithmetic".

    Args:
        name: mergekit's name.
        arxiv: the number of its paper.
        signs: the method elects a sign for each weight, as TIES does.
        normalize: default of the flag.
        rescale: default of the flag.
        prune: the parameters of its pruning. mergekit accepts them for the whole family, but other methods
            ignore them.
    """
    return MergeMethodSpec(
        name=name,
        paper=f"https://arxiv.org/abs/{arxiv}",
        needs_base=True,
        default_parameters={"normalize": normalize, "lambda": 1.0, **({"rescale": rescale} if prune else {})},
        per_model_parameters={"weight": 1.0, **prune},
        limits={
            "normalize": FLAG,
            "lambda": POSITIVE,
            "weight": POSITIVE,
            **({"rescale": FLAG} if prune else {}),
            **({"int8_mask": FLAG} if signs else {}),
            **{key: SHARE if key == "density" else FRACTION for key in prune},
        },
    )


_SPECS = (
    MergeMethodSpec(
        name="linear",
        paper="https://arxiv.org/abs/2203.05482",
        needs_base=False,
        default_parameters={"normalize": True},
        per_model_parameters={"weight": 1.0},
        limits={"normalize": FLAG, "weight": POSITIVE},
    ),
    MergeMethodSpec(
        name="slerp",
        paper="https://en.wikipedia.org/wiki/Slerp",
        needs_base=False,
        first_is_base=True,
        min_models=2,
        max_models=2,
        default_parameters={"t": 0.5},
        limits={"t": FRACTION},
    ),
    MergeMethodSpec(
        name="nuslerp",
        paper=f"{GUIDE}#nuslerp-nuslerp",
        needs_base=True,  # optional in mergekit; with it, the task vectors are interpolated
        min_models=2,
        max_models=2,
        averages=True,
        default_parameters={"nuslerp_flatten": True, "nuslerp_row_wise": False},
        per_model_parameters={"weight": 1.0},
        limits={"nuslerp_flatten": FLAG, "nuslerp_row_wise": FLAG, "weight": POSITIVE},
    ),
    MergeMethodSpec(
        name="multislerp",
        paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
        # With a base, mergekit fails on three or more task vectors that are zero, such as those of tensors that
        # a LoRA adapter does not change. Whole weights are never zero.
        needs_base=False,
        default_parameters={"normalize_weights": True, "eps": 1e-8},
        per_model_parameters={"weight": 1.0},
        limits={"normalize_weights": FLAG, "eps": POSITIVE, "weight": POSITIVE},
    ),
    MergeMethodSpec(
        name="karcher",
        paper="https://arxiv.org/abs/2603.04972",
        needs_base=False,
        default_parameters={"max_iter": 10, "tol": 1e-5},
        limits={"max_iter": Limits(1, kind="integer"), "tol": POSITIVE},
    ),
    _task_vectors("task_arithmetic", "2212.04089"),
    _task_vectors("ties", "2306.01708", signs=True, normalize=True, density=0.5),
    _task_vectors("dare_linear", "2311.03099", rescale=True, density=0.5),
    _task_vectors("dare_ties", "2311.03099", signs=True, rescale=True, density=0.5),
    _task_vectors("della_linear", "2406.11617", rescale=True, density=0.5, epsilon=0.15),
    _task_vectors("della", "2406.11617", signs=True, normalize=True, rescale=True, density=0.5, epsilon=0.15),
    _task_vectors("breadcrumbs", "2312.06795", density=0.5, gamma=0.01),
    _task_vectors("breadcrumbs_ties", "2312.06795", signs=True, density=0.5, gamma=0.01),
    MergeMethodSpec(
        name="sce",
        paper="https://arxiv.org/abs/2408.07990",
        needs_base=True,
        min_models=2,  # it selects by the variance between specialists
        default_parameters={"select_topk": 1.0},
        limits={"select_topk": SHARE, "int8_mask": FLAG},
    ),
    MergeMethodSpec(
        name="model_stock",
        paper="https://arxiv.org/abs/2403.19522",
        needs_base=True,
        min_models=2,
        default_parameters={"filter_wise": False},
        limits={"filter_wise": FLAG},
    ),
    MergeMethodSpec(
        name="ram",
        paper="https://arxiv.org/abs/2601.13572",
        needs_base=True,
        default_parameters={"epsilon": 1e-5},
        limits={"epsilon": NOT_NEGATIVE},
    ),
    MergeMethodSpec(
        name="ramplus_tl",
        paper="https://arxiv.org/abs/2601.13572",
        needs_base=True,
        default_parameters={"r": 0.1, "alpha": 0.2, "epsilon": 1e-5},
        # mergekit divides by epsilon where the specialists share no position: it may not be 0.
        limits={"r": NOT_NEGATIVE, "alpha": NOT_NEGATIVE, "epsilon": POSITIVE},
    ),
    MergeMethodSpec(
        name="arcee_fusion",
        paper=f"{GUIDE}#arcee-fusion-arcee_fusion",
        needs_base=False,
        first_is_base=True,
        min_models=2,
        max_models=2,
        limits={},
    ),
    MergeMethodSpec(
        name="nearswap",
        paper="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
        needs_base=False,
        first_is_base=True,
        min_models=2,
        max_models=2,
        default_parameters={"t": 1e-4},
        limits={"t": POSITIVE},
    ),
)

_merges: Plugins[MergeMethodSpec] = Plugins("merge")
for _spec in _SPECS:
    _merges.register(_spec.name)(_spec)
registered_merges = cache(_merges.load)
"""Every method that merges specialists of one base, by its name: mergekit's, then those of other packages."""


def register(**description: Any) -> Callable[[Any], MergeMethodSpec]:
    """Make a `MergeMethod` of mergekit known, as a decorator.

    Args:
        description: the fields of `MergeMethodSpec`, without `implementation`.

    Returns:
        A function from the method, such as one of mergekit's decorator `merge_method`, to its description.

    Raises:
        ValueError: another method has the name.
    """

    def add(implementation: Any) -> MergeMethodSpec:
        spec = MergeMethodSpec(**description, implementation=implementation)
        return _merges.register(spec.name)(spec)

    return add


EXCLUDED: dict[str, str] = {"passthrough": "it stacks layers of one model at a time and merges no weights"}
"""The other methods mergekit registers, and why they cannot merge specialists."""


def check(name: str, models: int, parameters: Mapping[str, float]) -> None:
    """Check that a method can merge `models` specialists with these parameters.

    Raises:
        ValueError: it cannot; the message names the method and what is allowed.
    """
    if name in EXCLUDED:
        raise ValueError(f"{name} cannot merge specialists: {EXCLUDED[name]}; use {_method_names()}")
    if name not in registered_merges():
        hint = did_you_mean(name, registered_merges())
        raise ValueError(f"unknown merge method {name!r}{hint}; known are {_method_names()}")
    spec = registered_merges()[name]
    if models < spec.min_models or (spec.max_models is not None and models > spec.max_models):
        noun = "specialist" if spec.accepts.endswith(" 1") else "specialists"
        raise ValueError(f"{name} merges {spec.accepts} {noun}, got {models}")
    for key, value in parameters.items():
        if key not in spec.limits:
            allowed = ", ".join(sorted(spec.limits)) or "no parameters"
            hint = did_you_mean(key, spec.limits)
            raise ValueError(f"{name} has no parameter {key!r}{hint}; it takes {allowed}")
        if not spec.limits[key].allow(value):
            raise ValueError(f"{name}: {key} must be {spec.limits[key]}, got {value:g}")
    _check_della(name, {**spec.per_model_parameters, **parameters})


def resolve(name: str, parameters: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Complete parameters that passed `check` with the defaults.

    Returns:
        The parameters of the whole merge, and those of each specialist; flags are bools.
    """
    spec = registered_merges()[name]
    per_model = dict(spec.per_model_parameters)
    shared = dict(spec.default_parameters)
    for key, value in parameters.items():
        (per_model if key in per_model else shared)[key] = value
    return (
        {key: spec.limits[key].convert(value) for key, value in shared.items()},
        {key: spec.limits[key].convert(value) for key, value in per_model.items()},
    )


def scale_counts(name: str, parameters: Mapping[str, float]) -> bool:
    """Whether a common factor of the weights of all specialists changes the merge: it does not average them."""
    shared, _ = resolve(name, parameters)
    return not any(shared.get(flag) for flag in _AVERAGING) and not registered_merges()[name].averages


def _check_della(name: str, parameters: Mapping[str, float]) -> None:
    """DELLA keeps a weight with a probability between density - epsilon and density + epsilon."""
    if "epsilon" not in parameters or "density" not in parameters or parameters["density"] == 1:
        return
    density, epsilon = parameters["density"], parameters["epsilon"]
    if density - epsilon <= 0 or density + epsilon >= 1:
        raise ValueError(
            f"{name}: density - epsilon and density + epsilon must be between 0 and 1, "
            f"got density {density:g} and epsilon {epsilon:g}"
        )


def _method_names() -> str:
    return ", ".join(sorted(registered_merges()))
