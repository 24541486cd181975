"""The pass over all pairs under the reference model: ours against `trl.DPOTrainer`'s precomputation.

    python -m benchmarks.reference_pass [--sizes 1M 33M 135M] [--pairs 128] [--repeats 5] [--json FILE]

Both score the same tokenised pairs, as many sequences a forward pass, in the same precision, in turn; ours is
`automixalign.scoring.scorer.Scorer`, as the step `reference_logps` calls it, TRL's is
`_precompute_ref_logps`. Medians over the repeats, after one that does not count. `differs` is the
largest difference between the two in what a pair enters the loss with, log pi(chosen) - log pi(rejected).
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from rich.console import Console
from rich.table import Table
from trl import DPOConfig, DPOTrainer

from automixalign.quickstart.tiny_model import build_tokenizer
from automixalign.scoring.scorer import Scorer
from automixalign.storage import files
from benchmarks import sizes

LONGEST = {"1M": 256, "33M": 512, "135M": 512}
SEQUENCES = 16
PAIRS = {"1M": 256, "33M": 48, "135M": 16}


class _Tokenised(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer, spared the tokenising, which computes no reference before it is asked."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def _peer(model: Any, folder: Path, bf16: bool) -> DPOTrainer:
    args = DPOConfig(
        output_dir=str(folder),
        bf16=bf16,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )
    rows = Dataset.from_list([{"prompt_ids": [3], "chosen_ids": [4], "rejected_ids": [5]}])
    trainer = _Tokenised(
        model, copy.deepcopy(model), args, train_dataset=rows, processing_class=build_tokenizer()
    )
    trainer.ref_model.eval()
    return trainer


def measure(size: str, count: int, repeats: int, precision: str) -> dict[str, Any]:
    """Seconds of either pass over the same pairs, and how far they differ."""
    rows = sizes.pairs(count, LONGEST[size], sizes.SHAPES[size]["vocab_size"])
    ids = Dataset.from_list(rows).remove_columns(["ref_chosen_logps", "ref_rejected_logps"])
    model = sizes.model(size)
    scorer = Scorer(sizes.model(size), SEQUENCES, precision)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _peer(model, Path(scratch), precision == "bf16")

        def theirs() -> Any:
            # TRL keeps its results beside the data, and would find them there.
            fresh = Dataset.from_list(list(ids))
            fresh._fingerprint = f"{time.monotonic_ns():x}"
            found = trainer._precompute_ref_logps(fresh, "train", SEQUENCES // 2)
            return np.array([found["ref_chosen_logps"], found["ref_rejected_logps"]])

        def ours() -> Any:
            return np.array(scorer.logps(ids.data.table))

        taken: dict[str, list[float]] = {"trl": [], "ours": []}
        results: dict[str, Any] = {}
        for _ in range(repeats + 1):
            for name, call in (("trl", theirs), ("ours", ours)):
                results[name], seconds = _timed(call)
                taken[name].append(seconds)
    difference = np.diff(results["ours"], axis=0) - np.diff(results["trl"], axis=0)
    return {
        "parameters": model.num_parameters(),
        "pairs": count,
        "tokens": sizes.tokens(rows),
        "precision": precision,
        "seconds": {name: statistics.median(some[1:]) for name, some in taken.items()},
        "all_seconds": taken,
        "differs": float(np.abs(difference).max()),
    }


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


def main() -> None:
    """Measure all sizes in both precisions and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=sizes.SHAPES, default=list(sizes.SHAPES))
    parser.add_argument("--pairs", type=int, help=f"by default {PAIRS}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # TRL's bars
    disable_progress_bars()
    table = Table(title="Log-probabilities of the reference")
    for column in ("model", "pairs", "precision", "trl, pairs / s", "ours, pairs / s", "x trl", "differs"):
        table.add_column(column, justify="right")
    result = []
    for size in options.sizes:
        for precision in ("fp32", "bf16"):
            found = measure(size, options.pairs or PAIRS[size], options.repeats, precision)
            result.append({"size": size, **found})
            speed = {name: found["pairs"] / seconds for name, seconds in found["seconds"].items()}
            ratio = speed["ours"] / speed["trl"]
            numbers = (f"{speed['trl']:.1f}", f"{speed['ours']:.1f}", f"{ratio:.2f}", f"{found['differs']:.1e}")
            table.add_row(size, str(found["pairs"]), precision, *numbers)
    Console(width=120).print(table)
    if options.json:
        files.write_json(options.json, result)


if __name__ == "__main__":
    main()
