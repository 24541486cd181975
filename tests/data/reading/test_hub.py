"""Data sets of the hub: splits, subsets, and local copies when the hub does not answer."""

import logging
import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from datasets.packaged_modules.cache.cache import Cache

from automixalign.data.reading import hub
from automixalign.data.reading.row import Row
from tests.data.reading.hub_server import COMMIT, REPOSITORY
from tests.data.reading.reading import open_rows, refused, write_prompts
from tests.data.reading.test_folders import config, write_readme
from tests.data.rows import plain, write_rows

OTHER = "b" * 40


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty caches."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "tables"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the repository on the hub."""
    folder = tmp_path / "repository" / "name"
    load = datasets.load_dataset_builder

    def load_folder(path: str, revision: str | None, **keys: Any) -> Any:
        assert (path, revision) == (REPOSITORY, COMMIT)
        builder = load(str(folder), **keys)
        builder.hash = revision
        return builder

    monkeypatch.setattr(hub, "find_commit", lambda *_: (COMMIT, True))
    monkeypatch.setattr(hub, "_passed_over", lambda *_: {})
    monkeypatch.setattr(datasets, "load_dataset_builder", load_folder)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def store_tables(commit: str, tmp_path: Path, files: list[str]) -> None:
    """Store the tables that `datasets` makes of a repository."""
    folder = write_prompts(tmp_path / commit / "name", files)
    builder = datasets.load_dataset_builder(str(folder), cache_dir=str(tmp_path / "made"))
    builder.download_and_prepare()
    shutil.copytree(builder.cache_dir, tmp_path / "tables" / "owner___name" / "default" / "0.0.0" / commit)


def store_files(commit: str, tmp_path: Path, files: list[str]) -> Path:
    """Store files as the hub's client does, and return their folder."""
    folder = tmp_path / "hub" / "datasets--owner--name" / "snapshots" / commit
    folder.mkdir(parents=True)
    return write_prompts(folder, files)


FILES = ["train.jsonl", "test.jsonl"]


@pytest.mark.parametrize(("keys", "split"), [({}, "train"), ({"split": "test"}, "test")])
def test_one_split_is_read(repository: Path, keys: Any, split: str) -> None:
    write_prompts(repository, FILES)
    expected = [Row(f"{REPOSITORY}[{split}]:1", plain(f"{split}.jsonl", "a", "b"))]
    assert open_rows(REPOSITORY, **keys).rows == expected


def test_only_the_named_columns_are_read(repository: Path) -> None:
    write_prompts(repository, FILES)
    assert open_rows(REPOSITORY, ["prompt", "missing"]).data == [{"prompt": "train.jsonl"}]


def test_values_of_mixed_types(repository: Path) -> None:
    rows = [{"a": [{"content": "text"}]}, {"a": [{"content": ["text", 1]}]}]
    write_rows(repository / "train.jsonl", rows)
    assert open_rows(REPOSITORY).data == rows


def test_a_picture_is_not_decoded(repository: Path) -> None:
    """It may be an address, which would be fetched."""
    picture = {"bytes": None, "path": "http://127.0.0.1:9/picture.png"}
    data = datasets.Dataset.from_list([{"a": picture}], features=datasets.Features({"a": datasets.Image()}))
    repository.mkdir(parents=True)
    pq.write_table(data.data.table, repository / "train.parquet")  # with the features as metadata
    assert open_rows(REPOSITORY).data == [{"a": picture}]


SUBSETS = [config("en", "en/*"), config("de", "de/*")]


@pytest.mark.parametrize("keys", [{"subset": "de"}, {"data_dir": "de"}])
def test_a_part_is_read(repository: Path, keys: Any) -> None:
    write_readme(write_prompts(repository, ["en/a.jsonl", "de/a.jsonl"]), SUBSETS)
    assert open_rows(REPOSITORY, **keys).prompts == ["de/a.jsonl"]


@pytest.mark.parametrize(
    ("files", "keys", "problem"),
    [
        (FILES, {"split": "dev"}, r"split 'dev': Unknown split \"dev\". Should be one of \['train', 'test'\]"),
        (["test.jsonl"], {}, "there is no split 'train'; name one by 'split': test"),
        (["en/a.jsonl", "de/a.jsonl"], {}, r"available configs: \['en', 'de'\]; name one by 'subset'$"),
        (["en/a.jsonl", "de/a.jsonl"], {"subset": "fr"}, r"'fr' not found. Available: \['en', 'de'\]"),
    ],
)
def test_a_part_that_does_not_exist(repository: Path, files: list[str], keys: Any, problem: str) -> None:
    write_prompts(repository, files)
    if "en/a.jsonl" in files:
        write_readme(repository, SUBSETS)
    refused(REPOSITORY, f"^task task: {REPOSITORY}.*{problem}", **keys)


def test_a_broken_file_is_named_with_the_reason(repository: Path) -> None:
    write_prompts(repository, ["train.jsonl"]).joinpath("train.jsonl").write_text("{")
    refused(REPOSITORY, "An error occurred while generating the dataset: .*JSON")


def test_a_repository_without_a_copy(offline: None) -> None:
    problem = "task task: owner/name is neither a local path nor a readable hub data set with split 'dev'"
    refused(REPOSITORY, f"^{problem}: the hub does not answer, and there is no local copy", split="dev")


@pytest.mark.parametrize("stored", [store_tables, store_files])
@pytest.mark.parametrize("keys", [{}, {"revision": COMMIT}])
def test_a_local_copy_is_read_with_a_warning(
    offline: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, stored: Any, keys: Any
) -> None:
    store_files(COMMIT, tmp_path, [] if stored is store_tables else FILES)
    if stored is store_tables:
        store_tables(COMMIT, tmp_path, FILES)
    with caplog.at_level(logging.WARNING):
        opened = open_rows(REPOSITORY, **keys)
    where = f"{REPOSITORY}[train]:1" if stored is store_tables else f"{REPOSITORY}/train.jsonl:1"
    assert opened.rows == [Row(where, plain("train.jsonl", "a", "b"))]
    warning = f"task task: {REPOSITORY}: the hub does not answer; its local copy is used, commit {COMMIT}"
    assert caplog.messages == [warning]


def test_a_copy_of_another_commit_is_not_read(offline: None, tmp_path: Path) -> None:
    store_tables(COMMIT, tmp_path, FILES)
    store_files(COMMIT, tmp_path, FILES)
    problem = f"the hub does not answer, and there is no local copy of {OTHER}"
    refused(REPOSITORY, problem, revision=OTHER)


def test_the_files_are_read_where_the_tables_are_of_another_commit(offline: None, tmp_path: Path) -> None:
    store_tables(OTHER, tmp_path, ["train.jsonl"])
    store_files(COMMIT, tmp_path, ["a.jsonl"])
    assert open_rows(REPOSITORY).prompts == ["a.jsonl"]


def test_a_copy_of_one_subset_is_not_taken_for_another(offline: None, tmp_path: Path) -> None:
    store_tables(COMMIT, tmp_path, ["train.jsonl"])
    write_readme(store_files(COMMIT, tmp_path, ["en/a.jsonl"]), SUBSETS)
    refused(REPOSITORY, "owner/name: has several subsets; name one by 'subset': en, de")
    assert open_rows(REPOSITORY, subset="en").prompts == ["en/a.jsonl"]


def test_a_hub_that_stops_answering(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` then takes the newest copy."""
    copy = Cache(repo_id=REPOSITORY, version="0.0.0", hash=COMMIT)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: copy)
    refused(REPOSITORY, "the hub refuses it, or no longer answers")
