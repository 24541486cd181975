"""Write the computed tables of docs/gpu.md, from the presets and the shapes of their models.

python docs/gpu.py [--check]    (part of `make pages`)
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from automixalign.config.experiment import Experiment
from automixalign.preflight.memory import TRAINED, weights_bytes
from automixalign.training.checkpoints.size import checkpoint_bytes
from pipelines.cli.options import load_experiment

PAGE = Path(__file__).with_suffix(".md")
PAIRS, TOKENS = 60_000, 500
"""Pairs of a task without `limit`, and tokens of a prompt with one answer: about those of UltraFeedback.

Its card (https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized) has 61,135 pairs in 406 MB. A
row holds its prompt four times, its chosen answer twice and its rejected answer once. So a prompt with one
answer has about 2,000 characters; a token has about four.
"""
USE = 0.4
"""The assumed share of a GPU's peak in bf16."""
COPY_RATE = 4e9
"""Assumed bytes a second from a GPU to memory that is not pinned, in each process."""
DISK_RATE = 1e9
"""Assumed bytes a second that all processes together write."""
DIGEST_RATE = 2e9
"""Assumed bytes a second of SHA-256 on one core."""


class Gpu(NamedTuple):
    """The GPU that a preset is written for, by NVIDIA's data sheets."""

    name: str
    flops: float
    """Dense operations a second in bf16."""


class Shape(NamedTuple):
    """A decoder as transformers' `mistral` and `qwen3` build it: gated MLPs, grouped heads of 128."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    tied: bool
    head_norms: bool = False

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """The linear layers of one layer of the decoder."""
        queries, keys = 128 * self.heads, 128 * self.kv_heads
        attention = [(self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden)]
        return attention + [(self.hidden, self.mlp)] * 2 + [(self.mlp, self.hidden)]

    @property
    def layer(self) -> int:
        """Parameters of the linear layers of one layer of the decoder."""
        return sum(inputs * outputs for inputs, outputs in self.matrices)

    @property
    def ends(self) -> int:
        """Parameters of the embeddings and the head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        norms = self.hidden + self.layers * (2 * self.hidden + 2 * 128 * self.head_norms)
        return self.layers * self.layer + norms + self.ends

    def adapter(self, rank: int) -> int:
        """Parameters of an adapter of all linear layers."""
        return rank * self.layers * sum(map(sum, self.matrices))


SHAPES = {
    "alignment-handbook/zephyr-7b-sft-full": Shape(4096, 32, 32, 8, 14336, 32000, False),
    "Qwen/Qwen3-1.7B": Shape(2048, 28, 16, 8, 6144, 151936, True, True),
}
"""By the `config.json` of the models."""
H100, RTX_4090 = Gpu("H100 SXM 80 GB", 989e12), Gpu("RTX 4090 24 GB", 165e12)
GPUS = {"zephyr-7b": H100, "zephyr-7b-qlora": H100, "qwen3-lora": RTX_4090}


class Cost(NamedTuple):
    """What a preset takes; bytes are of one GPU."""

    weights: float
    gradients: float
    moments: float
    activations: float
    copies: float
    disk: float
    hours: float


def trained_parameters(preset: Experiment) -> int:
    """Parameters that a training of a preset changes."""
    shape, lora = SHAPES[preset.base_model.source], preset.training.lora
    return shape.adapter(lora.rank) if lora else shape.parameters


def cost(preset: Experiment, gpu: Gpu) -> Cost:
    """The computed cost of a preset; docs/gpu.md says how."""
    shape, training = SHAPES[preset.base_model.source], preset.training
    trained = trained_parameters(preset)
    adapter = trained if training.lora else 0
    shards = training.processes if training.fsdp else 1
    linear = shape.layers * shape.layer
    weights = weights_bytes(shape.parameters, linear, adapter, preset.loading, bf16=True)
    stream = 4 if preset.loading.dtype == "fp32" else 2
    tokens = 2 * (training.micro_batch_size or 1) * preset.max_length
    layer = 2 * (4 * shape.hidden + 2 * 128 * (shape.heads + shape.kv_heads) + 4 * shape.mlp)
    kept = shape.layers * shape.hidden * stream if training.gradient_checkpointing else shape.layers * layer
    # FSDP: the weights of two layers, and gradients in bf16 that become fp32.
    copies = (
        2 * (2 * shape.layer + shape.ends) + 6 * (shape.layer + shape.ends) if training.fsdp else 2 * trained
    )
    base = 2 * shape.parameters
    model = TRAINED * adapter or base
    disk = base * (1 + len(preset.merges)) + model * (len(preset.tasks) + len(preset.methods))
    # Forward 2, gradients of activations 2, of weights 2 if they are trained, and the forward pass again.
    flops = 4 + (0 if adapter else 2) + (2 if training.gradient_checkpointing else 0)
    pairs = sum(source.limit or PAIRS for task in preset.tasks for source in task.sources)
    work = pairs * 2 * TOKENS * shape.parameters * flops * (1 + len(preset.methods))
    return Cost(
        weights / shards,
        TRAINED * trained / shards,
        2 * TRAINED * trained / shards,
        tokens * (kept + layer),
        copies,
        disk,
        work / (training.processes * gpu.flops * USE) / 3600,
    )


def presets_table() -> list[list[str]]:
    """Memory of a GPU, disk and hours."""
    head = ["preset", "GPUs", "weights", "gradients", "moments", "activations", "bf16 copies", "at least"]
    rows = [[*head, "models on disk", "hours"]]
    for name, gpu in GPUS.items():
        preset = load_experiment(name)
        each = cost(preset, gpu)
        memory = each[:5]
        sizes = [_gigabytes(size) for size in (*memory, sum(memory), each.disk)]
        rows.append([f"`{name}`", f"{preset.training.processes} x {gpu.name}", *sizes, f"{each.hours:.1f}"])
    return rows


def checkpoints_table() -> list[list[str]]:
    """Bytes of checkpoints, and how long they stop a training."""
    head = ["preset", "trained parameters", "checkpoint", "each process writes", "the training stops for"]
    rows = [[*head, "share of the time", "complete after"]]
    for name in GPUS:
        training = load_experiment(name).training
        trained, processes = trained_parameters(load_experiment(name)), training.processes
        size = checkpoint_bytes(trained)
        stop = size / processes / COPY_RATE
        rows.append(
            [
                f"`{name}`",
                f"{trained / 1e6:,.0f} M",
                _gigabytes(size),
                _gigabytes(size / processes),
                f"{stop:.1f} s",
                f"{stop / (60 * training.checkpoint_minutes):.2%}",
                f"{stop + size / DISK_RATE + size / DIGEST_RATE:.0f} s",
            ]
        )
    return rows


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def page() -> str:
    """The page with the computed tables."""
    text = PAGE.read_text(encoding="utf-8")
    tables: dict[str, Callable[[], list[list[str]]]] = {
        "presets": presets_table,
        "checkpoints": checkpoints_table,
    }
    for name, rows_of in tables.items():
        head, *rows = rows_of()
        lines = "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))
        start, end = f"<!-- {name}: computed by docs/gpu.py -->\n", "<!-- end -->"
        before, _, rest = text.partition(start)
        text = f"{before}{start}{lines}{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(page() != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page(), encoding="utf-8")
