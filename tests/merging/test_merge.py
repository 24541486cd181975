"""Merging: the table matches mergekit's registry, the weights match hand-written oracles."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from mergekit.common import ModelPath, ModelReference
from mergekit.config import InputModelDefinition, MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.merge_methods import TensorGroup, merge_method
from mergekit.merge_methods.base import BasePolicy, ParameterScope
from mergekit.merge_methods.registry import registered_methods
from mergekit.options import MergeOptions
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from automixalign.merging import inputs as merge_inputs
from automixalign.merging.inputs import fold
from automixalign.merging.merge import merge_specialists
from automixalign.method.merge_methods import (
    EXCLUDED,
    check,
    register,
    registered_merges,
    resolve,
    scale_counts,
)
from automixalign.system.errors import ModelError
from benchmarks import tiny

Weights = dict[str, torch.Tensor]
Merged = Callable[..., Weights]
TASKS = ("maths", "chat", "safety")
MERGE_METHODS = dict(registered_merges())
REGISTRY = {method.spec.name: method.spec for method in registered_methods()}
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


def build(
    seed: int, *, tied: bool = False, hidden: int = 16, heads: int = 2, layers: int = 2, bias: bool = False
) -> LlamaForCausalLM:
    return tiny.llama(
        seed,
        vocab_size=12,
        hidden_size=hidden,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def save(model: LlamaForCausalLM, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def save_base(model: LlamaForCausalLM, folder: Path) -> Path:
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    vocabulary = {word: i for i, word in enumerate([*special.values(), *"abcdefgh"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = TEMPLATE
    model.generation_config.max_length = 77
    fast.save_pretrained(folder)
    return save(model, folder)


def tuned(base: Path, seed: int) -> LlamaForCausalLM:
    """The base with a small change of every weight."""
    model = LlamaForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def weights(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")


def merge(
    base: Path,
    models: Mapping[str, Path],
    method: str,
    output: Path,
    seed: int = 0,
    parameters: Mapping[str, float] | None = None,
) -> Weights:
    """Merge models into `output`; return the weights."""
    merge_specialists(base, models, method, parameters or {}, output, seed)
    return weights(output)


def assert_equal(actual: Weights, expected: Weights) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, atol=1e-6, rtol=0, msg=name)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models@v1+x")  # both characters are syntax to mergekit


@pytest.fixture(scope="module")
def base(root: Path) -> Path:
    return save_base(build(0), root / "base")


@pytest.fixture(scope="module")
def specialists(root: Path, base: Path) -> dict[str, Path]:
    return {task: save(tuned(base, seed), root / task) for seed, task in enumerate(TASKS, 1)}


@pytest.fixture(scope="module")
def adapters(root: Path, base: Path) -> dict[str, Path]:
    folders = {}
    for seed, task in enumerate(TASKS):
        torch.manual_seed(seed)
        model = get_peft_model(
            LlamaForCausalLM.from_pretrained(base),
            LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
        )
        folders[task] = root / f"adapter-{task}"
        model.save_pretrained(folders[task])
    return folders


@pytest.fixture
def merged(base: Path, specialists: dict[str, Path], tmp_path: Path) -> Merged:
    """Merge the first `models` specialists and return the weights."""

    def run(method: str, models: int = 3, seed: int = 0, **parameters: float) -> Weights:
        chosen = dict(list(specialists.items())[:models])
        folder = tmp_path / f"{method}-{len(list(tmp_path.iterdir()))}"
        return merge(base, chosen, method, folder, seed, parameters)

    return run


def several(specialists: Mapping[str, Path], method: str) -> dict[str, Path]:
    return dict(list(specialists.items())[: MERGE_METHODS[method].max_models or 3])


class TestTable:
    def test_covers_mergekits_registry(self) -> None:
        assert MERGE_METHODS.keys() | EXCLUDED.keys() == REGISTRY.keys()
        assert not MERGE_METHODS.keys() & EXCLUDED.keys()

    @pytest.mark.parametrize("name", MERGE_METHODS)
    def test_agrees_with_mergekit(self, name: str) -> None:
        ours, theirs = MERGE_METHODS[name], REGISTRY[name]
        parameters = {parameter.name: parameter for parameter in theirs.parameters}
        assert ours.parameters <= parameters.keys()
        assert ours.name == name
        assert ours.default_parameters.keys() | ours.per_model_parameters.keys() <= ours.parameters
        assert {p.name for p in theirs.parameters if p.required} <= (
            ours.default_parameters.keys() | ours.per_model_parameters.keys()
        )
        for key in ours.parameters:
            assert (parameters[key].scope != ParameterScope.SHARED) == (key in ours.per_model_parameters), key
        assert (theirs.contract.base == BasePolicy.REQUIRED) <= (ours.needs_base or ours.first_is_base)
        theirs_normalize = parameters.get("normalize")
        if theirs_normalize:
            assert ours.default_parameters["normalize"] == theirs_normalize.default
        if "arxiv" in str(theirs.reference_url):
            assert ours.paper == theirs.reference_url

    @pytest.mark.parametrize("name", MERGE_METHODS)
    @pytest.mark.parametrize("models", [1, 2, 3, 4])
    def test_accepts_as_many_specialists_as_mergekit(self, name: str, models: int) -> None:
        spec = MERGE_METHODS[name]
        inputs = [*range(models), *(["base"] if spec.needs_base else [])]
        base_id = "base" if spec.needs_base else 0 if spec.first_is_base else None
        try:
            REGISTRY[name].contract.validate_ids(inputs, base_id)
            possible = (name, models) != ("sce", 1)  # mergekit takes one, its guide asks for two
        except ValueError:
            possible = False
        if possible:
            check(name, models, {})
        else:
            with pytest.raises(ValueError, match=f"{name} merges .*, got {models}"):
                check(name, models, {})


class TestCheck:
    @pytest.mark.parametrize("name", MERGE_METHODS)
    def test_accepts_its_own_defaults(self, name: str) -> None:
        spec = MERGE_METHODS[name]
        check(name, spec.max_models or 3, {**spec.default_parameters, **spec.per_model_parameters})

    @pytest.mark.parametrize(
        ("name", "models", "parameters", "message"),
        [
            ("tie", 2, {}, r"unknown merge method 'tie' .did you mean 'ties'..; known are arcee.*ties"),
            ("passthrough", 2, {}, r"passthrough cannot merge specialists: .*; use arcee_fusion"),
            ("slerp", 3, {}, r"slerp merges exactly 2 specialists, got 3"),
            ("model_stock", 1, {}, r"model_stock merges at least 2 specialists, got 1"),
            ("linear", 0, {}, r"linear merges at least 1 specialist, got 0"),
            ("linear", 2, {"density": 0.5}, r"linear has no parameter 'density'; .*normalize, weig"),
            ("arcee_fusion", 2, {"t": 0.5}, r"arcee_fusion has no parameter 't'; .* no parameters"),
            ("ties", 2, {"density": 0.0}, r"ties: density must be a number in \(0, 1\], got 0"),
            ("ties", 2, {"density": 1.5}, r"ties: density must be a number in \(0, 1\], got 1.5"),
            ("ties", 2, {"normalize": 0.5}, r"ties: normalize must be 0 or 1, got 0.5"),
            ("slerp", 2, {"t": -0.1}, r"slerp: t must be a number in \[0, 1\], got -0.1"),
            ("linear", 2, {"weight": 0}, r"linear: weight must be a number above 0, got 0"),
            ("linear", 2, {"weight": float("nan")}, r"linear: weight must be .*, got nan"),
            ("karcher", 2, {"max_iter": 2.5}, r"max_iter must be an integer of at least 1, got 2.5"),
            ("della", 2, {"density": 0.1}, r"della: density - epsilon .* got density 0.1 and eps"),
            ("della_linear", 2, {"epsilon": 0.5}, r"della_linear: .* density 0.5 and epsilon 0.5"),
        ],
    )
    def test_refuses(self, name: str, models: int, parameters: dict[str, float], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            check(name, models, parameters)

    def test_resolve_puts_given_parameters_over_defaults(self) -> None:
        shared, per_model = resolve("ties", {"density": 0.25, "normalize": 0.0, "int8_mask": 1})
        assert shared == {"normalize": False, "lambda": 1.0, "rescale": False, "int8_mask": True}
        assert per_model == {"weight": 1.0, "density": 0.25}
        assert isinstance(shared["int8_mask"], bool)
        assert isinstance(resolve("karcher", {"max_iter": 5.0})[0]["max_iter"], int)


class TestAgainstOracles:
    def test_linear_is_the_average(self, merged: Merged, specialists: dict[str, Path]) -> None:
        models = [weights(folder) for folder in specialists.values()]
        assert_equal(merged("linear"), {name: sum(m[name] for m in models) / 3 for name in models[0]})

    @pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
    def test_a_task_has_a_weight_of_its_own(
        self, method: str, base: Path, specialists: dict[str, Path], tmp_path: Path
    ) -> None:
        merge_specialists(base, specialists, method, {"weight": 2.0}, tmp_path / "m", 0, {"chat": 6.0})
        before, vectors = weights(base), [weights(folder) for folder in specialists.values()]
        shares = [2.0, 6.0, 2.0] if method == "task_arithmetic" else [0.2, 0.6, 0.2]
        expected = {
            name: start + sum(share * (own[name] - start) for share, own in zip(shares, vectors, strict=True))
            for name, start in before.items()
        }
        assert_equal(weights(tmp_path / "m"), expected)

    @pytest.mark.parametrize(
        "method", [name for name, spec in MERGE_METHODS.items() if "weight" in spec.parameters]
    )
    def test_a_common_factor_of_the_weights_counts_where_the_table_says(
        self, method: str, base: Path, specialists: dict[str, Path], tmp_path: Path
    ) -> None:
        chosen = several(specialists, method)
        one, other = (merge(base, chosen, method, tmp_path / f"{w}", 0, {"weight": w}) for w in (0.5, 1.0))
        apart = max(float((tensor - other[name]).abs().max()) for name, tensor in one.items())
        assert (apart > 1e-4) == scale_counts(method, {})

    @pytest.mark.parametrize("parameters", [{}, {"weight": 0.3}, {"weight": 2.0, "lambda": 0.25}])
    def test_task_arithmetic_adds_weighted_task_vectors(
        self, merged: Merged, base: Path, specialists: dict[str, Path], parameters: dict[str, float]
    ) -> None:
        start = weights(base)
        models = [weights(folder) for folder in specialists.values()]
        factor = parameters.get("weight", 1.0) * parameters.get("lambda", 1.0)
        expected = {name: start[name] + sum(factor * (m[name] - start[name]) for m in models) for name in start}
        assert_equal(merged("task_arithmetic", **parameters), expected)

    @pytest.mark.parametrize("density", [0.5, 0.2])
    def test_ties_trims_elects_and_merges(
        self, merged: Merged, base: Path, specialists: dict[str, Path], density: float
    ) -> None:
        start = weights(base)
        models = [weights(folder) for folder in specialists.values()]
        expected = {name: ties(tensor, [m[name] for m in models], density) for name, tensor in start.items()}
        assert_equal(merged("ties", density=density), expected)

    def test_slerp_and_nearswap_start_from_the_first(
        self, merged: Merged, specialists: dict[str, Path]
    ) -> None:
        first, second = (weights(folder) for folder in list(specialists.values())[:2])
        assert_equal(merged("slerp", 2, t=0.0), first)
        assert_equal(merged("slerp", 2, t=1.0), second)
        assert_equal(merged("nearswap", 2, t=1e-12), first)
        assert_equal(merged("nearswap", 2, t=10.0), second)

    @pytest.mark.parametrize("method", [name for name, spec in MERGE_METHODS.items() if spec.min_models == 1])
    def test_one_unpruned_specialist_stays_unchanged(
        self, merged: Merged, specialists: dict[str, Path], method: str
    ) -> None:
        whole = {"density": 1.0} if "density" in MERGE_METHODS[method].limits else {}
        whole |= {"epsilon": 1e-9} if method.startswith("ram") else {}
        assert_equal(merged(method, 1, **whole), weights(specialists["maths"]))


def ties(base: torch.Tensor, models: list[torch.Tensor], density: float) -> torch.Tensor:
    """TIES by single weights: trim, elect sign, disjoint mean (https://arxiv.org/abs/2306.01708)."""
    trimmed: list[list[float]] = []
    for model in models:
        delta = (model - base).flatten().tolist()
        largest = sorted(range(len(delta)), key=lambda i: -abs(delta[i]))
        chosen = set(largest[: max(1, int(density * len(delta)))])
        trimmed.append([value if i in chosen else 0.0 for i, value in enumerate(delta)])
    merged = []
    for values in zip(*trimmed, strict=True):
        positive = sum(values) >= 0
        agreeing = [value for value in values if value != 0 and (value > 0) == positive]
        merged.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return base + torch.tensor(merged).reshape(base.shape)


class TestResult:
    @pytest.mark.parametrize("method", MERGE_METHODS)
    def test_every_method_gives_a_model_that_loads(
        self, base: Path, specialists: dict[str, Path], tmp_path: Path, method: str
    ) -> None:
        chosen = several(specialists, method)
        output = tmp_path / "merged"
        info = merge_specialists(base, chosen, method, {}, output, 0)
        model, report = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
        assert all(weights(output)[n].ne(t).any() for n, t in weights(base).items())
        assert info["tasks"] == list(chosen)
        assert info["method"] == method
        assert info["paper"] == MERGE_METHODS[method].paper
        assert [entry.name for entry in tmp_path.iterdir()] == ["merged"]

    @pytest.mark.parametrize("method", ["linear", "ties"])  # without and with mergekit's base_model
    def test_tokenizer_and_configuration_are_the_bases(
        self, base: Path, specialists: dict[str, Path], tmp_path: Path, method: str
    ) -> None:
        merge_specialists(base, specialists, method, {}, tmp_path / "merged", 0)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
        assert tokenizer.chat_template == TEMPLATE
        assert tokenizer("a c h")["input_ids"] == [4, 6, 11]
        files = {path.name for path in (tmp_path / "merged").iterdir()}
        assert files == {path.name for path in base.iterdir()}
        for name in files - {"model.safetensors"}:
            assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()

    def test_a_method_of_another_package(self, merged: Merged, specialists: dict[str, Path]) -> None:
        @register(name="middle", paper="", needs_base=False, limits={})
        @merge_method(name="middle")
        def middle(group: TensorGroup) -> torch.Tensor:
            return torch.stack([entry.tensor for entry in group.entries]).median(dim=0).values

        assert middle.module == __name__
        for _ in range(2):  # mergekit accepts a name once
            result = merged("middle")
        each = [weights(folder) for folder in specialists.values()]
        expected = {name: torch.stack([w[name] for w in each]).median(dim=0).values for name in each[0]}
        assert_equal(result, expected)

    def test_adapters_merge_as_if_folded(self, base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
        folded = {}
        for task, folder in adapters.items():
            model = LlamaForCausalLM.from_pretrained(base)
            folded[task] = save(PeftModel.from_pretrained(model, folder).merge_and_unload(), tmp_path / task)
        mixed = {**adapters, "chat": folded["chat"]}
        for method in ("linear", "ties", "multislerp", "model_stock"):
            results = []
            for kind, models in {"full": folded, "lora": adapters, "mixed": mixed}.items():
                results.append(merge(base, models, method, tmp_path / f"{method}-{kind}"))
            assert_equal(results[1], results[0])
            assert_equal(results[2], results[0])
        assert not list(tmp_path.glob(".*"))

    @pytest.mark.parametrize("method", MERGE_METHODS)
    def test_weights_that_no_specialist_changed_stay(
        self, base: Path, adapters: dict[str, Path], tmp_path: Path, method: str
    ) -> None:
        """An adapter's task vectors are zero outside its modules, and so are their norms."""
        result = merge(base, several(adapters, method), method, tmp_path / "merged")
        for name, tensor in weights(base).items():
            assert torch.isfinite(result[name]).all()
            if "q_proj" not in name and "down_proj" not in name:
                torch.testing.assert_close(result[name], tensor, atol=1e-5, rtol=1e-5, msg=name)

    def test_bfloat16_merges_in_float32(self, base: Path, specialists: dict[str, Path], tmp_path: Path) -> None:
        models = {}
        for task, folder in {"base": base, **specialists}.items():
            models[task] = save(LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16), tmp_path / task)
        start = models.pop("base")
        result = merge(start, models, "task_arithmetic", tmp_path / "merged")
        rounded = [weights(folder) for folder in models.values()]
        for name, origin in weights(start).items():
            deltas = torch.stack([m[name].float() - origin.float() for m in rounded])
            assert torch.equal(result[name], (origin.float() + deltas.sum(dim=0)).bfloat16()), name
        assert AutoConfig.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16

    def test_rereads_a_retrained_folder(self, base: Path, specialists: dict[str, Path], tmp_path: Path) -> None:
        """mergekit keeps the files of a path open until the process ends."""
        cached = len(LoaderCache.loaders)
        for task in ("maths", "chat"):
            folder = tmp_path / "model"
            save(LlamaForCausalLM.from_pretrained(specialists[task]), folder)
            result = merge(base, {"x": folder, "y": folder}, "linear", tmp_path / task)
            assert_equal(result, weights(specialists[task]))
        assert len(LoaderCache.loaders) == cached


class TestSameBits:
    """A merge by single tensors equals those of mergekit and peft with whole models, to the last bit."""

    @pytest.mark.parametrize("method", MERGE_METHODS)
    def test_as_mergekit(self, base: Path, specialists: dict[str, Path], tmp_path: Path, method: str) -> None:
        chosen = several(specialists, method)
        ours = merge(base, chosen, method, tmp_path / "ours", seed=5)
        spec, (shared, per_model) = MERGE_METHODS[method], resolve(method, {})
        first, *inputs = (ModelReference(model=ModelPath(path=str(path))) for path in (base, *chosen.values()))
        configuration = MergeConfiguration(
            merge_method=method,
            models=[InputModelDefinition(model=model, parameters=per_model) for model in inputs],
            base_model=first if spec.needs_base else inputs[0] if spec.first_is_base else None,
            parameters=shared,
            dtype="float32",
            out_dtype="float32",
        )
        options = MergeOptions(device="cpu", random_seed=5, write_model_card=False)
        run_merge(configuration, str(tmp_path / "mergekit"), options)
        assert_same_bits(ours, weights(tmp_path / "mergekit"))

    @pytest.mark.parametrize(
        ("options", "streamed"),
        [
            ({"target_modules": "all-linear"}, True),
            ({"use_rslora": True}, True),
            ({"target_modules": ["q_proj", "lm_head"]}, False),  # peft stores the base's weight, too
            ({"rank_pattern": {"layers.1.*": 3}, "alpha_pattern": {"layers.0.*": 5}}, True),
            ({"layers_to_transform": [1]}, True),
            ({"use_rslora": True}, True),
            ({"use_dora": True}, False),
            ({"lora_bias": True}, False),
            ({"modules_to_save": ["lm_head"]}, False),
            ({"target_modules": ["embed_tokens", "q_proj"]}, False),
            ({"trainable_token_indices": [1, 2]}, False),
        ],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_an_adapter_is_folded_as_peft_folds_it(
        self, tmp_path: Path, options: dict[str, Any], streamed: bool, dtype: torch.dtype
    ) -> None:
        model = save(build(4, bias=options.get("lora_bias", False)).to(dtype), tmp_path / "base")
        self.check(model, {"target_modules": ["q_proj", "down_proj"], **options}, streamed)

    @pytest.mark.parametrize("stored", [torch.bfloat16, torch.float64])
    def test_an_adapter_stored_in_another_dtype(self, base: Path, tmp_path: Path, stored: torch.dtype) -> None:
        model = shutil.copytree(base, tmp_path / "base")
        self.check(Path(model), {"target_modules": ["q_proj"]}, True, stored=stored)

    def test_an_adapter_of_a_float64_base(self, tmp_path: Path) -> None:
        model = save(build(4).double(), tmp_path / "base")
        self.check(model, {"target_modules": ["q_proj"]}, True, dtype=torch.float64)

    def test_an_adapter_of_tied_weights(self, tmp_path: Path) -> None:
        model = save(build(4, tied=True), tmp_path / "base")
        self.check(model, {"target_modules": ["q_proj", "lm_head"]}, False)

    def test_an_adapter_of_transposed_weights(self, tmp_path: Path) -> None:
        model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=12, n_positions=8))
        model.save_pretrained(tmp_path / "base")
        self.check(tmp_path / "base", {"target_modules": ["c_attn"], "fan_in_fan_out": True}, True)

    @staticmethod
    def check(
        base: Path,
        options: dict[str, Any],
        streamed: bool,
        stored: torch.dtype | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        adapter, folder, whole = (base.with_name(name) for name in ("adapter", "folded", "whole"))
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(base)
        config = LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, task_type="CAUSAL_LM", **options)
        get_peft_model(model, config).save_pretrained(adapter)
        if stored is not None:
            file = adapter / "adapter_model.safetensors"
            save_file({name: tensor.to(stored) for name, tensor in load_file(file).items()}, file)
        loader = fold(base, adapter, folder, dtype)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(whole)
        folded = {name: loader.get_tensor(name) for name in loader.index.tensor_paths}
        assert_same_bits({name: tensor.to(dtype) for name, tensor in folded.items()}, weights(whole))
        assert folder.is_symlink() == streamed
        assert any(not torch.equal(folded[name], tensor) for name, tensor in weights(base).items())

    def test_a_file_leaves_memory_after_use(
        self, base: Path, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(merge_inputs, "UNUSED_BYTES", 1)
        model = Path(shutil.copytree(base, tmp_path / "base"))  # no other loader has it open
        loader = fold(model, adapters["chat"], tmp_path / "folded", torch.float32)
        name = "model.layers.0.self_attn.k_proj.weight"  # the adapter does not change it
        tensor = loader.get_tensor(name)
        assert tensor is not None
        assert torch.equal(tensor, weights(base)[name])
        mapped = Path("/proc/self/maps")
        assert str(model) in mapped.read_text()
        del tensor
        assert loader.get_tensor("model.layers.0.self_attn.q_proj.weight") is not None
        assert str(model) not in mapped.read_text()


def assert_same_bits(actual: Weights, expected: Weights) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert torch.equal(actual[name], tensor), name


class TestTiedEmbeddings:
    @pytest.fixture(scope="class")
    def tied_base(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return save_base(build(7, tied=True), tmp_path_factory.mktemp("tied") / "base")

    def test_identical_models_keep_their_logits(self, tied_base: Path, tmp_path: Path) -> None:
        models = {"a": tied_base, "b": save(tuned(tied_base, 0), tmp_path / "b")}
        merge_specialists(tied_base, {"a": models["b"], "c": models["b"]}, "linear", {}, tmp_path / "merged", 0)
        self.assert_tied(tmp_path / "merged")
        tokens = torch.arange(12)[None]
        logits = [
            AutoModelForCausalLM.from_pretrained(folder)(tokens).logits
            for folder in (models["b"], tmp_path / "merged")
        ]
        torch.testing.assert_close(logits[0], logits[1], atol=1e-6, rtol=0)

    def test_survive_a_checkpoint_that_has_them_twice(self, tied_base: Path, tmp_path: Path) -> None:
        double = save_base(LlamaForCausalLM.from_pretrained(tied_base), tmp_path / "double")
        tensors = weights(double)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, double / "model.safetensors", metadata={"format": "pt"})
        models = {str(seed): save(tuned(tied_base, seed), tmp_path / str(seed)) for seed in (1, 2)}
        for method in ("linear", "dare_ties"):
            expected = merge(tied_base, models, method, tmp_path / f"{method}-once")
            assert_equal(merge(double, models, method, tmp_path / method), expected)
            self.assert_tied(tmp_path / method)

    @staticmethod
    def assert_tied(folder: Path) -> None:
        assert "lm_head.weight" not in weights(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.lm_head.weight is model.model.embed_tokens.weight


class TestSeed:
    @pytest.mark.parametrize("method", ["dare_ties", "dare_linear", "della", "della_linear"])
    def test_decides_what_is_pruned(self, merged: Merged, method: str) -> None:
        first, again, other = (merged(method, seed=seed) for seed in (3, 3, 4))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)

    def test_leaves_the_callers_generators_alone(self, merged: Merged) -> None:
        torch.manual_seed(5)
        random.seed(5)
        expected = torch.rand(3), random.random()
        torch.manual_seed(5)
        random.seed(5)
        merged("dare_ties", seed=9)
        assert torch.equal(torch.rand(3), expected[0])
        assert random.random() == expected[1]

    def test_holds_in_another_process(self, base: Path, specialists: dict[str, Path], tmp_path: Path) -> None:
        """mergekit keeps models and tensors in sets; the draws must not depend on their order."""
        expected = merge(base, specialists, "dare_ties", tmp_path / "expected", seed=2**40 + 1)
        code = (
            "import sys; from pathlib import Path;"
            "from automixalign.merging.merge import merge_specialists;"
            "base, output, *rest = map(Path, sys.argv[1:]);"
            "merge_specialists(base, {p.name: p for p in rest}, 'dare_ties', {}, output, 2**40 + 1)"
        )
        command = [sys.executable, "-c", code, base, tmp_path / "other", *specialists.values()]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "123"})
        result = weights(tmp_path / "other")
        assert all(torch.equal(result[name], expected[name]) for name in expected)


def deeper_adapter(base: Path, folder: Path) -> Path:
    get_peft_model(build(1, layers=3), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    return folder


def other(**options: Any) -> Callable[[Path, Path], Path]:
    return lambda base, folder: save(build(1, **options), folder)


MISFITS = {
    "shapes": (other(hidden=32), r"task 't' .*lm_head.weight is \[12, 32\] instead of \[12, 16\]; .* more$"),
    "tied among untied": (other(tied=True), r"task 't' .*tie_word_embeddings is True instead of F"),
    "heads, of equal shapes": (other(heads=4), r"task 't' .*num_attention_heads is 4 instead of 2"),
    "adapter of a deeper model": (deeper_adapter, r"task 't' .* 2 weights fit no module.*layers\.2\."),
}


class TestRefusals:
    @pytest.mark.parametrize("kind", MISFITS)
    def test_a_misfit(self, kind: str, base: Path, specialists: dict[str, Path], tmp_path: Path) -> None:
        make, message = MISFITS[kind]
        models = {**specialists, "t": make(base, tmp_path / "bad")}
        with pytest.raises(ModelError, match=message):
            merge_specialists(base, models, "linear", {}, tmp_path / "out", 0)
        assert [entry.name for entry in tmp_path.iterdir()] == ["bad"]

    def test_pickled_weights(self, base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
        for source, name in ((base, "config.json"), (adapters["chat"], "adapter_config.json")):
            folder = tmp_path / name
            folder.mkdir()
            (folder / name).write_bytes((source / name).read_bytes())
            for pickle in ("pytorch_model.bin", "adapter_model.bin"):
                (folder / pickle).touch()
            with pytest.raises(ModelError, match=r"model\.safetensors"):
                merge_specialists(base, {"p": folder}, "linear", {}, tmp_path / "out", 0)

    def test_a_retry_replaces_a_result(self, base: Path, specialists: dict[str, Path], tmp_path: Path) -> None:
        before = merge(base, specialists, "linear", tmp_path / "out")
        (tmp_path / "out" / "extra").touch()
        assert_equal(merge(base, specialists, "linear", tmp_path / "out"), before)
        assert not (tmp_path / "out" / "extra").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_what_check_refuses(self, base: Path, specialists: dict[str, Path], tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="slerp merges exactly 2 specialists, got 3"):
            merge_specialists(base, specialists, "slerp", {}, tmp_path / "out", 0)
