"""The pass over all pairs under the reference model, against the precomputation of `trl.DPOTrainer`.

    python -m benchmarks.reference_pass [--sizes 1M 33M 135M] [--pairs 128] [--repeats 5] [--json FILE]

Both score the same tokenised pairs in turn, with the same number of sequences in a forward pass and in the same
precision. Ours is `automixalign.scoring.scorer.Scorer`, as the stage `reference_logps` uses it; TRL's is
`_precompute_ref_logps`. The table shows medians over the repeats, after one that is not counted. `differs` is
the largest difference between the two in log pi(chosen) - log pi(rejected) of a pair, which enters the loss.
"""

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
from trl import DPOConfig, DPOTrainer

from automixalign.quickstart.tiny_model import build_tokenizer
from automixalign.scoring.scorer import Scorer
from benchmarks import harness, sizes

LONGEST = {"1M": 256, "33M": 512, "135M": 512}
SEQUENCES = 16
PAIRS = {"1M": 256, "33M": 48, "135M": 16}


class _Tokenised(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer on tokenised pairs. It computes no reference log-probabilities by itself."""

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
    """The seconds of both passes over the same pairs, and how far their results differ."""
    rows = sizes.pairs(count, LONGEST[size], sizes.SHAPES[size]["vocab_size"])
    ids = Dataset.from_list(rows).remove_columns(["ref_chosen_logps", "ref_rejected_logps"])
    model = sizes.model(size)
    scorer = Scorer(sizes.model(size), SEQUENCES, precision)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _peer(model, Path(scratch), precision == "bf16")

        def theirs() -> Any:
            # TRL stores its results beside the data, and would read them from there in the next repeat.
            fresh = Dataset.from_list(list(ids))
            fresh._fingerprint = f"{time.monotonic_ns():x}"
            scored = trainer._precompute_ref_logps(fresh, "train", SEQUENCES // 2)
            return np.array([scored["ref_chosen_logps"], scored["ref_rejected_logps"]])

        def ours() -> Any:
            return np.array(scorer.logps(ids.data.table))

        durations: dict[str, list[float]] = {"trl": [], "ours": []}
        results: dict[str, Any] = {}
        for _ in range(repeats + 1):
            for name, call in (("trl", theirs), ("ours", ours)):
                results[name], seconds = _timed(call)
                durations[name].append(seconds)
    difference = np.diff(results["ours"], axis=0) - np.diff(results["trl"], axis=0)
    return {
        "parameters": model.num_parameters(),
        "pairs": count,
        "tokens": sizes.tokens(rows),
        "precision": precision,
        "seconds": {name: statistics.median(some[1:]) for name, some in durations.items()},
        "all_seconds": durations,
        "differs": float(np.abs(difference).max()),
    }


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


def main() -> None:
    """Measure all sizes in both precisions and print a table."""
    parser = harness.parser(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=sizes.CPU_SIZES, default=list(sizes.CPU_SIZES))
    parser.add_argument("--pairs", type=int, help=f"by default {PAIRS}")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # TRL's bars
    disable_progress_bars()
    results, rows = [], []
    for size in options.sizes:
        for precision in ("fp32", "bf16"):
            result = measure(size, options.pairs or PAIRS[size], options.repeats, precision)
            results.append({"size": size, **result})
            trl, ours = (result["pairs"] / result["seconds"][name] for name in ("trl", "ours"))
            numbers = (f"{trl:.1f}", f"{ours:.1f}", f"{ours / trl:.2f}", f"{result['differs']:.1e}")
            rows.append((size, result["pairs"], precision, *numbers))
    columns = ("model", "pairs", "precision", "trl, pairs / s", "ours, pairs / s", "x trl", "differs")
    harness.show("Log-probabilities under the reference model", columns, rows)
    harness.write(options, results)


if __name__ == "__main__":
    main()
