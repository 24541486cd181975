"""Data that does more than be read: templates, scripts, addresses, names that lead out of a folder."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import pytest
from botocore.exceptions import ClientError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from automixalign.steps.tracking import spool
from automixalign.storage import files, publication
from automixalign.storage import s3 as s3_storage
from automixalign.system.errors import AutoMixAlignError, DataError, StorageError
from benchmarks import tiny
from tests.data.reading.reading import open_rows
from tests.data.rows import parsed
from tests.faults.common import change_json, code, raises
from tests.faults.test_rows import message, pair

ROW = {"prompt": "a", "chosen": "b", "rejected": "c"}
TEMPLATES = "{{ 7*7 }} {% for i in range(9) %}x{% endfor %} {# gone #} ${7*7} %(x)s {0} $HOME `id`"


def read(source: object) -> list[Any]:
    """Every row of a source."""
    return open_rows(str(source)).data


def write_rows(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(ROW) + "\n")
    return path


@pytest.fixture
def byte_model(tmp_path: Path) -> Path:
    """A tokenizer that knows every byte, with a ChatML template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token) for token in ("<|im_start|>", "<|im_end|>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    fast.save_pretrained(tmp_path / "model")
    LlamaConfig(vocab_size=len(fast), max_position_embeddings=4096).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_templates_in_rows_are_text(byte_model: Path, tmp_path: Path) -> None:
    text = TEMPLATES
    sides = {side: message("assistant", f"{side} {text}") for side in ("chosen", "rejected")}
    prompts = [message("system", text) + message("user", f"{number} {text}") for number in range(10)]
    tiny.prepare_rows([pair(prompt=prompt, **sides) for prompt in prompts], byte_model, tmp_path / "data", 4096)
    tokenizer = AutoTokenizer.from_pretrained(byte_model, trust_remote_code=False)
    (row, *_) = files.read_table(tmp_path / "data" / "task" / "train.parquet").to_pylist()
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert [tokenizer.decode(row[column]).count(text) for column in columns] == [2, 1, 1]


def test_a_loading_script_beside_the_rows_is_not_run(tmp_path: Path, marker: Path) -> None:
    data = write_rows(tmp_path / "own" / "name" / "rows.jsonl").parent
    (data / "name.py").write_text(code(marker))
    assert read(data) == [ROW]


def test_a_loading_script_named_like_one_on_a_hub_is_not_run(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own" / "name").mkdir(parents=True)
    (tmp_path / "own" / "name" / "name.py").write_text(code(marker))
    monkeypatch.chdir(tmp_path)
    with raises(DataError, "own/name"):
        read("own/name")


class _Handler(BaseHTTPRequestHandler):
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"xyz")

    do_HEAD = do_GET  # noqa: N815  the handler's own name

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web_server() -> Iterator[tuple[str, list[str]]]:
    """The address of a picture, and the paths that were requested."""
    requests: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"requests": requests}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/picture.png", requests
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("column", ["picture", "prompt"])
def test_no_linked_picture_is_fetched(tmp_path: Path, web_server: tuple[str, list[str]], column: str) -> None:
    address, requests = web_server
    features = {**dict.fromkeys(ROW, datasets.Value("string")), column: datasets.Image()}
    row = {**ROW, column: {"bytes": None, "path": address}}
    data = datasets.Dataset.from_list([row], features=datasets.Features(features))
    data.save_to_disk(tmp_path / "data")
    requests.clear()
    with suppress(OSError):  # it is no picture
        data[0]
    assert requests, "datasets itself fetches it"
    requests.clear()
    with suppress(ValueError):  # it is no text
        list(map(parsed, read(tmp_path / "data")))
    assert not requests


def test_a_saved_data_set_with_a_file_outside(tmp_path: Path) -> None:
    datasets.Dataset.from_list([ROW]).save_to_disk(tmp_path / "data")
    (file,) = files.read_json(tmp_path / "data" / "state.json")["_data_files"]
    (tmp_path / "data" / file["filename"]).rename(tmp_path / "outside.arrow")
    change_json(tmp_path / "data" / "state.json", _data_files=[{"filename": "../outside.arrow"}])
    with raises(DataError, "../outside.arrow"):
        read(tmp_path / "data")


def test_a_link_in_a_data_folder_is_followed(tmp_path: Path) -> None:
    """With the user's own rights; a hub's cache consists of links."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").symlink_to(write_rows(tmp_path / "elsewhere.jsonl"))
    assert read(tmp_path / "data") == [ROW]


def test_nothing_is_written_through_a_link_at_the_output(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "model").write_text("new")
    (tmp_path / "victim").write_text("old")
    (tmp_path / "output").symlink_to(tmp_path / "target")
    (tmp_path / "target" / "model").symlink_to(tmp_path / "victim")
    with suppress(StorageError):
        publication.publish({"model": tmp_path / "model"}, str(tmp_path / "output"))
    assert (tmp_path / "victim").read_text() == "old"


@pytest.mark.parametrize(
    "name",
    ["../out", "a/../../out", "/etc/out", "..", ".", "", "a//b", "./a", "..\\out\\..", "a/./b", ".hidden"],
)
def test_names_in_a_manifest_that_lead_out(tmp_path: Path, name: str) -> None:
    (tmp_path / "published").mkdir()
    manifest = {"version": 1, "run": "", "files": {name: {"size": 0, "sha256": "0" * 64}}}
    files.write_json(tmp_path / "published" / publication.MANIFEST, manifest)
    with raises(StorageError, "is no name of a file below a publication"):
        publication.fetch(str(tmp_path / "published"), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


KEYS = {
    "x/../../out": None,
    "x/../out": None,
    "x//../../out": None,
    "x//etc/out": "etc/out",
    "x/..": None,
    "x/a/../../../out": None,
    "x/..\\..\\out": "..\\..\\out",
    "x/C:\\out": "C:\\out",
    "x/a/./b": "a/b",
}
"""Key -> its path below the folder, None where it is refused."""


class _Listing:
    """The part of a client that `download` uses, for keys that no server here stores."""

    def __init__(self, key: str) -> None:
        self.key = key

    def get_paginator(self, _: str) -> "_Listing":
        return self

    def paginate(self, **_: str) -> list[dict[str, Any]]:
        return [{"Contents": [{"Key": self.key, "ETag": '"etag"'}]}]

    def head_object(self, **_: str) -> dict[str, Any]:
        return {"ContentLength": 1, "Metadata": {}, "ETag": '"etag"'}

    def download_file(self, _bucket: str, _key: str, path: str, **_: object) -> None:
        Path(path).write_bytes(b"x")


def files_below(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


@pytest.mark.parametrize(("key", "path"), KEYS.items())
def test_keys_leading_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, path: str | None) -> None:
    monkeypatch.setattr(s3_storage, "_client", lambda: _Listing(key))
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    if path is None:
        with raises(StorageError, "leads out of the folder"):
            s3_storage.download("s3://bucket/x", target)
        assert files_below(tmp_path) == []
    else:
        s3_storage.download("s3://bucket/x", target)
        assert files_below(tmp_path) == [f"deep/target/{path}"]


@pytest.mark.parametrize("key", KEYS)
def test_keys_that_lead_out_on_a_server(tmp_path: Path, s3: Any, key: str) -> None:
    """The server refuses some of them itself."""
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    prefix = f"keys-{list(KEYS).index(key)}"
    with suppress(ClientError):
        s3.put_object(Bucket="ready", Key=f"{prefix}/{key}", Body=b"x")
    with suppress(StorageError):
        s3_storage.download(f"s3://ready/{prefix}/x", target)
    assert all(name.startswith("deep/target/") for name in files_below(tmp_path))


def of_another_user(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    if os.getuid() == 0:  # only root can give a folder away
        os.chown(folder, 12345, 12345)
    else:
        folder.chmod(0o770)


def with_mode(mode: int) -> Callable[[Path], None]:
    return lambda folder: (folder.mkdir(), folder.chmod(mode))[1]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(of_another_user, id="of another user"),
        pytest.param(with_mode(0o777), id="open to all"),
        pytest.param(with_mode(0o750), id="open to the group"),
        pytest.param(lambda folder: folder.symlink_to(folder.parent), id="a link"),
        pytest.param(lambda folder: folder.touch(), id="a file"),
        pytest.param(None, id="none"),
    ],
)
def test_the_spool_folder_belongs_to_its_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None] | None
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(spool.URI, "http://127.0.0.1:9")
    monkeypatch.delenv(spool.FOLDER, raising=False)
    folder = tmp_path / f"automixalign-spool-{os.getuid()}"
    if make is None:
        own = spool.of_environment()
        assert own
        assert own.folder.stat().st_mode & 0o077 == 0
    else:
        make(folder)
        with pytest.raises(AutoMixAlignError, match=folder.name):
            spool.of_environment()
