"""Base models that cannot be trained, and specialists that cannot be merged.

Of a folder on this machine all but the values of the weights is looked at before the run.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from automixalign.system.errors import AutoMixAlignError
from benchmarks.faults._models import small_model
from benchmarks.faults._refusals import CONFIG, accepted, experiment, refused
from benchmarks.faults.case import Case, UnexpectedError
from benchmarks.faults.rows import GOOD, lines, pair, said

GROUP = "models"
MODEL, SOURCE = "model", "own.jsonl"
UP, EMBEDDING, HEAD = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight", "lm_head.weight"

Change = Callable[[Path], object]


def _settings(changes: Mapping[str, Any]) -> str:
    base = {"base_model": MODEL, "tasks": [{"name": "own", "source": SOURCE}], "max_length": 128}
    return experiment({**base, **changes})


def _refused(
    name: str,
    change: Change,
    *says: str,
    changes: Mapping[str, Any] | None = None,
    rows: bytes = lines(GOOD),
) -> Case:
    """Refuse a good model that was changed, or these settings or data for it."""

    def run(folder: Path) -> str:
        change(small_model(folder / MODEL))
        (folder / SOURCE).write_bytes(rows)
        (folder / CONFIG).write_text(_settings(changes or {}), encoding="utf-8")
        return refused(folder, *says)

    return Case(GROUP, name, f"refused before the run: {', '.join(says)}", run)


def _in_its_step(name: str, change: Change, *says: str) -> Case:
    """Refuse in the step that reads the weights, which are not looked at before."""

    def run(folder: Path) -> str:
        from automixalign.config.models import BaseModelSettings, BaseModelSpec
        from automixalign.models.prepare import prepare_base_model

        change(small_model(folder / MODEL))
        source = next((str(file) for file in folder.glob("*.gguf")), str(folder / MODEL))
        settings = BaseModelSettings(
            seed=0, base_model=BaseModelSpec(source=source), synthetic_tasks=[], fingerprint=""
        )
        return _named(lambda: prepare_base_model(settings, folder / "out" / "base"), folder / "out", *says)

    return Case(GROUP, name, f"refused by prepare_base_model: {', '.join(says)}", run)


def _unmerged(name: str, change: Change, *says: str) -> Case:
    """Refuse to merge a good specialist with one that was changed."""

    def run(folder: Path) -> str:
        from automixalign.merging.merge import merge_specialists

        base, good, bad = (small_model(folder / name) for name in ("base", "good", "bad"))
        change(bad)
        specialists = {"helpful": good, "harmless": bad}
        output = folder / "out" / "merged"
        return _named(
            lambda: merge_specialists(base, specialists, "linear", {}, output, 0), output.parent, *says
        )

    return Case(GROUP, name, f"refused by merge_specialists: {', '.join(says)}", run)


def _named(call: Callable[[], object], place: Path, *says: str) -> str:
    try:
        call()
    except AutoMixAlignError as error:
        message = str(error).replace(f"{place.parent}/", "")
        if missing := [text for text in says if text not in message]:
            raise UnexpectedError(f"the message does not name {missing[0]}: {message}") from error
        if place.exists() and any(place.iterdir()):
            raise UnexpectedError("files were left behind") from error
        return f"{type(error).__name__}: {message[:150]}"
    except Exception as error:
        raise UnexpectedError(f"{error!r:.200}") from error
    raise UnexpectedError("accepted")


def _weights(edit: Callable[[dict[str, Any]], object]) -> Change:
    def change(model: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(model / "model.safetensors")
        edit(weights)
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})

    return change


def _nan(weights: dict[str, Any]) -> None:
    weights[UP][0, 0] = float("nan")


def _wrong_shape(weights: dict[str, Any]) -> None:
    weights[UP] = weights[UP][:7].clone()


def _config(**values: Any) -> Change:
    def change(model: Path) -> None:
        path = model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def _file(name: str, content: bytes | None, at: slice | None = None) -> Change:
    """Write a file, remove it, or keep a part of it."""

    def change(model: Path) -> None:
        file = model / name
        if at is not None:
            file.write_bytes(file.read_bytes()[at])
        elif content is None:
            file.unlink()
        else:
            file.write_bytes(content)

    return change


def _tokenizer(**values: Any) -> Change:
    def change(model: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model)
        for key, value in values.items():
            setattr(tokenizer, key, value)
        tokenizer.save_pretrained(model)

    return change


def _larger_tokenizer(model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([f"<extra-{number}>" for number in range(40)])
    tokenizer.save_pretrained(model)


def _template(text: str) -> Change:
    return _file("chat_template.jinja", text.encode())


def _without_template(model: Path) -> None:
    (model / "chat_template.jinja").unlink()


def _without_tokenizer(model: Path) -> None:
    for file in [*model.glob("*token*"), *model.glob("chat_template*")]:
        file.unlink()


def _pickle(model: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def _missing_shard(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    places = {EMBEDDING: "model-00001-of-00002.safetensors", HEAD: "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _own_code(model: Path) -> None:
    (model / "modeling_own.py").write_text("raise SystemExit('own code ran')\n")
    _config(
        model_type="own", auto_map={"AutoConfig": "modeling_own.C", "AutoModelForCausalLM": "modeling_own.M"}
    )(model)


def _an_adapter(model: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    adapter = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(target_modules=["q_proj"]))
    _gone(model)
    adapter.save_pretrained(model)


def _adapter_of_another(model: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    other = LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes))
    _gone(model)
    get_peft_model(other, LoraConfig(target_modules=["q_proj"])).save_pretrained(model)


def _another_architecture(model: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    _gone(model)
    GPT2LMHeadModel(GPT2Config(vocab_size=102, **sizes)).save_pretrained(model)


def _gone(model: Path) -> None:
    shutil.rmtree(model)


def _emptied(model: Path) -> None:
    _gone(model)
    model.mkdir()


def _one_file(model: Path) -> None:
    weights = (model / "model.safetensors").read_bytes()
    _gone(model)
    model.write_bytes(weights)


def _gguf(model: Path) -> None:
    (model.parent / "model.gguf").write_bytes(b"GGUF and nothing more")


def _as_it_is(model: Path) -> None:
    """The settings or the data are at fault."""


def _no_pad_token(folder: Path) -> str:
    from transformers import AutoTokenizer

    from automixalign.config.models import BaseModelSettings, BaseModelSpec
    from automixalign.models.prepare import prepare_base_model

    _tokenizer(pad_token=None)(small_model(folder / MODEL))
    (folder / SOURCE).write_bytes(lines(GOOD))
    (folder / CONFIG).write_text(_settings({}), encoding="utf-8")
    accepted(folder)
    spec = BaseModelSpec(source=str(folder / MODEL))
    prepare_base_model(
        BaseModelSettings(seed=0, base_model=spec, synthetic_tasks=[], fingerprint=""), folder / "out"
    )
    padding = AutoTokenizer.from_pretrained(folder / "out").pad_token
    if padding != "<eos>":
        raise UnexpectedError(f"padding with {padding!r}")
    return "pads with the end-of-sequence token"


LOADED = f"base_model.source: {MODEL} cannot be loaded"
OF = f"base_model.source: {MODEL}: "
SYSTEM = lines([pair(0, prompt=said("system") + said("user")), *GOOD])

CASES: list[Case] = [
    # Files.
    _refused("an empty folder", _emptied, LOADED),
    _refused("no config.json", _file("config.json", None), LOADED),
    _refused("config.json cut short", _file("config.json", None, slice(40)), LOADED),
    _refused("an architecture nobody knows", _config(model_type="no-such"), LOADED, "no-such"),
    _refused(
        "an encoder-decoder", _config(model_type="t5", architectures=["T5ForConditionalGeneration"]), LOADED
    ),
    _refused("code of its own", _own_code, LOADED),
    _refused("no weights", _file("model.safetensors", None), LOADED, "model.safetensors"),
    _refused("pickled weights alone", _pickle, LOADED, "safetensors"),
    _refused("weights cut short", _file("model.safetensors", None, slice(-100)), LOADED, "incomplete"),
    _refused("weights that are none", _file("model.safetensors", b"no weights" * 99), LOADED),
    _refused("a shard that is missing", _missing_shard, LOADED, "model-00002-of-00002.safetensors"),
    _refused(
        "one weight that is missing", _weights(lambda weights: weights.pop(UP)), OF, "1 weights are missing", UP
    ),
    _refused("one weight of another shape", _weights(_wrong_shape), OF, UP, "[7, 16]", "[32, 16]"),
    _refused("a LoRA adapter", _an_adapter, LOADED, "holds an adapter", "merge it"),
    _refused("a file of weights", _one_file, LOADED),
    # Tokenizers.
    _refused("no tokenizer", _without_tokenizer, LOADED),
    _refused("a tokenizer cut short", _file("tokenizer.json", None, slice(200)), LOADED),
    _refused(
        "a tokenizer larger than the model", _larger_tokenizer, OF, "knows 142 tokens, the model only 102"
    ),
    _refused("no end-of-sequence token", _tokenizer(eos_token=None), OF, "no end-of-sequence token"),
    # Templates.
    _refused(
        "messages without chat template",
        _without_template,
        "task own: the data is conversational",
        "no chat template",
    ),
    _refused("a template that is none", _template("{% for"), "task own: the chat template refuses", "say 0"),
    _refused(
        "a template that knows no system",
        _template("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}a"),
        "task own: the chat template refuses",
        "no system",
        rows=SYSTEM,
    ),
    _refused(
        "a template that divides by zero",
        _template("{{ 1 / 0 }}"),
        "task own: the chat template refuses",
        "division",
    ),
    _refused(
        "a template without end",
        _template("{% for i in range(10**9) %}x{% endfor %}"),
        "task own: the chat template refuses",
    ),
    # Settings and data that do not fit it.
    _refused(
        "max_length above its positions",
        _as_it_is,
        "max_length: the base model has 256 positions",
        changes={"max_length": 512},
    ),
    _refused(
        "every prompt longer than max_length",
        _as_it_is,
        "task own: none of its 12 pairs fits max_length=8",
        changes={"max_length": 8},
    ),
    _refused(
        "LoRA targets that are not there",
        _as_it_is,
        "training.lora.target_modules: 'c_attn' is no module",
        "q_proj",
        changes={"training.lora": {"target_modules": ["c_attn"]}},
    ),
    _refused(
        "one LoRA target of two that is not there",
        _as_it_is,
        "training.lora.target_modules: 'v_prj'",
        changes={"training.lora": {"target_modules": ["q_proj", "v_prj"]}},
    ),
    _refused(
        "a LoRA target of a kind that has none",
        _as_it_is,
        "training.lora: the base model does not take it",
        changes={"training.lora": {"target_modules": ["input_layernorm"]}},
    ),
    _refused(
        "`trainable` that finds nothing",
        _as_it_is,
        "training.trainable: 'lm_haed' finds no parameter",
        "lm_head.weight",
        changes={"training.trainable": ["lm_haed"]},
    ),
    # What only the weights show.
    _in_its_step("a weight that is NaN", _weights(_nan), UP, "is not finite"),
    _in_its_step("a GGUF file that is none", _gguf, "model.gguf cannot be loaded"),
    # Merges.
    _unmerged(
        "a specialist of another architecture",
        _another_architecture,
        "task 'harmless'",
        "model_type is gpt2 instead of llama",
    ),
    _unmerged(
        "a specialist of another shape",
        _weights(_wrong_shape),
        "task 'harmless'",
        UP,
        "[7, 16] instead of [32, 16]",
    ),
    _unmerged("an adapter of another model", _adapter_of_another, "task 'harmless'", "is no adapter of"),
    _unmerged(
        "a specialist cut short",
        _file("model.safetensors", None, slice(-100)),
        "bad/model.safetensors cannot be read",
    ),
    _unmerged("a specialist that is gone", _emptied, "holds neither a config.json nor"),
    # What is accepted.
    Case(GROUP, "a tokenizer without padding", "accepted: pads with the end-of-sequence token", _no_pad_token),
]
