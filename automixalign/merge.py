"""Merge the DPO specialists of several tasks into one model, through mergekit (LGPL-3.0).

A specialist is a full model or a LoRA adapter; the result is a full model with the tokenizer, the
chat template and the configuration of the base. `merge_methods` lists the methods, their parameters
and their papers.
"""

import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mergekit.common import ModelPath, ModelReference
from mergekit.config import InputModelDefinition, MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from peft import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PretrainedConfig

from automixalign import files, merge_methods, model_files, models, progress
from automixalign.errors import ModelError
from automixalign.weights import not_finite

COPIED_FROM_BASE = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.*",
    "additional_chat_templates",
)
"""mergekit would take these from any of the models where a method has no base."""

COMPARED = ("model_type", "num_attention_heads", "num_key_value_heads", "tie_word_embeddings")
"""What two configurations of one architecture share although no tensor's shape may show it."""


def merge_specialists(
    base: Path,
    specialists: Mapping[str, Path],
    method: str,
    parameters: Mapping[str, float],
    output: Path,
    seed: int,
) -> dict[str, object]:
    """Merge `specialists` (task -> folder) of the model in `base` into a full model in `output`.

    `parameters` go over the method's defaults. The arithmetic is done in float32 (float64 for a
    float64 base), the result has the base's dtype. The methods that prune at random (DARE, DELLA)
    and the sampled quantiles of `arcee_fusion` depend on `seed` alone; the caller's generators are
    left as they were. `output` appears complete or not at all, in place of what was there.

    Returns the method, the tasks in order, all parameters in force and the method's reference.

    Raises:
        ValueError: the method, its parameters or the number of specialists.
        ModelError: a folder that holds no model in safetensors; a specialist that does not have the base's
            architecture, naming the task and the difference; or the result overflows.
    """
    merge_methods.check(method, len(specialists), parameters)
    with (
        files.replacing(output) as merged,
        tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as staging,
    ):
        staged = _stage(base, specialists, Path(staging))
        _run(staged, method, parameters, merged, seed=seed)
        if name := not_finite(merged):
            raise ModelError(
                f"the merge by {method} of {', '.join(specialists)} overflows: its weight {name} is not "
                "finite; look at the specialists, or choose smaller parameters"
            )
        _copy_from_base(base, merged)
    shared, per_model = merge_methods.resolve(method, parameters)
    facts: dict[str, object] = {
        "method": method,
        "tasks": list(specialists),
        "parameters": {**shared, **per_model},
        "reference": merge_methods.MERGE_METHODS[method].reference,
    }
    progress.current().record.add_params(facts)
    return facts


def _stage(base: Path, specialists: Mapping[str, Path], staging: Path) -> list[Path]:
    """Full models of one layout for mergekit, under fresh names: the base, then the specialists.

    mergekit identifies a model by its path and caches by it. A link of a new name for each keeps
    retrained folders, two tasks of one folder, and a specialist that is the base apart.
    """
    model_files.check_model(base)
    for folder in specialists.values():
        model_files.check(folder)
    tied = _tied_names(models.load_config(base))
    staged: list[Path] = []
    for index, (task, folder) in enumerate([("", base), *specialists.items()]):
        model = staging / f"model-{index}"
        whose = f"the specialist of task {task!r}" if index else "the base model"
        if index and model_files.is_adapter(folder):
            _fold(base, folder, model, whose)
        elif tied & _tensor_shapes(folder).keys():
            # transformers writes tied weights once. Written twice, as in some checkpoints, they
            # could come out of a merge unequal, and would then no longer be tied on loading.
            _save(models.read_full_model(folder, dtype="auto"), model)
        else:
            model.symlink_to(folder.resolve(), target_is_directory=True)
        if staged and (found := _difference(staged[0], model)):
            raise ModelError(f"{whose} ({folder}) cannot be merged with {base}: {found}")
        staged.append(model)
    return staged


def _tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model, from the headers of its files alone."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    elif (folder / "model.safetensors").is_file():
        files = ["model.safetensors"]
    else:
        raise ModelError(f"{folder} holds no model.safetensors")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(folder / file, framework="pt") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in _names(tensors)}
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{folder / file} cannot be read: {error}") from error
    return shapes


def _names(tensors: safe_open) -> list[str]:
    return list(tensors.keys())  # type: ignore[no-untyped-call]


def _difference(base: Path, model: Path) -> str:
    """How `model` differs from `base` in architecture, or ""; at most three tensors are named."""
    ours, theirs = models.load_config(base), models.load_config(model)
    for key in COMPARED:
        if getattr(ours, key, None) != getattr(theirs, key, None):
            return f"{key} is {getattr(theirs, key, None)} instead of {getattr(ours, key, None)}"
    expected, found = _tensor_shapes(base), _tensor_shapes(model)
    faults = [
        f"{name} is {_shape(found.get(name))} instead of {_shape(expected.get(name))}"
        for name in sorted(expected.keys() | found.keys())
        if found.get(name) != expected.get(name)
    ]
    more = [f"and {len(faults) - 3} more"] if len(faults) > 3 else []
    return "; ".join(faults[:3] + more)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _tied_names(config: PretrainedConfig) -> set[str]:
    """The weights that are another weight under a second name, such as `lm_head.weight`."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return set(model.all_tied_weights_keys)


def _fold(base: Path, adapter: Path, folder: Path, whose: str) -> None:
    """Write the base with the adapter added to its weights, in the dtype the merge works in."""
    model = models.read_full_model(base, dtype=_merge_dtype(_dtype(base)))
    try:
        model = models.load_adapter(model, adapter)
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as tensors:
            stored = {name for name in _names(tensors) if ".lora_" in name}
        loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
        # peft leaves out silently what the base has no place for, such as further layers.
        odd = sorted(stored ^ {name for name in loaded if ".lora_" in name})
        if odd:
            raise ValueError(f"{len(odd)} weights fit no module, or are missing: {odd[0]} ...")
    except (ModelError, ValueError) as error:  # other shapes, or none of its modules
        reason = " ".join(str(error).split())
        raise ModelError(f"{whose} ({adapter}) is no adapter of {base}: {reason}") from error
    _save(model.merge_and_unload(), folder)


def _save(model: torch.nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)  # type: ignore[operator]


def _dtype(model: Path) -> torch.dtype:
    dtype = models.load_config(model).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _merge_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to calculate in: task vectors are too small for the steps of bfloat16."""
    return torch.promote_types(dtype, torch.float32)


def _run(
    staged: list[Path],
    method: str,
    parameters: Mapping[str, float],
    output: Path,
    *,
    seed: int,
) -> None:
    """Run mergekit on the base and the specialists of `_stage`."""
    dtype = _dtype(staged[0])
    spec = merge_methods.MERGE_METHODS[method]
    shared, per_model = merge_methods.resolve(method, parameters)
    # Not ModelReference.parse, to which `@` and `+` in a path are a revision and an adapter.
    base, *inputs = (ModelReference(model=ModelPath(path=str(path))) for path in staged)
    first = inputs[0] if spec.first_is_base else None
    configuration = MergeConfiguration(
        merge_method=method,
        models=[InputModelDefinition(model=model, parameters=per_model) for model in inputs],
        base_model=base if spec.needs_base else first,
        parameters=shared,
        dtype=str(_merge_dtype(dtype)).removeprefix("torch."),
        out_dtype=str(dtype).removeprefix("torch."),
    )
    options = MergeOptions(
        device="cpu",
        random_seed=seed % 2**32,  # what NumPy accepts
        copy_tokenizer=False,
        write_model_card=False,
        lazy_unpickle=True,
        safe_serialization=True,
        trust_remote_code=False,
    )
    try:
        with _generators_kept():
            run_merge(configuration, str(output), options)
    finally:
        for model in [base, *inputs]:  # the cache lives as long as the process, with the files open
            LoaderCache.loaders.pop(model, None)


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Put the global random generators back, which mergekit seeds."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _copy_from_base(base: Path, output: Path) -> None:
    for pattern in COPIED_FROM_BASE:
        for source in base.glob(pattern):
            if source.is_dir():
                shutil.copytree(source, output / source.name, dirs_exist_ok=True)
            else:
                shutil.copy(source, output / source.name)
