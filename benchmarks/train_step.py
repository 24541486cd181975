"""Measures a training step of ours against TRL's: tokens a second, shares of time, part of the GEMM rate.

    python -m benchmarks.train_step [--sizes 1M 33M 135M] [--steps 5] [--precision bf16] [--json FILE]

The trainers run one after the other in one process. All start from the same weights and take the same pairs,
new ones in every step:

- `trl`: `trl.DPOTrainer` with its defaults: a live reference model, and `gradient_checkpointing`, which
  computes activations twice;
- `trl tuned`: with precomputed reference log-probabilities and without gradient checkpointing;
- `standard`, `ama-r`, `ama-s`: ours, twice, the second time in reverse order. AMA-S draws its tasks, so it
  takes some pairs twice.

Seconds and tokens a second are medians over the steps after the first. Tokens are those of the pairs: each side
with its prompt, without padding and recomputation. `of GEMM` is 6 N tokens / seconds (N parameters, arXiv
2001.08361) over the measured rate of the model's largest matrix product in that precision. Our packed batches
compute each prompt once; `computed` is the same ratio for the tokens that are computed.
"""

import copy
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments
from trl import DPOConfig, DPOTrainer

from automixalign.method.losses import Loss
from automixalign.method.mixers import registered_mixers
from automixalign.models.load import uses_bf16
from automixalign.quickstart.tiny_model import build_tokenizer
from automixalign.training.trainer import MixingTrainer
from benchmarks import harness, sizes

LONGEST = {"1M": 256, "33M": 512, "135M": 512}
PAIRS = {"1M": 16, "33M": 12, "135M": 6}
OURS = ("standard", "ama-r", "ama-s")
PHASES = ("forward", "backward", "optimiser", "rest")


class Stopwatch(TrainerCallback):  # type: ignore[misc]
    """Measures every step and its phases.

    Attributes:
        steps: seconds from the end of one step to the end of the next.
        tokens: number of tokens of each step's pairs.
        phases: phase -> seconds of each call.
    """

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.tokens: list[int] = []
        self.phases: dict[str, list[float]] = defaultdict(list)
        self.last = 0.0

    def attach(self, trainer: Any) -> None:
        """Measure the phases of a trainer; call this before it trains."""
        trainer.add_callback(self)
        compute_loss = self._timed("forward", trainer.compute_loss)

        def counted(model: Any, inputs: dict[str, Any], *others: Any, **options: Any) -> Any:
            self.tokens.append(int(inputs["tokens" if "tokens" in inputs else "attention_mask"].sum()))
            return compute_loss(model, inputs, *others, **options)

        trainer.compute_loss = counted
        trainer.accelerator.backward = self._timed("backward", trainer.accelerator.backward)

    def on_train_begin(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
        optimizer.step = self._timed("optimiser", optimizer.step)
        self.last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.steps.append(now - self.last)
        self.last = now

    def _timed(self, phase: str, call: Any) -> Any:
        def timed(*arguments: Any, **options: Any) -> Any:
            with self._counting(phase):
                return call(*arguments, **options)

        return timed

    @contextmanager
    def _counting(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.phases[phase].append(time.perf_counter() - started)

    def shares(self) -> dict[str, float]:
        """Each phase's share of the steps after the first."""
        whole = sum(self.steps[1:])
        parts = {phase: sum(taken[1:]) / whole for phase, taken in self.phases.items()}
        return {**parts, "rest": 1 - sum(parts.values())}


class _Tokenised(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer for rows that are tokenised already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def config(folder: Path, count: int, steps: int, bf16: bool, **options: Any) -> DPOConfig:
    """TRL's configuration for `count` pairs a step and process; `options` are keys of it."""
    return DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=count,
        max_steps=steps,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
        **{"save_strategy": "no", **options},
    )


def trl(model: Any, rows: list[dict[str, Any]], args: DPOConfig, tuned: bool) -> DPOTrainer:
    """TRL's trainer; tuned with the reference log-probabilities of the rows."""
    data = Dataset.from_list(rows)
    if not tuned:
        data = data.remove_columns(["ref_chosen_logps", "ref_rejected_logps"])
    reference, tokenizer = copy.deepcopy(model), build_tokenizer()
    trainer = _Tokenised(model, reference, args, train_dataset=data, processing_class=tokenizer)
    if tuned:  # its log-probabilities are columns already
        trainer.precompute_ref_logps, trainer.ref_model = True, None
    return trainer


def ours(
    model: Any, rows: list[dict[str, Any]], args: TrainingArguments, method: str, folder: Path, **options: Any
) -> MixingTrainer:
    """Our trainer on two tasks with half of the rows each; it writes `folder/log.jsonl`."""
    half = len(rows) // 2
    parts = {"left": rows[:half], "right": rows[half:]}
    tables = {
        task: Dataset.from_list([row | {"specialist_loss": 0.5} for row in part])
        for task, part in parts.items()
    }
    mixer = registered_mixers()[method]({name: len(part) for name, part in parts.items()}, args.seed)
    return MixingTrainer(
        model,
        args,
        datasets=tables,
        mixer=mixer,
        loss=Loss(),
        trajectory=folder / "log.jsonl",
        processing_class=build_tokenizer(),
        **options,
    )


def measure(size: str, steps: int, precision: str) -> dict[str, Any]:
    """Train every kind of trainer on the same pairs; returns seconds, tokens and shares by kind."""
    rows = sizes.pairs(PAIRS[size] * (steps + 1), LONGEST[size], sizes.SHAPES[size]["vocab_size"])
    model = sizes.model(size)
    bf16 = uses_bf16(precision)
    packed = sum(len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) - 1 for r in rows)
    result: dict[str, Any] = {
        "parameters": model.num_parameters(),
        "pairs": PAIRS[size],
        "tokens": sizes.tokens(rows),
        "computed": packed,
        "precision": "bf16" if bf16 else "fp32",
        "gemm": {name: sizes.gemm_rate(size, name == "bf16") for name in ("fp32", "bf16")},
        "kinds": {},
    }
    watches: dict[str, list[Stopwatch]] = defaultdict(list)
    for kind in ("trl", "trl tuned", *OURS, *reversed(OURS)):
        with tempfile.TemporaryDirectory() as scratch:
            folder, policy = Path(scratch), copy.deepcopy(model)
            tuning = {} if kind == "trl" else {"gradient_checkpointing": False}
            args = config(folder, PAIRS[size], steps + 1, bf16, **tuning)
            if kind in OURS:
                trainer: Any = ours(policy, rows, args, kind, folder)
            else:
                trainer = trl(policy, rows, args, kind == "trl tuned")
            watches[kind].append(Stopwatch())
            watches[kind][-1].attach(trainer)
            trainer.train()
    for kind, some in watches.items():
        timed = [each for watch in some for each in zip(watch.tokens[1:], watch.steps[1:], strict=True)]
        shares = [watch.shares() for watch in some]
        result["kinds"][kind] = {
            "seconds": statistics.median(seconds for _, seconds in timed),
            "all_seconds": [watch.steps for watch in some],
            "tokens_per_second": statistics.median(tokens / seconds for tokens, seconds in timed),
            "phases": {phase: statistics.fmean(share[phase] for share in shares) for phase in PHASES},
        }
    return result


def _show(result: dict[str, Any]) -> None:
    rate, kinds = result["gemm"][result["precision"]], result["kinds"]
    gemm = ", ".join(f"{speed / 1e9:.0f} in {name}" for name, speed in result["gemm"].items())
    title = (
        f"{result['parameters'] / 1e6:.1f} M parameters, {result['pairs']} pairs a step, "
        f"{result['precision']}; GEMM in GFLOP/s: {gemm}"
    )
    rows = []
    for kind, values in kinds.items():
        speed = values["tokens_per_second"]
        ratios = [speed / kinds[peer]["tokens_per_second"] for peer in ("trl", "trl tuned", "standard")]
        of_gemm = 6 * result["parameters"] * speed / rate
        computed = f"{of_gemm * result['computed'] / result['tokens']:.0%}" if kind in OURS else ""
        rows.append(
            [
                *(kind, f"{values['seconds']:.3f}", f"{speed:.0f}"),
                *(f"{ratio:.2f}" for ratio in ratios),
                *(f"{of_gemm:.0%}", computed),
                *(f"{values['phases'][phase]:.0%}" for phase in PHASES),
            ]
        )
    columns = ("kind", "s / step", "tokens / s", "x trl", "x trl tuned", "x standard", "of GEMM", "computed")
    harness.show(title, [*columns, *PHASES], rows)


def main() -> None:
    """Measure all sizes, print a table each, and write them as JSON."""
    parser = harness.parser(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=sizes.CPU_SIZES, default=list(sizes.CPU_SIZES))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="bf16")
    options = parser.parse_args()
    results = {size: measure(size, options.steps, options.precision) for size in options.sizes}
    for result in results.values():
        _show(result)
    harness.write(options, results)


if __name__ == "__main__":
    main()
