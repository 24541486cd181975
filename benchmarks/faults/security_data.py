"""Data that wants more than to be read: templates, scripts, addresses, names that lead out of a folder."""

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from automixalign.config.data import TaskSpec
from automixalign.data.pairs import parse_row
from automixalign.data.read import read_rows
from automixalign.storage import files, s3
from automixalign.storage import publication as publish
from automixalign.system.errors import AutoMixAlignError, DataError, StorageError
from benchmarks import tiny
from benchmarks.faults import _malice
from benchmarks.faults.case import Case, UnexpectedError

_GROUP = "security_data"
_ROW = {"prompt": "a", "chosen": "b", "rejected": "c"}
TEMPLATES = (
    "{{ 7*7 }}",
    "{% for i in range(9) %}x{% endfor %}",
    "{# gone #}",
    "${7*7}",
    "%(x)s {0} $HOME `id`",
)


def read(source: object) -> list[Any]:
    """Every row of a source."""
    return [row.data for row in read_rows(TaskSpec(name="task", source=str(source)), seed=0)]


def _templates(folder: Path) -> str:
    """In every place of a row, by a tokenizer that keeps every character."""
    from transformers import AutoTokenizer

    model = _malice.byte_model(folder / "model")
    text = " ".join(TEMPLATES)
    rows = [
        {
            "prompt": [{"role": "system", "content": text}, {"role": "user", "content": f"{number} {text}"}],
            "chosen": [{"role": "assistant", "content": f"yes {text}"}],
            "rejected": [{"role": "assistant", "content": f"no {text}"}],
        }
        for number in range(10)
    ]
    tiny.prepare_rows(rows, model, folder / "data", 4096)
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    (row, *_) = files.read_table(folder / "data" / "task" / "train.parquet").to_pylist()
    counts = {
        name: tokenizer.decode(row[name]).count(text) for name in ("prompt_ids", "chosen_ids", "rejected_ids")
    }
    if counts != {"prompt_ids": 2, "chosen_ids": 1, "rejected_ids": 1}:
        raise UnexpectedError(f"it stands so often in them: {counts}")
    return "its token ids are those of its very characters"


def _script(folder: Path) -> str:
    """A loading script, as `datasets` once ran it, beside the rows."""
    data, marker = folder / "own" / "name", folder / "marker"
    data.mkdir(parents=True)
    (data / "name.py").write_text(_malice.code(marker))
    (data / "rows.jsonl").write_text(json.dumps(_ROW) + "\n")
    _malice.harmless(marker, lambda: read(data))
    if read(data) != [_ROW]:
        raise UnexpectedError(f"{read(data)}")
    return "the rows are read; the script is not"


def _hub_script(folder: Path) -> str:
    """By a name that could be a hub's, from the folder that holds it."""
    data, marker = folder / "own" / "name", folder / "marker"
    data.mkdir(parents=True)
    (data / "name.py").write_text(_malice.code(marker))
    here = Path.cwd()
    os.chdir(folder)
    try:
        return _malice.refused(DataError, marker, lambda: read("own/name"), "own/name")
    finally:
        os.chdir(here)


class _Ear(BaseHTTPRequestHandler):
    heard: list[str]

    def do_GET(self) -> None:
        self.heard.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"xyz")

    do_HEAD = do_GET  # noqa: N815  the handler's own name

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def _listening() -> Iterator[tuple[str, list[str]]]:
    """A server that notes what is asked of it."""
    heard: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Ear", (_Ear,), {"heard": heard}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/picture.png", heard
    finally:
        server.shutdown()
        server.server_close()


def _picture(column: str) -> Callable[[Path], str]:
    """A saved data set with a picture that is an address."""

    def run(folder: Path) -> str:
        import datasets

        with _listening() as (address, heard):
            kinds = {**dict.fromkeys(_ROW, datasets.Value("string")), column: datasets.Image()}
            row = {**_ROW, column: {"bytes": None, "path": address}}
            made = datasets.Dataset.from_list([row], features=datasets.Features(kinds))
            made.save_to_disk(folder / "data")
            heard.clear()
            with suppress(OSError):  # it is no picture
                made[0]
            if not heard:
                raise UnexpectedError("datasets itself does not fetch it, so that this shows nothing")
            heard.clear()
            with suppress(AutoMixAlignError):
                list(map(parse_row, read_rows(TaskSpec(name="task", source=str(folder / "data")), seed=0)))
            if heard:
                raise UnexpectedError(f"it was fetched: {heard}")
        return "not fetched"

    return run


def _outside_data_set(folder: Path) -> str:
    import datasets

    datasets.Dataset.from_list([_ROW]).save_to_disk(folder / "data")
    state = files.read_json(folder / "data" / "state.json")
    (file,) = state["_data_files"]
    (folder / "data" / file["filename"]).rename(folder / "outside.arrow")
    _malice.change(folder / "data" / "state.json", _data_files=[{"filename": "../outside.arrow"}])
    return _malice.refused(DataError, folder / "no", lambda: read(folder / "data"), "../outside.arrow")


def _link(folder: Path) -> str:
    """Links lead to where the user who runs it may read: a hub's cache consists of them."""
    (folder / "data").mkdir()
    (folder / "elsewhere.jsonl").write_text(json.dumps(_ROW) + "\n")
    (folder / "data" / "rows.jsonl").symlink_to(folder / "elsewhere.jsonl")
    if read(folder / "data") != [_ROW]:
        raise UnexpectedError("it is not followed")
    return "followed"


def _link_published(folder: Path) -> str:
    """What is published through a link is a copy, and nothing is written through one."""
    (folder / "run").mkdir()
    (folder / "target").mkdir()
    (folder / "run" / "model").write_text("new")
    (folder / "victim").write_text("old")
    (folder / "place").symlink_to(folder / "target")
    (folder / "target" / "model").symlink_to(folder / "victim")
    try:
        publish.publish({"model": folder / "run" / "model"}, str(folder / "place"))
    except StorageError as error:
        said = str(error)
    else:
        said = "published beside it"
    if (folder / "victim").read_text() != "old":
        raise UnexpectedError("the file that the link names was overwritten")
    return said


NAMES = ("../out", "a/../../out", "/etc/out", "..", ".", "", "a//b", "./a", "..\\out\\..", "a/./b", ".hidden")


def _manifest(folder: Path) -> str:
    """Every name that leads out, in the manifest of a publication."""
    place = folder / "place"
    place.mkdir()
    let_in = []
    for name in NAMES:
        entry = {"size": 0, "sha256": "0" * 64}
        files.write_json(place / publish.MANIFEST, {"version": 1, "run": "", "files": {name: entry}})
        try:
            publish.fetch(str(place), folder / "copy")
        except StorageError as error:
            if "is no name of a file below a publication" not in str(error):
                let_in.append(name)
    if let_in or (folder / "copy").exists():
        raise UnexpectedError(f"let in: {let_in}")
    return f"StorageError for each of {len(NAMES)} names"


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
"""Key -> where it belongs below the folder, None where it must be refused."""


def _keys(folder: Path) -> str:
    """As a listing with these keys comes from a server, for there is none here that stores them all."""
    return _fetch_keys(folder, lambda key: _Listing([key]))


class _Listing:
    """The part of a client that `download` uses, with these keys."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys

    def get_paginator(self, _: str) -> "_Listing":
        return self

    def paginate(self, **_: str) -> list[dict[str, Any]]:
        return [{"Contents": [{"Key": key, "ETag": '"etag"'} for key in self.keys]}]

    def head_object(self, **_: str) -> dict[str, Any]:
        return {"ContentLength": 1, "Metadata": {}, "ETag": '"etag"'}

    def download_file(self, _bucket: str, _key: str, path: str, **_: object) -> None:
        Path(path).write_bytes(b"x")


def _fetch_keys(folder: Path, client: Callable[[str], Any]) -> str:
    kept = s3._client
    try:
        for number, (key, wanted) in enumerate(KEYS.items()):
            target = folder / str(number) / "deep" / "target"
            target.mkdir(parents=True)
            s3._client = lambda key=key: client(key)
            try:
                s3.download("s3://bucket/x", target)
            except StorageError as error:
                if wanted is not None or "leads out of the folder" not in str(error):
                    raise UnexpectedError(f"{key}: {error}") from error
            _see_inside(folder / str(number), target, key, wanted)
    finally:
        s3._client = kept
    refused = sum(wanted is None for wanted in KEYS.values())
    return f"{refused} keys refused, {len(KEYS) - refused} kept within"


def _see_inside(root: Path, target: Path, key: str, wanted: str | None) -> None:
    found = [file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file()]
    outside = [file for file in root.rglob("*") if file.is_file() and not file.is_relative_to(target)]
    if outside or found != ([] if wanted is None else [wanted]):
        raise UnexpectedError(f"{key}: {found} within and {outside} outside")


def stored_keys(client: Any, bucket: str, folder: Path) -> str:
    """The same keys on a real server, as far as it takes them."""
    from botocore.exceptions import ClientError

    taken = fetched = 0
    for number, key in enumerate(KEYS):
        root = folder / str(number)
        target = root / "deep" / "target"
        target.mkdir(parents=True)
        try:
            client.put_object(Bucket=bucket, Key=f"p{number}/{key}", Body=b"x")
        except ClientError:
            continue
        taken += 1
        with suppress(StorageError):
            s3.download(f"s3://{bucket}/p{number}/x", target)
        outside = [file for file in root.rglob("*") if file.is_file() and not file.is_relative_to(target)]
        if outside:
            raise UnexpectedError(f"{key}: {outside} lies outside of the folder")
        fetched += any(file.is_file() for file in target.rglob("*"))
    refused = len(KEYS) - taken
    return f"the server refuses {refused} keys itself; of {taken} others, {fetched} are fetched, all within"


def _on_a_server(folder: Path) -> str:
    with _malice.server(folder) as client:
        return stored_keys(client, "ready", folder / "fetched")


def _spool_of_somebody(folder: Path) -> str:
    """The place of this user's records in the shared folder for temporary files, made by another before."""
    from automixalign.steps.tracking import spool

    kept, tempfile.tempdir = tempfile.tempdir, str(folder)
    place = folder / f"automixalign-spool-{os.getuid()}"
    seen = []
    try:
        with _malice.environment(**{spool.URI: "http://127.0.0.1:9"}):
            os.environ.pop(spool.FOLDER, None)
            for make in _IMPOSTORS.values():
                make(place)
                seen.append(_malice.refused(AutoMixAlignError, folder / "no", spool.of_environment, str(place)))
                place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()
            mine = spool.of_environment()
        if mine is None or mine.folder.stat().st_mode & 0o077:
            raise UnexpectedError("our own is open to others")
    finally:
        tempfile.tempdir = kept
    return f"{len(seen)} impostors refused; our own is private"


def _of_another_user(place: Path) -> None:
    place.mkdir(mode=0o700)
    if os.getuid() == 0:  # only root can give a folder away
        os.chown(place, 12345, 12345)
    else:
        place.chmod(0o770)


_IMPOSTORS: dict[str, Callable[[Path], None]] = {
    "another user's": _of_another_user,
    "open to all": lambda place: (place.mkdir(), place.chmod(0o777))[0],
    "open to the group": lambda place: (place.mkdir(), place.chmod(0o750))[0],
    "a link": lambda place: place.symlink_to(place.parent),
    "a file": lambda place: place.touch(),
}

CHEAP = [
    Case(_GROUP, "templates in prompt and answers", "their characters arrive in the token ids", _templates),
    Case(_GROUP, "a loading script beside the rows", "the rows are read, the script is not run", _script),
    Case(_GROUP, "a loading script under a hub's name", "DataError; the script is not run", _hub_script),
    Case(_GROUP, "a picture by address beside the rows", "not fetched", _picture("picture")),
    Case(_GROUP, "a picture by address for a prompt", "not fetched", _picture("prompt")),
    Case(_GROUP, "a saved data set whose file lies elsewhere", "DataError names it", _outside_data_set),
    Case(_GROUP, "a link in a data folder", "followed, with the rights of the user who runs it", _link),
    Case(_GROUP, "a link where a file is published", "what it leads to stays as it was", _link_published),
    Case(_GROUP, "names in a manifest that lead out", "StorageError names them", _manifest),
    Case(_GROUP, "keys that lead out", "StorageError, or kept within the folder", _keys),
    Case(_GROUP, "a spool folder made by somebody else", "ConfigError names it", _spool_of_somebody),
]
CASES = [*CHEAP, Case(_GROUP, "keys that lead out, on a server", "nothing lies outside", _on_a_server)]
