"""Folders: which files are read, which are passed over, and why."""

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest

from automixalign.data.reading.row import Row
from automixalign.data.reading.splits import splits_by_name
from tests.data.reading.reading import LINES, ROWS, compress, open_rows, refused, write_prompts

OTHER_SPLIT = "split {}; name it by 'split' to read it"


def test_parts_are_read_in_order(tmp_path: Path) -> None:
    for name, line in zip(("b.jsonl", "c.JSONL.gz", "a/x.json"), LINES, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(compress(line.encode(), Path(name).suffix))
    (tmp_path / "folder.json").mkdir()
    expected = [
        Row(f"{tmp_path}/a/x.json:1", ROWS[2]),
        Row(f"{tmp_path}/b.jsonl:1", ROWS[0]),
        Row(f"{tmp_path}/c.JSONL.gz:1", ROWS[1]),
    ]
    assert open_rows(tmp_path) == open_rows(f"{tmp_path}/") == (expected, {})


def test_every_other_file_is_named(tmp_path: Path) -> None:
    hidden = ["._a.jsonl", ".ipynb_checkpoints/a.jsonl", ".cache/x.txt"]
    others = {
        "README.md": "not a data file (.md)",
        "LICENSE": "not a data file",
        "sub/notes.xlsx": "not a data file (.xlsx)",
        "b.jsonl.bz2": "not a data file (.bz2)",
        "b.parquet.tmp": "an unfinished download (.tmp)",
        "b.jsonl.incomplete": "an unfinished download (.incomplete)",
        "dataset_info.json": "describes a data set",
    }
    write_prompts(tmp_path, ["a.jsonl", *hidden, *others])
    (tmp_path / "broken.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "linked").symlink_to(tmp_path / "sub")
    (tmp_path / ".hidden.jsonl").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jsonl")
    others |= {"broken.jsonl": "not a regular file", "pipe.jsonl": "not a regular file"}
    opened = open_rows(tmp_path)
    assert opened.prompts == ["a.jsonl"]
    assert opened.passed_over == others | {"linked": "a link to a folder"}


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        ([], "; it is empty"),
        (["a.xlsx", "b.txt"], r"; it holds a\.xlsx \(not a data file \(\.xlsx\)\), b\.txt \(.*"),
        ([f"{number:02}.txt" for number in range(12)], r".*09\.txt \(not a data file \(\.txt\)\) and 2 more"),
    ],
)
def test_a_folder_without_data(tmp_path: Path, names: list[str], listed: str) -> None:
    write_prompts(tmp_path, names)
    refused(tmp_path, rf"no data file in this folder \(\.jsonl.*\){listed}$")


@pytest.mark.skipif(os.getuid() == 0, reason="root reads every folder")
def test_a_sub_folder_that_cannot_be_read(tmp_path: Path) -> None:
    write_prompts(tmp_path, ["a.jsonl", "b/b.jsonl"])
    (tmp_path / "b").chmod(0)
    refused(tmp_path, "b cannot be read: Permission denied")
    (tmp_path / "b").chmod(0o700)


TREE = [
    "a.jsonl",
    "train.jsonl",
    "my_test_1.jsonl",
    "Eval-2.jsonl",
    "more/x.valid.jsonl",
    "dev/train.jsonl",
    "latest.jsonl",
    "contest/testament.jsonl",
]
HELD_OUT = {
    "my_test_1.jsonl": "test",
    "Eval-2.jsonl": "test",
    "more/x.valid.jsonl": "validation",
    "dev/train.jsonl": "validation",
}


def test_files_of_held_out_splits_are_not_read_unasked(tmp_path: Path) -> None:
    opened = open_rows(write_prompts(tmp_path, TREE))
    assert opened.prompts == sorted(set(TREE) - set(HELD_OUT))
    assert opened.passed_over == {file: OTHER_SPLIT.format(split) for file, split in HELD_OUT.items()}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_that_is_asked_for(tmp_path: Path, split: str) -> None:
    opened = open_rows(write_prompts(tmp_path, TREE), split=split)
    assert opened.prompts == sorted(file for file in TREE if HELD_OUT.get(file, "train") == split)


def test_a_file_named_after_two_splits_is_read_when_asked_for(tmp_path: Path) -> None:
    write_prompts(tmp_path, ["a.jsonl", "train_test.jsonl"])
    opened = open_rows(tmp_path)
    assert opened.prompts == ["a.jsonl"]
    assert opened.passed_over == {"train_test.jsonl": OTHER_SPLIT.format("test and train")}
    assert open_rows(tmp_path, split="train").prompts == ["a.jsonl", "train_test.jsonl"]
    assert open_rows(tmp_path, split="test").prompts == ["train_test.jsonl"]
    (tmp_path / "a.jsonl").unlink()
    refused(tmp_path, "no data file belongs to the split 'train' alone; it holds train_test.jsonl")


SHARD = "data/{}-00000-of-00001.jsonl"


@pytest.mark.parametrize(
    ("names", "keys", "read"),
    [
        (["train", "test"], {}, "train"),
        (["train_prefs", "test_prefs"], {"split": "test_prefs"}, "test_prefs"),
        (["part"], {}, "part"),
    ],
)
def test_names_of_shards(tmp_path: Path, names: list[str], keys: Any, read: str) -> None:
    """As `push_to_hub` writes them: any word is a split."""
    opened = open_rows(write_prompts(tmp_path, map(SHARD.format, names)), **keys)
    assert opened.prompts == [SHARD.format(read)]


@pytest.mark.parametrize(
    ("files", "keys", "problem"),
    [
        ([SHARD.format("train_prefs"), SHARD.format("train_sft")], {}, "by 'split': train_prefs, train_sft"),
        ([SHARD.format("test_prefs")], {}, "there is no split 'train'; name one by 'split': test_prefs"),
        (["test.jsonl"], {}, "there is no split 'train'; name one by 'split': test"),
        (["a.jsonl"], {"split": "test"}, "there is no split 'test'; there are: train"),
        (["a.jsonl"], {"subset": "en"}, "there is no subset 'en'; in its README.md there are: none"),
        (["a.jsonl"], {"data_dir": "en"}, "'data_dir': 'en' is not a folder inside it"),
        (["a.jsonl"], {"data_dir": ".."}, r"'data_dir': '\.\.' is not a folder inside it"),
        (["a.jsonl"], {"data_dir": "/etc"}, "'data_dir': '/etc' is not a folder inside it"),
        (["a.jsonl"], {"data_dir": "en", "subset": "en"}, "either 'subset' or 'data_dir': remove 'subset'"),
    ],
)
def test_a_selection_that_does_not_exist(tmp_path: Path, files: list[str], keys: Any, problem: str) -> None:
    refused(write_prompts(tmp_path, files), problem, **keys)


def test_the_files_of_a_data_dir(tmp_path: Path) -> None:
    write_prompts(tmp_path, ["test/a.jsonl", "test/test.jsonl", "b.jsonl"])
    opened = open_rows(tmp_path, data_dir="test/")
    assert opened.prompts == ["test/a.jsonl"]
    assert opened.rows[0].where == f"{tmp_path}/test/a.jsonl:1"


PATHS = [
    *TREE,
    "training set.csv",
    "a/testing/x/y.jsonl",
    "val1.jsonl",
    "1dev.jsonl",
    "x-evaluation-y/z.jsonl",
    "evaluations.jsonl",
    "pretrain.jsonl",
    "validation",
    "a_train_b_test.json",
]


@pytest.mark.parametrize("path", [path for path in PATHS if path == path.lower()])
def test_names_mean_what_datasets_takes_them_for(tmp_path: Path, path: str) -> None:
    write_prompts(tmp_path, [path])
    patterns = datasets.data_files.get_data_patterns(str(tmp_path))
    assert {str(split) for split in patterns} == (splits_by_name(Path(path)) or {"train"})


def write_readme(folder: Path, configs: Any) -> None:
    front_matter = json.dumps({"license": "mit", "configs": configs})
    (folder / "README.md").write_text(f"---\n{front_matter}\n---\n\n# A data set\n")


def config(name: str, data_files: Any = None, **more: Any) -> dict[str, Any]:
    return {"config_name": name, **({"data_files": data_files} if data_files else {}), **more}


def splits(**paths: Any) -> list[dict[str, Any]]:
    return [{"split": split, "path": path} for split, path in paths.items()]


FILES = ["en/a.jsonl", "en/b.jsonl", "en/c.jsonl", "de/a.jsonl", "de/test.jsonl", "x.jsonl"]
EN = config("en", splits(train=["en/a.*", "./en/b.jsonl"], test="en/c.jsonl"))
DE = config("de", data_dir="de")


@pytest.mark.parametrize(
    ("configs", "keys", "read"),
    [
        ([EN], {}, ["en/a.jsonl", "en/b.jsonl"]),
        ([EN], {"split": "test"}, ["en/c.jsonl"]),
        ([EN, DE], {"subset": "en"}, ["en/a.jsonl", "en/b.jsonl"]),
        ([EN, DE], {"subset": "de"}, ["de/a.jsonl"]),
        ([EN, DE], {"subset": "de", "split": "test"}, ["de/test.jsonl"]),
        ([EN, DE | {"default": True}], {}, ["de/a.jsonl"]),
        ([EN, config("default", "**/a.jsonl")], {}, ["de/a.jsonl", "en/a.jsonl"]),
        ([config("all", "*.jsonl")], {}, ["x.jsonl"]),
        ([config("all", ["en/*", "x.jsonl"])], {}, ["en/a.jsonl", "en/b.jsonl", "en/c.jsonl", "x.jsonl"]),
        ([config("all", splits(train="**", test="en/c.jsonl"))], {}, sorted({*FILES} - {"en/c.jsonl"})),
        ([EN, DE], {"data_dir": "de"}, ["de/a.jsonl"]),
    ],
)
def test_subsets_of_a_readme(tmp_path: Path, configs: Any, keys: Any, read: list[str]) -> None:
    write_readme(write_prompts(tmp_path, FILES), configs)
    opened = open_rows(tmp_path, **keys)
    assert opened.prompts == read
    if "data_dir" not in keys:
        assert sorted([*read, *opened.passed_over]) == sorted([*FILES, "README.md"])


def test_a_readme_gives_the_reason(tmp_path: Path) -> None:
    write_readme(write_prompts(tmp_path, FILES), [EN])
    opened = open_rows(tmp_path)
    assert opened.passed_over["en/c.jsonl"] == OTHER_SPLIT.format("test")
    assert opened.passed_over["x.jsonl"] == "README.md lists it in no split of this subset"


@pytest.mark.parametrize(
    ("configs", "keys", "problem"),
    [
        ([EN, DE], {}, "has several subsets; name one by 'subset': en, de"),
        ([EN, DE], {"subset": "fr"}, "there is no subset 'fr'; in its README.md there are: en, de"),
        ([config("a", splits(first="en/*", second="de/*"))], {}, "name one by 'split': first, second"),
        ([config("a", splits(train="../outside/*"))], {}, "no data file belongs to the split 'train'"),
        ([config("a", splits(train="https://127.0.0.1/a.jsonl"))], {}, "no data file belongs to the split"),
        ([{"name": "a"}], {}, "README.md: its front matter has no readable 'configs'"),
        ("text", {}, "README.md: its front matter has no readable 'configs'"),
        ([config("a", [{"path": "a"}])], {}, "README.md: its 'data_files' cannot be read"),
        ([config("a", [3])], {}, "README.md: its 'data_files' cannot be read"),
    ],
)
def test_a_readme_that_leaves_it_open(tmp_path: Path, configs: Any, keys: Any, problem: str) -> None:
    write_prompts(tmp_path, ["outside/x.jsonl"])
    write_readme(write_prompts(tmp_path / "data", FILES), configs)
    refused(tmp_path / "data", problem, **keys)


@pytest.mark.parametrize("text", ["# Data", "---\nlicense: mit\n---\ntext", "---\n---\n", "", "---\nno end"])
def test_a_readme_without_subsets(tmp_path: Path, text: str) -> None:
    write_prompts(tmp_path, ["a.jsonl"])
    (tmp_path / "README.md").write_text(text)
    assert open_rows(tmp_path).prompts == ["a.jsonl"]
