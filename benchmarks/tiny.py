"""Makes the smallest models, data and configurations, for tests and benchmarks."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from automixalign.config.data import DataSettings
from automixalign.config.evaluation import ScoringSettings
from automixalign.data.prepare import prepare_data
from automixalign.data.store import SPLITS
from automixalign.models.base_address import BaseAddress
from automixalign.scoring import caches
from automixalign.scoring.reference_logps import write_reference_logps
from automixalign.scoring.verifiers.registry import make_verifier
from automixalign.storage import files

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from automixalign.training.specialist import SpecialistTraining

TASKS = ("format", "refusal")
MAX_LENGTH = 64


def llama(seed: int = 0, **config: Any) -> "LlamaForCausalLM":
    """A Llama with random weights of a seed; `config` changes its shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    }
    return LlamaForCausalLM(LlamaConfig(**{**shape, **config}))


def write_base_model(folder: Path) -> None:
    """Write a tiny Llama, and a tokenizer with one token a character and a chat template."""
    from automixalign.quickstart.tiny_model import build_tokenizer

    tokenizer = build_tokenizer()
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    with files.replacing(folder) as temporary:
        llama(vocab_size=len(tokenizer), **ids).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def data_settings() -> DataSettings:
    """The settings of two synthetic tasks of 30 pairs, `format` and `refusal`."""
    return DataSettings.model_validate(
        {
            "seed": 0,
            "tasks": [{"name": name, "source": f"synthetic:{name}", "limit": 30} for name in TASKS],
            "split": {"test": 0.3},
            "max_length": MAX_LENGTH,
            "fingerprints": ["", ""],
        }
    )


def prepare(settings: DataSettings, base_model: Path, folder: Path) -> dict[str, Any]:
    """Prepare the tasks of some settings with the tokenizer of a base model; return the card."""
    from automixalign.models.load import load_tokenizer

    return prepare_data(settings, load_tokenizer(base_model, settings.max_length), make_verifier, folder)


def write_data(base_model: Path, folder: Path) -> None:
    """Prepare the two tasks."""
    prepare(data_settings(), base_model, folder)


def prepare_rows(rows: list[dict[str, Any]], base_model: Path, folder: Path, max_length: int) -> dict[str, Any]:
    """Prepare one task with these rows; return the card."""
    source = folder.with_name("rows.jsonl")
    files.write_jsonl(source, rows)
    return prepare_source(source, base_model, folder, max_length)


def prepare_source(source: Path, base_model: Path, folder: Path, max_length: int) -> dict[str, Any]:
    """Prepare one task named `task` from a file; return the card."""
    settings = {
        "seed": 0,
        "tasks": [{"name": "task", "source": str(source)}],
        "split": {"test": 0.3},
        "max_length": max_length,
        "fingerprints": [""],
    }
    return prepare(DataSettings.model_validate(settings), base_model, folder)


def write_references(data: Path, base_model: Path, folder: Path) -> None:
    """Write the reference log-probabilities of the two tasks."""
    write_reference_logps(ScoringSettings(seed=0, batch_size=16, precision="fp32"), data, base_model, folder)


def write_losses(data: Path, reference_logps: Path, folder: Path) -> list[Path]:
    """Write a cache a task of made-up specialist losses, some above and some below ln 2; return the caches."""
    generator = np.random.default_rng(0)
    for task in TASKS:
        tables, means = {}, {}
        for split in SPLITS:
            scores = caches.read_cache(reference_logps / task, split)
            losses = generator.uniform(0.4, 0.8, size=len(scores))
            tables[split] = scores.append_column(caches.LOSS, pa.array(losses))
            means[split] = float(losses.mean()) if len(losses) else 0.0
        caches.write_cache(folder / task, task, tables, data, mean_loss=means, gap=0.0, cross_fit=False)
    return [folder / task for task in reversed(TASKS)]


class World(NamedTuple):
    """The inputs of the stages of a tiny experiment. Do not change the files."""

    base_model: Path
    data: Path
    reference_logps: Path
    losses: list[Path]


@cache
def world() -> World:
    """The inputs of this process, which removes them when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="ama-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    base_model, data, reference_logps = folder / "model", folder / "data", folder / "reference_logps"
    write_base_model(base_model)
    BaseAddress("org/base", "0" * 40).write(base_model)  # adapters stay adapters
    write_data(base_model, data)
    write_references(data, base_model, reference_logps)
    return World(base_model, data, reference_logps, write_losses(data, reference_logps, folder / "losses"))


def specialist_training(output: Path, steps: int = 3, **options: Any) -> "SpecialistTraining":
    """A training of the specialist of `format`; `options` are keys of `training`."""
    from automixalign.config.training import SpecialistSettings
    from automixalign.training.specialist import SpecialistTraining

    settings = {
        "seed": 0,
        "training": {"batch_size": 4, "learning_rate": 1e-3, **options},
        "budget": {"steps": steps},
    }
    return SpecialistTraining(
        settings=SpecialistSettings.model_validate(settings),
        task="format",
        data=world().data,
        reference_logps=world().reference_logps,
        base_model=world().base_model,
        output=output / "model",
        trajectory=output / "trajectory.jsonl",
    )


def experiment() -> dict[str, Any]:
    """A configuration whose whole run takes seconds."""
    return {
        "name": "tiny",
        "base_model": {"source": "tiny", "tiny": {"hidden_size": 16, "layers": 1, "heads": 2, "steps": 2}},
        "tasks": [
            {"name": "arithmetic", "source": "synthetic:arithmetic", "limit": 20, "verifier": "exact"},
            {"name": "format", "source": "synthetic:format", "limit": 20},
        ],
        "max_length": MAX_LENGTH,
        "training": {"batch_size": 4, "learning_rate": 0.001},
        "budget": {"specialist": {"steps": 2}, "generalist": {"steps": 3}},
        "methods": ["uniform"],
        "merges": [],
    }
