"""Model folders that bring a pickle, code of their own, or a template that does more than write text."""

import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from automixalign.merging import merge
from automixalign.models.load import load_full_model, load_model, load_tokenizer
from automixalign.models.safety import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from automixalign.system.errors import DataError, ModelError
from benchmarks import tiny
from tests.faults.common import change_json, code, prepare, raises, write_pickle
from tests.faults.test_rows import pair

Damage = Callable[[Path, Path], object]
"""Damage a valid model folder; the second path is the marker that its code would make."""
Use = Callable[[Path, Path, Path], object]
"""Use a damaged model folder; with a valid base model, and a path for the result."""
PATIENCE_SECONDS = 5
EVIL_MODEL = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
EVIL_TOKENIZER = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}


def merge_onto(model: Path, base: Path, output: Path) -> object:
    return merge.merge_specialists(model, {"one": base, "other": base}, "linear", {}, output, 0)


def merge_with(model: Path, base: Path, output: Path) -> object:
    return merge.merge_specialists(base, {"valid": base, "damaged": model}, "linear", {}, output, 0)


USES: dict[str, Use] = {
    "base model": lambda model, base, output: prepare(model, output),
    "policy": lambda model, base, output: load_model(model, base),
    "merge": merge_with,
    "base of a merge": merge_onto,
    "tokenizer": lambda model, base, output: load_tokenizer(model),
}


def only_a_pickle(model: Path, marker: Path) -> None:
    (model / "model.safetensors").unlink()
    write_pickle(model / "pytorch_model.bin", marker)


def _write_index(model: Path, file: str) -> None:
    index = {"metadata": {}, "weight_map": dict.fromkeys(merge._tensor_shapes(model), file)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def index_of_a_pickle(model: Path, marker: Path) -> None:
    """transformers takes every file for a shard that the index of the safetensors names."""
    _write_index(model, "weights.bin")
    (model / "model.safetensors").rename(model / "another.safetensors")
    write_pickle(model / "weights.bin", marker)


def index_that_leads_out(model: Path, marker: Path) -> None:
    _write_index(model, "../outside.safetensors")
    shutil.copy(model / "model.safetensors", model.parent / "outside.safetensors")
    (model / "model.safetensors").rename(model / "inside.safetensors")


def _add_code(model: Path, marker: Path) -> None:
    (model / "evil.py").write_text(code(marker) + "class Evil: pass\n")


def code_of_its_own(model: Path, marker: Path) -> None:
    _add_code(model, marker)
    change_json(model / "config.json", model_type="evil", architectures=["Evil"], auto_map=EVIL_MODEL)


def tokenizer_code(model: Path, marker: Path) -> None:
    _add_code(model, marker)
    change_json(model / "tokenizer_config.json", tokenizer_class="Evil", auto_map=EVIL_TOKENIZER)


def become_adapter(model: Path) -> None:
    policy = get_peft_model(load_full_model(model), LoraConfig(r=1, target_modules=["q_proj"]))
    shutil.rmtree(model)
    policy.save_pretrained(model)


def adapter_pickle(model: Path, marker: Path) -> None:
    become_adapter(model)
    (model / ADAPTER_WEIGHTS).unlink()
    write_pickle(model / "adapter_model.bin", marker)


def adapter_with_a_module(model: Path, marker: Path) -> None:
    """peft imports the module that `megatron_core` names."""
    become_adapter(model)
    (model.parent / "evil.py").write_text(code(marker))
    change_json(model / ADAPTER_CONFIG, megatron_config={"a": 1}, megatron_core="evil")


def adapter_elsewhere(model: Path, marker: Path) -> None:
    """transformers loads the model that an adapter names, from any path."""
    elsewhere = Path(shutil.copytree(model, model.parent / "elsewhere"))
    become_adapter(model)
    load_tokenizer(elsewhere).save_pretrained(model)
    only_a_pickle(elsewhere, marker)
    change_json(model / ADAPTER_CONFIG, base_model_name_or_path=str(elsewhere))


DAMAGES: dict[str, tuple[Damage, tuple[str, ...], str]] = {
    "only a pickle": (only_a_pickle, ("base model", "policy", "merge", "base of a merge"), "is a pickle"),
    "an index that names a pickle": (index_of_a_pickle, ("base model", "policy", "merge"), "weights.bin"),
    "an index that leads out": (
        index_that_leads_out,
        ("base model", "policy", "merge"),
        "../outside.safetensors",
    ),
    "a pickle called model.safetensors": (
        lambda model, marker: write_pickle(model / "model.safetensors", marker),
        ("base model", "policy", "merge"),
        "",
    ),
    "config.json with code": (code_of_its_own, ("base model", "policy", "base of a merge"), "never run"),
    "tokenizer_config.json with code": (tokenizer_code, ("base model", "tokenizer"), "never run"),
    "config.json with a kernel of a hub": (
        lambda model, _: change_json(model / "config.json", attn_implementation="evil/kernel"),
        ("base model", "policy", "merge"),
        "evil/kernel",
    ),
    "an adapter as a pickle": (adapter_pickle, ("policy", "merge"), "is a pickle"),
    "an adapter that names a module": (adapter_with_a_module, ("policy", "merge"), "LoRA"),
    "an adapter that names a model": (adapter_elsewhere, ("base model",), "adapter"),
}


@pytest.fixture
def _trusting_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Answers yes to every question, and has modules of `tmp_path` on the path."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("_trusting_user")
@pytest.mark.parametrize(
    ("damage", "use", "part"),
    [
        pytest.param(damage, USES[use], part, id=f"{name}: {use}")
        for name, (damage, uses, part) in DAMAGES.items()
        for use in uses
    ],
)
def test_refused(
    base_model: Path, model: Path, marker: Path, tmp_path: Path, damage: Damage, use: Use, part: str
) -> None:
    damage(model, marker)
    with raises(ModelError, part):
        use(model, base_model, tmp_path / "output")
    assert not (tmp_path / "output").exists()


@pytest.mark.usefixtures("_trusting_user")
def test_code_beside_a_known_model_is_not_run_and_not_copied(
    base_model: Path, model: Path, marker: Path, tmp_path: Path
) -> None:
    _add_code(model, marker)
    change_json(model / "config.json", auto_map=EVIL_MODEL)
    change_json(model / "tokenizer_config.json", auto_map=EVIL_TOKENIZER)
    (model / "custom_generate").mkdir()
    (model / "custom_generate" / "generate.py").write_text(code(marker))
    for use in ("base model", "policy", "tokenizer", "merge"):
        USES[use](model, base_model, tmp_path / use)
    prepared = tmp_path / "base model"
    assert not [file for file in prepared.rglob("*") if "evil" in file.read_text(errors="replace")]
    assert not (prepared / "custom_generate").exists()


def test_a_pickle_called_gguf(marker: Path, tmp_path: Path) -> None:
    write_pickle(tmp_path / "model.gguf", marker)
    with raises(ModelError, "GGUF"):
        prepare(tmp_path / "model.gguf", tmp_path / "output")


def test_pickles_in_the_registry(
    model: Path, marker: Path, tmp_path: Path, registered: Callable[[Path], str]
) -> None:
    """Weights as a pickle, and the pickle of a pyfunc beside them."""
    only_a_pickle(model, marker)
    write_pickle(model / "python_model.pkl", marker)
    flavour = {"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl"}
    (model / "MLmodel").write_text(json.dumps({"flavors": {"python_function": flavour}}))
    source = registered(model)
    with raises(ModelError, source, "is a pickle"):
        prepare(source, tmp_path / "output")


def test_a_pickle_in_s3(model: Path, marker: Path, tmp_path: Path, s3: Any) -> None:
    only_a_pickle(model, marker)
    for file in model.iterdir():
        s3.upload_file(str(file), "ready", f"evil/{file.name}")
    with raises(ModelError, "s3://ready/evil", "is a pickle"):
        prepare("s3://ready/evil", tmp_path / "output")


def prepare_with_template(model: Path, output: Path, template: str) -> None:
    """Prepare data for a model with this chat template."""
    (model / "chat_template.jinja").write_text(template)
    tiny.prepare_rows([pair(number) for number in range(10)], model, output, 64)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__['os'].mkdir('MARKER') }}",
        "{{ lipsum.__globals__['os'].mkdir('MARKER') }}",
        "{{ (lipsum|attr('__globals__'))['os'].mkdir('MARKER') }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{% import 'os' as os %}{{ os.mkdir('MARKER') }}",
        "{% include '/etc/passwd' %}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ messages.append(messages[0]) }}",
    ],
)
def test_templates_that_not_only_write_text(model: Path, marker: Path, tmp_path: Path, template: str) -> None:
    with raises(DataError, "task task", "chat template"):
        prepare_with_template(model, tmp_path / "output", template.replace("MARKER", str(marker)))


@pytest.mark.slow
def test_an_endless_template_runs_until_it_is_ended_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    loop = "{% for i in range(99999) %}"
    call = (
        "import sys, pathlib; from tests.faults.test_security_models import prepare_with_template as prepare;"
        f"prepare(*map(pathlib.Path, sys.argv[1:]), '{loop * 2}{{% endfor %}}{{% endfor %}}')"
    )
    command = [sys.executable, "-c", call, str(model), str(tmp_path / "output")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not (tmp_path / "rows.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.1)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(PATIENCE_SECONDS)
        process.terminate()
    assert not (tmp_path / "output").exists()
