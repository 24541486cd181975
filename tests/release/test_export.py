"""Exports: what is handed on, to where, and that others can load it."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from automixalign.models.base_address import BaseAddress
from automixalign.models.load import load_model, load_tokenizer
from automixalign.release.export import export_model
from automixalign.report import leaderboard
from automixalign.report.runs import Run
from automixalign.storage import files
from automixalign.storage.publication import fetch
from automixalign.system.errors import ConfigError, StorageError, UnreachableError
from tests.release.hub_server import TOKEN, Hub, serve

COMMIT = "a" * 40
FULL_FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def hub_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose adapters name a base model on the hub."""
    folder = tmp_path_factory.mktemp("hub_run") / "run"
    shutil.copytree(finished_run, folder)
    address = BaseAddress("org/base", COMMIT)
    address.write(folder / "models" / "reference")
    for path in folder.glob("models/*/adapter_config.json"):
        config = files.read_json(path)
        files.write_json(path, config | {"base_model_name_or_path": address.name, "revision": address.revision})
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client in this process uses."""
    with serve() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # `make test` sets it
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_an_adapter_without_base_on_the_hub_is_merged_and_this_is_said(
    finished_run: Path, tmp_path: Path
) -> None:
    export = export_model(finished_run, str(tmp_path / "new" / "assistant"), "uniform")
    assert export.form == "full"
    assert export.notes == [
        "uniform is merged into its base model: its base model is not on the model hub, so others cannot "
        "load an adapter"
    ]
    folder = tmp_path / "new" / "assistant"
    assert {path.name for path in folder.iterdir()} == FULL_FILES | {"manifest.json"}
    assert list(folder.parent.iterdir()) == [folder], "nothing else is left"
    reference = finished_run / "models" / "reference"
    expected = load_model(finished_run / "models" / "uniform", reference).state_dict()
    actual = load_model(folder, reference).state_dict()
    assert all((expected[name] == weight).all() for name, weight in actual.items())
    assert ModelCard.load(folder / "README.md").data.library_name == "transformers"
    assert not [path for path in folder.iterdir() if str(finished_run).encode() in path.read_bytes()]


def test_an_adapter_of_a_base_on_the_hub_names_it_with_its_commit(hub_run: Path, tmp_path: Path) -> None:
    export = export_model(hub_run, str(tmp_path / "assistant"), "uniform")
    assert (export.form, export.notes) == ("adapter", [])
    assert export.load == [f'AutoPeftModelForCausalLM.from_pretrained("{tmp_path}/assistant")']
    config = json.loads((tmp_path / "assistant" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", COMMIT)
    assert not (tmp_path / "assistant" / "config.json").exists()
    card = ModelCard.load(tmp_path / "assistant" / "README.md")
    assert (card.data.library_name, card.data.base_model) == ("peft", "org/base")
    merged = export_model(hub_run, str(tmp_path / "merged"), "uniform", form="full")
    assert (merged.form, merged.notes) == ("full", [])


def test_the_choice_of_the_run_is_the_default(finished_run: Path, tmp_path: Path) -> None:
    chosen = leaderboard.chosen(Run.read(finished_run).entries)
    assert chosen is not None
    assert export_model(finished_run, str(tmp_path / "out")).model == chosen["model"]


def test_what_is_refused_before_any_work(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    to = str(tmp_path / "out")
    for options, error, message in (
        ({"model": "ama-x"}, ConfigError, "ama-x: the run has no such model; it has: reference, "),
        ({"model": "linear", "form": "adapter"}, ConfigError, "--adapter: linear is a full model"),
        ({"model": "uniform", "form": "adapter"}, ConfigError, "not on the model hub.*; use --merged"),
        ({"private": False}, ConfigError, "--private and --public go with --to hf://"),
    ):
        with pytest.raises(error, match=message):
            export_model(finished_run, to, **options)  # type: ignore[arg-type]
    for replace in (False, True):
        with pytest.raises(StorageError, match=r"holds files of no publication: mine\.txt"):
            export_model(finished_run, str(tmp_path / "used"), "linear", replace=replace)
    with pytest.raises(ConfigError, match="is not the folder of a finished run"):
        export_model(tmp_path, to)
    assert {path.name for path in tmp_path.iterdir()} == {"used"}


def test_an_earlier_export_is_replaced_only_on_request(finished_run: Path, tmp_path: Path) -> None:
    to = tmp_path / "out"
    export_model(finished_run, str(to), "linear")
    with pytest.raises(StorageError, match="holds another publication"):
        export_model(finished_run, str(to), "uniform")
    export_model(finished_run, str(to), "uniform", replace=True)
    assert "# uniform of tiny" in (to / "README.md").read_text()


def test_an_export_to_s3_is_a_publication(finished_run: Path, tmp_path: Path, s3: Any) -> None:
    s3.create_bucket(Bucket="exports")
    sent: list[int] = []

    def started(size: int) -> Any:
        sent.append(-size)
        return sent.append

    export = export_model(finished_run, "s3://exports/assistant", "linear", started=started)
    assert sum(sent) == 0, "progress adds up to the announced size"
    assert export.load[0] == "aws s3 cp --recursive s3://exports/assistant linear"
    fetch("s3://exports/assistant", tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == FULL_FILES | {"manifest.json"}
    with pytest.raises(StorageError, match="holds another publication"):
        export_model(finished_run, "s3://exports/assistant", "linear")


def test_a_new_repository_is_private_and_holds_the_model_and_its_card(finished_run: Path, hub: Hub) -> None:
    export = export_model(finished_run, "hf://org/assistant", "linear")
    assert hub.private == {"org/assistant": True}
    content = hub.files["org/assistant"]
    assert content.keys() == FULL_FILES | {".gitattributes"}
    model = finished_run / "models" / "linear"
    assert content["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert b'name = "org/assistant"' in content["README.md"]
    assert hub.commits == ["Upload linear of tiny"]
    assert export.load == ['AutoModelForCausalLM.from_pretrained("org/assistant")']


def test_a_repository_is_replaced_only_on_request_and_in_one_commit(finished_run: Path, hub: Hub) -> None:
    hub.create("org/used", private=True)
    hub.files["org/used"]["old.bin"] = b"old"
    with pytest.raises(StorageError, match=r"hf://org/used has 1 files, such as old\.bin; .*--replace"):
        export_model(finished_run, "hf://org/used", "linear")
    export_model(finished_run, "hf://org/used", "linear", replace=True)
    assert hub.files["org/used"].keys() == FULL_FILES | {".gitattributes"}
    assert len(hub.commits) == 1


def test_the_visibility_of_a_repository_is_never_changed(finished_run: Path, hub: Hub) -> None:
    hub.create("org/open", private=False)
    with pytest.raises(StorageError, match="is public: give --public"):
        export_model(finished_run, "hf://org/open", "linear")
    export_model(finished_run, "hf://org/open", "linear", private=False)
    assert len(hub.commits) == 1


def test_a_hub_that_refuses_or_does_not_answer(
    finished_run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match=r"hf://a is not of the form hf://ORG/NAME"):
        export_model(finished_run, "hf://a", "linear")
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_mine")
    with pytest.raises(StorageError, match=r"cannot be written: .*check HF_TOKEN") as refused:
        export_model(finished_run, "hf://org/assistant", "linear")
    assert "hf_secret" not in str(refused.value)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match="check the network, HF_ENDPOINT"):
        export_model(finished_run, "hf://org/assistant", "linear")


LOADER = """
import json, sys
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

question = [{"role": "user", "content": "12+3="}]
for folder in ("full", "merged", "adapter"):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loader = AutoPeftModelForCausalLM if folder == "adapter" else AutoModelForCausalLM
    models = [loader.from_pretrained(folder), pipeline("text-generation", folder).model]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        print(json.dumps([model(**prompt).logits[0, -1].tolist() for model in models]))
"""


def test_others_load_exports_from_another_folder(hub_run: Path, tmp_path: Path) -> None:
    """In a process without this project, after the exports were moved; the hub is its local copy."""
    names = {"full": ("linear", "full"), "merged": ("uniform", "full"), "adapter": ("uniform", "adapter")}
    for folder, (model, form) in names.items():
        export_model(hub_run, str(tmp_path / "made" / folder), model, form=form)  # type: ignore[arg-type]
    (tmp_path / "made").rename(tmp_path / "moved")
    reference = hub_run / "models" / "reference"
    copy = tmp_path / "home" / "hub" / "models--org--base" / "snapshots" / COMMIT
    shutil.copytree(reference, copy)
    files.write_text(copy.parents[1] / "refs" / "main", COMMIT)  # `pipeline` asks for it
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "PYTHONPATH"):
        environment.pop(name, None)
    (snippet,) = re.findall(
        r"```python\n(.*?)```", (tmp_path / "moved" / "adapter" / "README.md").read_text(), re.DOTALL
    )
    snippet = snippet.replace('name = "uniform"', 'name = "adapter"')
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOADER + snippet],
        env=environment,
        cwd=tmp_path / "moved",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tokenizer = load_tokenizer(reference)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "12+3="}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    for line, (model, _) in zip(done.stdout.splitlines(), names.values(), strict=False):
        policy = load_model(hub_run / "models" / model, reference)
        expected = policy(**prompt).logits[0, -1].tolist()
        for logits in json.loads(line):
            assert logits == pytest.approx(expected, abs=1e-4)
