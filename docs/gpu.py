"""Write the computed table of docs/gpu.md, from the presets and the shapes of their models.

python docs/gpu.py [--check]    (part of `make pages`)
"""

import sys
from pathlib import Path
from typing import NamedTuple

from automixalign.config.experiment import Experiment
from automixalign.preflight.memory import TRAINED, weights_bytes
from pipelines.cli.options import load_experiment

PAGE = Path(__file__).with_suffix(".md")
START, END = "<!-- computed by docs/gpu.py -->\n", "<!-- end -->\n"
PAIRS, TOKENS = 60_000, 500
"""Pairs of a task without `limit`, and tokens of a prompt with one answer: about those of UltraFeedback."""
USE = 0.4
"""The assumed share of a GPU's peak in bf16."""


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
    def linear(self) -> int:
        """Parameters of all linear layers but the head."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.matrices)

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        norms = self.hidden + self.layers * (2 * self.hidden + 2 * 128 * self.head_norms)
        return self.linear + norms + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def adapter(self, rank: int) -> int:
        """Parameters of an adapter of all linear layers."""
        return rank * self.layers * sum(map(sum, self.matrices))


SHAPES = {
    "alignment-handbook/zephyr-7b-sft-full": Shape(4096, 32, 32, 8, 14336, 32000, False),
    "Qwen/Qwen3-1.7B": Shape(2048, 28, 16, 8, 6144, 151936, True, True),
}
H100, RTX_4090 = Gpu("H100 80 GB", 989e12), Gpu("RTX 4090 24 GB", 165e12)
GPUS = {"zephyr-7b": H100, "zephyr-7b-qlora": H100, "qwen3-lora": RTX_4090}


class Cost(NamedTuple):
    """What a preset takes; bytes are of one GPU."""

    weights: float
    gradients: float
    moments: float
    activations: float
    disk: float
    hours: float


def cost(preset: Experiment, gpu: Gpu) -> Cost:
    """The computed cost of a preset; docs/gpu.md says how."""
    shape, training = SHAPES[preset.base_model.source], preset.training
    adapter = shape.adapter(training.lora.rank) if training.lora else 0
    trained = adapter or shape.parameters
    shards = training.processes if training.fsdp else 1
    weights = weights_bytes(shape.parameters, shape.linear, adapter, preset.loading, bf16=True)
    stream = 4 if preset.loading.dtype == "fp32" else 2
    tokens = 2 * (training.micro_batch_size or 1) * preset.max_length
    layer = 2 * (4 * shape.hidden + 2 * 128 * (shape.heads + shape.kv_heads) + 4 * shape.mlp)
    kept = shape.layers * shape.hidden * stream if training.gradient_checkpointing else shape.layers * layer
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
        disk,
        work / (training.processes * gpu.flops * USE) / 3600,
    )


def table() -> str:
    """The table as Markdown."""
    head = ["preset", "GPUs", "weights", "gradients", "moments", "activations", "sum", "disk", "hours"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for name, gpu in GPUS.items():
        preset = load_experiment(name)
        each = cost(preset, gpu)
        sizes = [*each[:4], sum(each[:4]), each.disk]
        cells = [f"`{name}`", f"{preset.training.processes} x {gpu.name}"]
        cells += [f"{size / 1e9:.1f} GB" for size in sizes]
        lines.append(f"| {' | '.join([*cells, f'{each.hours:.1f}'])} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page with the computed table."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    return f"{before}{START}{table()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(page() != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page(), encoding="utf-8")
