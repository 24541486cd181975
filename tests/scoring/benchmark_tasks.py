"""Small tasks for lm-evaluation-harness, each a YAML file with its data beside it."""

from pathlib import Path
from typing import Any

import yaml

from automixalign.storage import files

QUESTIONS = [
    {"question": f"{a}+{b}=", "choices": [str(a + b), str(a + b + 1), str(a * b + 2)], "gold": 0}
    for a in range(4)
    for b in range(3)
]
SCORE = "def score(doc, results):\n    return {'passed': float(results[0] == doc['choices'][doc['gold']])}\n"


def write_choice(folder: Path, **changes: Any) -> Path:
    """A multiple-choice task, `choice.yaml`, on the questions in `data/questions.jsonl`."""
    files.write_jsonl(folder / "data" / "questions.jsonl", QUESTIONS)
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "data/*.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": name, "higher_is_better": True, "aggregation": "mean"} for name in METRICS],
        "metadata": {"version": 3.0},
    }
    path = folder / "choice.yaml"
    path.write_text(yaml.safe_dump(task | changes))
    return path


METRICS = ("acc", "acc_norm")


def write_generation(folder: Path, **changes: Any) -> Path:
    """A task of generated answers, `answers.yaml`: it includes `choice.yaml`, and `checks.py` verifies them."""
    write_choice(folder)
    (folder / "checks.py").write_text(SCORE)
    task = {
        "include": "choice.yaml",
        "task": "answers",
        "output_type": "generate_until",
        "doc_to_choice": None,
        "doc_to_target": "{{choices[gold]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
        "metric_list": [{"metric": "passed", "aggregation": "mean", "higher_is_better": True}],
    }
    path = folder / "answers.yaml"
    path.write_text(yaml.safe_dump(task | changes) + "process_results: !function checks.score\n")
    return path
