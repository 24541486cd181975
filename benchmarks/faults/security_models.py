"""Model folders that bring a pickle, code of their own, or a template that wants more than to write text."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

from automixalign.config.models import BaseModelSettings, BaseModelSpec
from automixalign.merging import merge
from automixalign.models import prepare as base_model
from automixalign.models import safety as model_files
from automixalign.models.load import load_full_model, load_model, load_tokenizer
from automixalign.system.errors import DataError, ModelError
from benchmarks import tiny
from benchmarks.faults import _malice
from benchmarks.faults.case import Case, UnexpectedError

_GROUP = "security_models"
_PICKLE = "ModelError names the pickle; it is not opened"
_CODE = "ModelError; the code is not run, whatever the terminal answers"
_PATIENCE = 5

Use = Callable[[Path, Path], object]
"""Do something with a spoiled model folder, with a new path for what comes of it."""


def prepare(source: object, output: Path) -> dict[str, Any]:
    """The base model from a source."""
    spec = BaseModelSpec(source=str(source))
    settings = BaseModelSettings(seed=0, base_model=spec, synthetic_tasks=[], fingerprint="")
    return base_model.prepare_base_model(settings, output)


def _load(folder: Path, _: Path) -> object:
    return load_model(folder, _malice.sound_model())


def _tokenizer(folder: Path, _: Path) -> object:
    return load_tokenizer(folder)


def _merge(folder: Path, output: Path) -> object:
    specialists = {"sound": _malice.sound_model(), "spoiled": folder}
    return merge.merge_specialists(_malice.sound_model(), specialists, "linear", {}, output, 0)


def _merge_onto(folder: Path, output: Path) -> object:
    sound = _malice.sound_model()
    return merge.merge_specialists(folder, {"one": sound, "other": sound}, "linear", {}, output, 0)


Spoil = Callable[[Path, Path], None]
"""Spoil a sound model folder; the second path is the marker that code would make."""


def _only_a_pickle(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").unlink()
    _malice.write_pickle(folder / "pytorch_model.bin", marker)


def _index_of_a_pickle(folder: Path, marker: Path) -> None:
    """transformers takes every file for a shard that the index of the safetensors names."""
    names = merge._tensor_shapes(folder)
    (folder / "model.safetensors").rename(folder / "another.safetensors")
    _malice.write_pickle(folder / "weights.bin", marker)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "weights.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _index_that_leads_out(folder: Path, marker: Path) -> None:
    names = merge._tensor_shapes(folder)
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    shutil.copy(folder.parent / "outside.safetensors", folder / "inside.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../outside.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _renamed_pickle(folder: Path, marker: Path) -> None:
    _malice.write_pickle(folder / "model.safetensors", marker)


def _code_of_its_own(folder: Path, marker: Path) -> None:
    (folder / "evil.py").write_text(_malice.code(marker) + "class Evil: pass\n")
    parts = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    _malice.change(folder / "config.json", model_type="evil", architectures=["Evil"], auto_map=parts)


def _code_for_a_known_model(folder: Path, marker: Path) -> None:
    (folder / "evil.py").write_text(_malice.code(marker) + "class Evil: pass\n")
    parts = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    _malice.change(folder / "config.json", auto_map=parts)
    _malice.change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(_malice.code(marker))


def _tokenizer_code(folder: Path, marker: Path) -> None:
    (folder / "evil.py").write_text(_malice.code(marker) + "class Evil: pass\n")
    parts = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    _malice.change(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map=parts)


def _kernel(folder: Path, marker: Path) -> None:
    _malice.change(folder / "config.json", attn_implementation="evil/kernel")


@cache
def _adapter() -> Path:
    from peft import LoraConfig, get_peft_model

    folder = _malice.scratch() / "adapter"
    policy = load_full_model(_malice.sound_model())
    get_peft_model(policy, LoraConfig(r=1, target_modules=["q_proj"])).save_pretrained(folder)
    return folder


def _adapter_pickle(folder: Path, marker: Path) -> None:
    _become_adapter(folder)
    (folder / model_files.ADAPTER_WEIGHTS).unlink()
    _malice.write_pickle(folder / "adapter_model.bin", marker)


def _adapter_with_a_module(folder: Path, marker: Path) -> None:
    """peft imports the module that `megatron_core` names."""
    _become_adapter(folder)
    (folder.parent / "evil.py").write_text(_malice.code(marker))
    _malice.change(folder / model_files.ADAPTER_CONFIG, megatron_config={"a": 1}, megatron_core="evil")


def _become_adapter(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(_adapter(), folder)


def _adapter_elsewhere(folder: Path, marker: Path) -> None:
    """transformers loads the model that an adapter names, from wherever it says."""
    for file in _adapter().iterdir():
        shutil.copy(file, folder)
    (folder / "config.json").unlink()
    _only_a_pickle(_malice.model(folder.parent / "elsewhere"), marker)
    elsewhere = str(folder.parent / "elsewhere")
    _malice.change(folder / model_files.ADAPTER_CONFIG, base_model_name_or_path=elsewhere)


def _refused(spoil: Spoil, use: Use, *words: str) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        spoiled, marker = _malice.model(folder / "spoiled"), folder / "marker"
        spoil(spoiled, marker)
        with _says_yes(folder):
            said = _malice.refused(ModelError, marker, lambda: use(spoiled, folder / "output"), *words)
        if (folder / "output").exists():
            raise UnexpectedError(f"half of it was written; {said}")
        return said

    return run


class _says_yes:  # noqa: N801  used like a function
    """Answer yes to every question at the terminal, and let modules be found in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __enter__(self) -> None:
        self.kept, sys.stdin = sys.stdin, io.StringIO("y\n" * 9)
        sys.path.insert(0, self.folder)

    def __exit__(self, *_: object) -> None:
        sys.stdin = self.kept
        sys.path.remove(self.folder)


def _loaded_natively(folder: Path) -> str:
    spoiled, marker, output = _malice.model(folder / "spoiled"), folder / "marker", folder / "output"
    _code_for_a_known_model(spoiled, marker)
    with _says_yes(folder):
        for use in (prepare, _load, _tokenizer):
            _malice.harmless(marker, partial(use, spoiled, output))
        _malice.harmless(marker, lambda: _merge(spoiled, folder / "merged"))
    left = [file.name for file in output.rglob("*") if "evil" in file.read_text(errors="replace")]
    if left or (output / "custom_generate").exists():
        raise UnexpectedError(f"the base model still names the code: {left}")
    return "loaded as the Llama that it is; the base model written does not name the code any more"


def _registered(folder: Path) -> str:
    """As a registered model: weights as a pickle, and the pickle of a pyfunc beside them."""
    import mlflow

    spoiled, marker, uri = _malice.model(folder / "model"), folder / "marker", f"sqlite:///{folder}/mlflow.db"
    _only_a_pickle(spoiled, marker)
    _malice.write_pickle(spoiled / "python_model.pkl", marker)
    flavour = {"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl"}
    (spoiled / "MLmodel").write_text(json.dumps({"flavors": {"python_function": flavour}}))
    with _malice.environment(MLFLOW_TRACKING_URI=uri):
        client = mlflow.MlflowClient(uri)
        client.create_registered_model("evil")
        client.create_model_version("evil", spoiled.as_uri())
        return _malice.refused(
            ModelError,
            marker,
            lambda: prepare("models:/evil/1", folder / "output"),
            "models:/evil/1",
            "is a pickle",
        )


def _on_a_server(folder: Path) -> str:
    spoiled, marker, source = _malice.model(folder / "model"), folder / "marker", "s3://ready/evil"
    _only_a_pickle(spoiled, marker)
    with _malice.server(folder) as client:
        for file in spoiled.iterdir():
            client.upload_file(str(file), "ready", f"evil/{file.name}")
        return _malice.refused(
            ModelError, marker, lambda: prepare(source, folder / "output"), source, "is a pickle"
        )


def _gguf(folder: Path) -> str:
    marker = folder / "marker"
    _malice.write_pickle(folder / "model.gguf", marker)
    return _malice.refused(
        ModelError, marker, lambda: prepare(folder / "model.gguf", folder / "output"), "GGUF"
    )


def tokenise(folder: Path, template: str) -> object:
    """Prepare data for a model with this chat template."""
    spoiled = _malice.model(folder / "spoiled")
    (spoiled / "chat_template.jinja").write_text(template)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{number}+1?"}],
            "chosen": [{"role": "assistant", "content": f"{number + 1}"}],
            "rejected": [{"role": "assistant", "content": "0"}],
        }
        for number in range(10)
    ]
    return tiny.prepare_rows(rows, spoiled, folder / "output", 64)


_TEMPLATES = {
    "subclasses of object": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a function": "{{ cycler.__init__.__globals__['os'].mkdir('MARKER') }}",
    "globals through lipsum": "{{ lipsum.__globals__['os'].mkdir('MARKER') }}",
    "attr filter": "{{ (lipsum|attr('__globals__'))['os'].mkdir('MARKER') }}",
    "format string": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "import": "{% import 'os' as os %}{{ os.mkdir('MARKER') }}",
    "include of a file": "{% include '/etc/passwd' %}",
    "a loop too long": "{% for i in range(10**9) %}{% endfor %}",
    "messages changed": "{{ messages.append(messages[0]) }}",
}


def _template(template: str) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        marker = folder / "marker"
        text = template.replace("MARKER", str(marker))
        return _malice.refused(DataError, marker, lambda: tokenise(folder, text), "task task", "chat template")

    return run


def _endless(folder: Path) -> str:
    """In a process of its own, which must still be at it when our patience ends, and end when it is told to."""
    call = (
        "import sys, pathlib; from benchmarks.faults import security_models as s; "
        "s.tokenise(pathlib.Path(sys.argv[1]), '{% for i in range(99999) %}{% for j in range(99999) %}"
        "{% endfor %}{% endfor %}')"
    )
    process = subprocess.Popen([sys.executable, "-c", call, str(folder)], stderr=subprocess.DEVNULL)
    try:
        while not (folder / "rows.jsonl").exists():
            if process.poll() is not None:
                raise UnexpectedError(f"it ended by itself, {process.returncode}")
        status = process.wait(_PATIENCE)
        raise UnexpectedError(f"it ended by itself, {status}")
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait(_PATIENCE)
    if (folder / "output").exists():
        raise UnexpectedError("half of it was written")
    return f"still at it after {_PATIENCE} s; ended by SIGTERM, nothing written"


_PREPARE, _LOAD, _MERGE = ("base model", prepare), ("policy", _load), ("merge", _merge)
_MERGE_ONTO, _TOKENIZER = ("base of a merge", _merge_onto), ("tokenizer", _tokenizer)


def _each(name: str, expected: str, spoil: Spoil, uses: Iterable[tuple[str, Use]], *words: str) -> list[Case]:
    return [Case(_GROUP, f"{name}: {title}", expected, _refused(spoil, use, *words)) for title, use in uses]


CHEAP = [
    *_each(
        "only a pytorch_model.bin",
        _PICKLE,
        _only_a_pickle,
        (_PREPARE, _LOAD, _MERGE, _MERGE_ONTO),
        "is a pickle",
    ),
    *_each(
        "an index that names a pickle", _PICKLE, _index_of_a_pickle, (_PREPARE, _LOAD, _MERGE), "weights.bin"
    ),
    *_each(
        "an index that leads out of the folder",
        "ModelError names index and file",
        _index_that_leads_out,
        (_PREPARE, _LOAD, _MERGE),
        "../outside.safetensors",
    ),
    *_each(
        "a pickle called model.safetensors",
        "ModelError; it is not unpickled",
        _renamed_pickle,
        (_PREPARE, _LOAD, _MERGE),
    ),
    *_each(
        "config.json names code of its own",
        _CODE,
        _code_of_its_own,
        (_PREPARE, _LOAD, _MERGE_ONTO),
        "never run",
    ),
    *_each(
        "tokenizer_config.json names code of its own",
        _CODE,
        _tokenizer_code,
        (_PREPARE, _TOKENIZER),
        "never run",
    ),
    *_each(
        "config.json names a kernel of a hub",
        "ModelError; nothing is fetched",
        _kernel,
        (_PREPARE, _LOAD, _MERGE),
        "evil/kernel",
    ),
    *_each("an adapter with only adapter_model.bin", _PICKLE, _adapter_pickle, (_LOAD, _MERGE), "is a pickle"),
    *_each(
        "an adapter that names a module to import",
        "ModelError; nothing is imported",
        _adapter_with_a_module,
        (_LOAD, _MERGE),
        "LoRA",
    ),
    *_each(
        "an adapter that names a model elsewhere",
        "ModelError; the other model is not opened",
        _adapter_elsewhere,
        (_PREPARE,),
        "adapter",
    ),
    Case(_GROUP, "a pickle called model.gguf: base model", "ModelError; it is not unpickled", _gguf),
    Case(_GROUP, "code beside a model that transformers knows", "not run; forgotten", _loaded_natively),
    *(
        Case(_GROUP, f"chat template: {name}", "DataError names the task; no code is run", _template(template))
        for name, template in _TEMPLATES.items()
    ),
]
CASES = [
    *CHEAP,
    Case(_GROUP, "only pickles behind models:/", _PICKLE, _registered),
    Case(_GROUP, "only a pickle behind s3://", _PICKLE, _on_a_server),
    Case(_GROUP, "chat template: endless", "the step works on until it is ended; nothing is written", _endless),
]
