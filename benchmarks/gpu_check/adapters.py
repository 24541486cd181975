"""LoRA on a base model in its source's dtype, and on quantised ones: speed, memory, and the first loss."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from automixalign.config.training import LoraSpec
from automixalign.models.load import load_model
from automixalign.models.trainable import make_trainable
from automixalign.scoring.scorer import Scorer
from benchmarks.gpu_check.setting import Row, Setting, attempt, free_memory, missing, peak_memory, reset_peak
from benchmarks.gpu_check.steps import distance_from_ln_2
from benchmarks.gpu_check.trainings import Clock, loading_of, spec_of, train

_PRECISION = "auto"


def adapters(setting: Setting) -> Iterator[Row]:
    """Tokens a second, peak memory and first loss of LoRA on a bf16 base in 16, 8 and 4 bits."""
    rows = setting.rows(setting.warmup + setting.steps)
    with tempfile.TemporaryDirectory() as base:
        setting.model().to(torch.bfloat16).save_pretrained(base)
        free_memory()
        for bits in (None, "8bit", "4bit"):
            if bits and missing("bitsandbytes"):
                yield Row(bits, note="not measured: bitsandbytes is not installed")
            else:
                yield from attempt(bits or "16bit", partial(_adapter, setting, Path(base), rows, bits))


def _adapter(setting: Setting, base: Path, rows: list[dict[str, Any]], bits: str | None) -> Iterator[Row]:
    name, loading = bits or "16bit", loading_of("sdpa", dtype="source", quantize=bits)
    reset_peak()
    model = load_model(base, base, loading, _PRECISION)
    scorer = Scorer(model, 2 * setting.pairs, _PRECISION, loading)
    spec = spec_of(setting).model_copy(update={"lora": LoraSpec(quantize=bits)})
    clock = Clock(setting.warmup)
    policy = make_trainable(model, spec, seed=0)
    first = rows[: setting.pairs * setting.micro_steps]
    yield Row(f"{name}: first loss", distance_from_ln_2(setting, first, scorer, policy), "from ln 2")
    train(setting, policy, rows, "standard", clock)
    yield Row(name, clock.tokens / clock.seconds, "tokens/s")
    yield peak_memory(name)
