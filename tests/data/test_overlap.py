"""What tasks share is counted; near-duplicates go to one split; prompts of others' test sets are dropped."""

from pathlib import Path
from typing import Any

import pytest

from automixalign.config.data import DataSettings, DecontaminationSpec
from automixalign.data.overlap.decontaminate import Contamination
from automixalign.data.store import SPLITS, read_split
from automixalign.system.errors import DataError
from benchmarks import tiny
from tests.data.rows import Data, conversation, write_rows

STORY = "the old sailor told the children of the harbour a long story about a storm far out at sea"


def prepared(folder: Path, base_model: Path, tasks: dict[str, list[Data]], **settings: Any) -> dict[str, Any]:
    specs = [
        {"name": name, "source": str(write_rows(folder / f"{name}.jsonl", rows))}
        for name, rows in tasks.items()
    ]
    values = {"seed": 0, "max_length": 400, "split": {}, "fingerprints": [""] * len(specs), **settings}
    return tiny.prepare(DataSettings.model_validate({"tasks": specs, **values}), base_model, folder / "out")


def rows(count: int, first: int = 0, answer: str = "yes") -> list[Data]:
    return [conversation(f"question {number}", answer, "no") for number in range(first, first + count)]


def test_shared_prompts_and_pairs_are_counted_and_said(tmp_path: Path, base_model: Path) -> None:
    tasks = {
        "one": rows(40),
        "two": [*rows(10, first=30), *rows(20, first=20, answer="aye")],
        "three": rows(20, 90),
    }
    card = prepared(tmp_path, base_model, tasks)
    assert card["shared"] == [{"tasks": ["one", "two"], "prompts": 20, "pairs": 10}]
    assert any("tasks one and two share 20 prompts and 10 whole pairs" in text for text in card["warnings"])


def test_near_duplicates_go_to_one_split(tmp_path: Path, base_model: Path) -> None:
    """Forty stories, each told in five ways that differ in one word; without the key they part."""
    tasks: dict[str, list[Data]] = {"one": [], "two": []}
    for number in range(40):
        # Every story has words of its own, so that stories are not alike.
        words = " ".join(f"{word}{number}" for word in STORY.split())
        for way in range(5):
            tasks["one" if way < 3 else "two"].append(conversation(f"{words} way{way}", "yes", "no"))

    def splits_of_stories(**settings: Any) -> tuple[list[set[str]], dict[str, Any]]:
        card = prepared(tmp_path, base_model, tasks, **settings)
        splits: list[set[str]] = [set() for _ in range(40)]
        for task in tasks:
            for split in SPLITS:
                for row in read_split(tmp_path / "out", task, split).to_pylist():
                    splits[int(row["prompt"][0]["content"].split()[0].removeprefix("the"))].add(split)
        return splits, card

    splits, card = splits_of_stories(near_duplicates=0.7)
    assert all(len(parts) == 1 for parts in splits)
    assert card["near_duplicates"] == {"prompts": 200, "groups": 40}
    assert any("200 prompts are near-duplicates, in 40 groups" in text for text in card["warnings"])
    splits, card = splits_of_stories()
    assert any(len(parts) > 1 for parts in splits)
    assert card["near_duplicates"] is None


def test_prompts_that_share_13_words_with_a_test_set_are_dropped(tmp_path: Path, base_model: Path) -> None:
    words = STORY.split()
    prompts = [f"Please retell: {' '.join(words[2:15]).upper()}!", " ".join(words[2:14]), "short question?"]
    data = [*rows(30), *(conversation(prompt, "yes", "no") for prompt in prompts)]
    tests = write_rows(tmp_path / "tests.jsonl", [{"q": [{"text": STORY}], "id": 7}, {"q": "Short question"}])
    card = prepared(tmp_path, base_model, {"one": data}, decontaminate=[{"path": str(tests)}])
    assert card["tasks"][0]["rows"] == {"read": 33, "contaminated": 2}


def test_columns_limit_what_counts_as_a_test_set(tmp_path: Path) -> None:
    tests = write_rows(tmp_path / "tests.jsonl", [{"question": "a b c", "source": "d e f"}])
    every = Contamination([DecontaminationSpec(path=str(tests))])
    one = Contamination([DecontaminationSpec(path=str(tests), columns=["question"])])
    assert [text in every for text in ("A b, c", "d e f", "a b")] == [True, True, False]
    assert [text in one for text in ("A b, c", "d e f")] == [True, False]
    with pytest.raises(DataError, match="no row has the column 'qestion', which 'columns' names"):
        Contamination([DecontaminationSpec(path=str(tests), columns=["question", "qestion"])])


@pytest.mark.parametrize("threshold", [0.5, 0.95])
def test_the_threshold_decides(tmp_path: Path, base_model: Path, threshold: float) -> None:
    """Prompts that differ in the last of ten words: 7 of 9 sets of three words in common, similarity 7/9."""
    data = [
        conversation(" ".join(f"word{number}x{place}" for place in range(9)) + f" end{way}", "yes", "no")
        for number in range(20)
        for way in range(2)
    ]
    card = prepared(tmp_path, base_model, {"one": data}, near_duplicates=threshold)
    assert card["near_duplicates"]["groups"] == (20 if threshold == 0.5 else 0)


def test_the_split_of_a_test_set_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for split in ("train", "test"):
        write_rows(folder / f"{split}.jsonl", [{"text": f"the {split} rows"}])
    with pytest.raises(DataError, match=r"decontaminate: \S+ has several splits; name the 'split'"):
        Contamination([DecontaminationSpec(path=str(folder))])
    test = Contamination([DecontaminationSpec(path=str(folder), split="test")])
    assert ["the test rows" in test, "the train rows" in test] == [True, False]
