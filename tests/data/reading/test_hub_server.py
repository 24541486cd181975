"""A hub that answers, and then does not; in processes of their own, since libraries read its address once."""

import json
from pathlib import Path
from typing import Any

from tests.data.reading.hub_server import COMMIT, REPOSITORY, serve
from tests.system.processes import run

CODE = """
import json
from tests.data.reading.reading import open_rows
opened = open_rows("owner/name")
print(json.dumps([opened.prompts, opened.passed_over]))
"""


def row(prompt: str) -> bytes:
    return json.dumps({"prompt": prompt, "chosen": "a", "rejected": "b"}).encode()


def test_a_hub_is_read_and_then_its_copy(tmp_path: Path) -> None:
    def read(address: str) -> tuple[Any, str]:
        environment = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "PYTHONPATH": str(Path.cwd())}
        ended = run(CODE, env=environment)
        return json.loads(ended.stdout.splitlines()[-1]), ended.stderr

    train = ["train_1.jsonl", "train_2.jsonl"]
    files = {name: row(name) for name in [*train, "test.jsonl"]} | {
        "train.csv": b"prompt\na\n",
        "README.md": b"",
    }
    with serve(files) as address:
        opened, errors = read(address)
    assert opened == [
        train,
        {
            "test.jsonl": "split test; name it by 'split' to read it",
            "train.csv": "datasets does not read it with this subset or beside files of another kind",
        },
    ]
    assert "local copy" not in errors
    opened, errors = read(address)
    assert opened == [train, {}]
    assert f"{REPOSITORY}: the hub does not answer; its local copy is used, commit {COMMIT}" in errors
