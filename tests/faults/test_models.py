"""Base models that cannot be trained and specialists that cannot be merged.

Everything in a local folder but the values of its weights is checked before the run.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from automixalign.merging.merge import merge_specialists
from automixalign.models.load import load_full_model
from automixalign.system.errors import AutoMixAlignError, ModelError
from benchmarks import tiny
from tests.faults.command_line import CommandLine, experiment
from tests.faults.common import Damage, assert_empty, cut, prepare, raises, remove, write
from tests.faults.test_rows import GOOD, SOURCE, lines, message, pair

UP, EMBEDDING, HEAD = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight", "lm_head.weight"
WEIGHTS = "model.safetensors"


def weights(edit: Callable[[dict[str, Any]], object]) -> Damage:
    def change(model: Path) -> None:
        weights = load_file(model / WEIGHTS)
        edit(weights)
        save_file(weights, model / WEIGHTS, metadata={"format": "pt"})

    return change


def put_nan(weights: dict[str, Any]) -> None:
    weights[UP][0, 0] = float("nan")


def cut_shape(weights: dict[str, Any]) -> None:
    weights[UP] = weights[UP][:7].clone()


def cut_vocabulary(weights: dict[str, Any]) -> None:
    weights |= {name: weights[name][:50].clone() for name in (EMBEDDING, HEAD)}


def config(**values: Any) -> Damage:
    def change(model: Path) -> None:
        path = model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def tokenizer(edit: Callable[[Any], object]) -> Damage:
    def change(model: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(model)
        edit(tokenizer)
        tokenizer.save_pretrained(model)

    return change


def template(text: str) -> Damage:
    return write("chat_template.jinja", text)


def pickle_weights(model: Path) -> None:
    torch.save(load_file(model / WEIGHTS), model / "pytorch_model.bin")
    (model / WEIGHTS).unlink()


def remove_shard(model: Path) -> None:
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    (model / WEIGHTS).rename(model / first)
    index = {"metadata": {}, "weight_map": {EMBEDDING: first, HEAD: second}}
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def add_code(model: Path) -> None:
    (model / "modeling_own.py").write_text("raise SystemExit('own code ran')\n")
    classes = {"AutoConfig": "modeling_own.C", "AutoModelForCausalLM": "modeling_own.M"}
    config(model_type="own", auto_map=classes)(model)


def become(made: Callable[[Path], Any]) -> Damage:
    """Replace it by another model."""

    def change(model: Path) -> None:
        other = made(model)
        shutil.rmtree(model)
        other.save_pretrained(model)

    return change


def with_adapter(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(target_modules=["q_proj"]))


def wide_llama() -> LlamaForCausalLM:
    return tiny.llama(vocab_size=50, hidden_size=32, intermediate_size=64)


def gpt2(_: Path) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=102, n_embd=16, n_layer=1, n_head=2, n_positions=64))


def empty(model: Path) -> None:
    shutil.rmtree(model)
    model.mkdir()


def become_file(model: Path) -> None:
    weights = (model / WEIGHTS).read_bytes()
    shutil.rmtree(model)
    model.write_bytes(weights)


def bad(name: str, change: Damage, *parts: str, rows: bytes = lines(GOOD)) -> Any:
    return pytest.param(change, parts, rows, id=name)


LOADED, OF = "base_model.source: model cannot be loaded", "base_model.source: model: "
REFUSES = "task own: the chat template refuses"
UNKNOWN_TOKENIZER = '{"version": "1.0", "added_tokens": [], "model": {"type": "no-such-model"}}'
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}a"
SYSTEM = lines([pair(0, prompt=message("system") + message("user")), *GOOD])


def configure(cli: CommandLine, rows: bytes = lines(GOOD), **changes: Any) -> None:
    (cli.folder / SOURCE).write_bytes(rows)
    base = {"base_model": "model", "tasks": [{"name": "own", "source": SOURCE}], "max_length": 128}
    cli.configure(experiment({**base, **changes}))


@pytest.mark.parametrize(
    ("change", "parts", "rows"),
    [
        # Files.
        bad("an empty folder", empty, LOADED),
        bad("no config.json", remove("config.json"), LOADED),
        bad("config.json cut short", cut("config.json", 40), LOADED),
        bad("an unknown architecture", config(model_type="no-such"), LOADED, "no-such"),
        bad("encoder-decoder", config(model_type="t5", architectures=["T5ForConditionalGeneration"]), LOADED),
        bad("code of its own", add_code, LOADED),
        bad("no weights", remove(WEIGHTS), LOADED, WEIGHTS),
        bad("pickled weights alone", pickle_weights, LOADED, "safetensors"),
        bad("weights cut short", cut(WEIGHTS, -100), LOADED, "incomplete"),
        bad("weights that are none", write(WEIGHTS, b"no weights" * 99), LOADED),
        bad("a missing shard", remove_shard, LOADED, "model-00002-of-00002.safetensors"),
        bad("a missing weight", weights(lambda weights: weights.pop(UP)), OF, "1 weights are missing", UP),
        bad("missing weights", weights(lambda w: (w.pop(UP), w.pop(HEAD))), OF, "2 weights are missing", HEAD),
        bad("weight of another shape", weights(cut_shape), OF, UP, "[7, 16]", "config.json needs [32, 16]"),
        bad("a smaller vocabulary", weights(cut_vocabulary), OF, HEAD, "[50, 16]"),
        bad(
            "LoRA adapter", become(lambda m: with_adapter(load_full_model(m))), LOADED, "an adapter", "merge it"
        ),
        bad("a file of weights", become_file, LOADED),
        # Tokenizers.
        bad("no tokenizer", remove("*token*", "chat_template*"), LOADED),
        bad("a tokenizer cut short", cut("tokenizer.json", 200), LOADED),
        bad("an empty tokenizer", write("tokenizer.json", "{}"), LOADED),
        bad("an unknown tokenizer", write("tokenizer.json", UNKNOWN_TOKENIZER), LOADED),
        bad(
            "an EOS token that the model lacks",
            tokenizer(lambda t: t.add_special_tokens({"eos_token": "<end>"})),
            OF,
            "its end-of-sequence token '<end>' has the id 102, and its embedding has only 102 rows",
        ),
        bad("no EOS token", tokenizer(lambda t: setattr(t, "eos_token", None)), OF, "no end-of-sequence token"),
        # Templates.
        bad(
            "messages without chat template",
            remove("chat_template.jinja"),
            "task own: the data is conversational",
            "no chat template",
        ),
        bad("a template that is none", template("{% for"), REFUSES, "say 0"),
        bad("a template without system messages", template(NO_SYSTEM), REFUSES, "no system", rows=SYSTEM),
        bad("a template that divides by zero", template("{{ 1 / 0 }}"), REFUSES, "division"),
        bad("an endless template", template("{% for i in range(10**9) %}x{% endfor %}"), REFUSES),
    ],
)
def test_refused(cli: CommandLine, model: Path, change: Damage, parts: tuple[str, ...], rows: bytes) -> None:
    change(model)
    configure(cli, rows)
    cli.refuses(*parts)
    if parts[0] in (LOADED, OF):  # the stage checks again, for a model may come from elsewhere
        with raises(ModelError, *parts[1:]):
            prepare(model, cli.folder / "out" / "base")
        assert_empty(cli.folder / "out")


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("max_length", 4096, ["max_length: the base model has 2048 positions"]),
        ("max_length", 8, ["task own: no pair fits max_length=8 tokens"]),
        ("training.lora.target_modules", ["c_attn"], ["target_modules: 'c_attn' is no module", "q_proj"]),
        ("training.lora.target_modules", ["q_proj", "v_prj"], ["training.lora.target_modules: 'v_prj'"]),
        (
            "training.lora.target_modules",
            ["input_layernorm"],
            ["training.lora: it does not fit the base model"],
        ),
        ("training.trainable", ["lm_haed"], ["training.trainable: 'lm_haed' matches no parameter", HEAD]),
    ],
)
def test_settings_that_do_not_fit_the_model(cli: CommandLine, key: str, value: Any, parts: list[str]) -> None:
    configure(cli, **{key: value})
    cli.refuses(*parts)


def test_a_tokenizer_without_padding_pads_with_the_end_of_sequence(cli: CommandLine, model: Path) -> None:
    tokenizer(lambda t: setattr(t, "pad_token", None))(model)
    configure(cli)
    cli.accepts()
    prepare(model, cli.folder / "out")
    assert AutoTokenizer.from_pretrained(cli.folder / "out").pad_token == "<eos>"


def test_a_name_that_no_hub_accepts_is_refused(cli: CommandLine) -> None:
    cli.configure(experiment({"base_model": "-inf"}))
    cli.refuses("base_model.source: -inf does not exist")
    with raises(ModelError, "base_model.source: -inf does not exist"):
        prepare("-inf", cli.folder / "out")


def test_a_weight_that_is_nan_is_refused_by_prepare_base_model(model: Path, tmp_path: Path) -> None:
    weights(put_nan)(model)
    with raises(ModelError, UP, "is not finite"):
        prepare(model, tmp_path / "out" / "base")
    assert_empty(tmp_path / "out")


def test_a_broken_gguf_file_is_refused_by_prepare_base_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF and nothing more")
    with raises(ModelError, "model.gguf cannot be loaded"):
        prepare(tmp_path / "model.gguf", tmp_path / "out" / "base")
    assert_empty(tmp_path / "out")


UNMERGEABLE = {
    "another architecture": (become(gpt2), ["task 'harmless'", "model_type is gpt2 instead of llama"]),
    "another shape": (weights(cut_shape), ["task 'harmless'", UP, "[7, 16] instead of [32, 16]"]),
    "an adapter of another": (
        become(lambda _: with_adapter(wide_llama())),
        ["task 'harmless'", "is no adapter of"],
    ),
    "cut short": (cut(WEIGHTS, -100), [f"model/{WEIGHTS} cannot be read"]),
    "empty": (empty, ["holds neither a config.json nor"]),
}


@pytest.mark.parametrize(("change", "parts"), UNMERGEABLE.values(), ids=UNMERGEABLE)
def test_specialists_that_cannot_be_merged(
    base_model: Path, model: Path, tmp_path: Path, change: Damage, parts: list[str]
) -> None:
    change(model)
    output = tmp_path / "out" / "merged"
    specialists = {"helpful": base_model, "harmless": model}
    with pytest.raises(AutoMixAlignError) as error:
        merge_specialists(base_model, specialists, "linear", {}, output, 0)
    assert not [part for part in parts if part not in str(error.value)], error.value
    assert_empty(output.parent)
