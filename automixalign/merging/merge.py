"""Merge the DPO specialists of several tasks into one model, through mergekit (LGPL-3.0).

A specialist is a full model or a LoRA adapter; the result is a full model with the tokenizer, the
chat template and the configuration of the base. `merge_methods` lists the methods, their parameters
and their papers.
"""

import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mergekit.architecture import get_architecture_info
from mergekit.common import ModelPath, ModelReference, dtype_from_name
from mergekit.config import InputModelDefinition, MergeConfiguration
from mergekit.graph import Executor
from mergekit.io.tasks import LoaderCache, SaveTensor
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from safetensors import SafetensorError, safe_open
from transformers import set_seed

from automixalign.merging.inputs import Loader, fold, skeleton
from automixalign.method import merge_methods
from automixalign.models import safety
from automixalign.models.load import load_config, read_full_model
from automixalign.models.weights import SafetensorsWriter, is_finite
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.system.errors import ModelError

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
"""What a model needs beside its weights."""

COMPARED = ("model_type", "num_attention_heads", "num_key_value_heads", "tie_word_embeddings")
"""What two configurations of one architecture share although no tensor's shape may show it."""


def merge_specialists(
    base: Path,
    specialists: Mapping[str, Path],
    method: str,
    parameters: Mapping[str, float],
    output: Path,
    seed: int,
    weights: Mapping[str, float] | None = None,
) -> dict[str, object]:
    """Merge `specialists` (task -> folder) of the model in `base` into a full model in `output`.

    `parameters` go over the method's defaults, `weights` (task -> weight) over the common weight. The
    arithmetic is done in float32 (float64 for a float64 base), the result has the base's dtype. The methods
    that prune at random (DARE, DELLA) and the sampled quantiles of `arcee_fusion` depend on `seed` alone;
    the caller's generators are left as they were. `output` appears complete or not at all, in place of what
    was there.

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
        own = [{"weight": weights[task]} if weights and task in weights else {} for task in specialists]
        if name := _run(staged, method, parameters, own, merged, seed=seed):
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
        **({"weights": dict(weights)} if weights else {}),
        "reference": merge_methods.MERGE_METHODS[method].reference,
    }
    current_step().record.add_params(facts)
    return facts


def _stage(base: Path, specialists: Mapping[str, Path], staging: Path) -> dict[Path, Loader]:
    """Full models of one layout for mergekit, under fresh names: the base, then the specialists.

    mergekit identifies a model by its path and caches by it. A link of a new name for each keeps
    retrained folders, two tasks of one folder, and a specialist that is the base apart.
    """
    safety.check_full_model(base)
    for folder in specialists.values():
        safety.check_model_folder(folder)
    tied = set(skeleton(base).all_tied_weights_keys)  # such as `lm_head.weight`
    staged: dict[Path, Loader] = {}
    for index, (task, folder) in enumerate([("", base), *specialists.items()]):
        model, first = staging / f"model-{index}", next(iter(staged), None)
        whose = f"the specialist of task {task!r}" if first else "the base model"
        if first and safety.is_adapter(folder):
            try:
                loader = fold(first, folder, model, _merge_dtype(_dtype(base)))
            except (ModelError, ValueError) as error:  # other shapes, or none of its modules
                reason = " ".join(str(error).split()).replace(str(first), str(base))
                raise ModelError(f"{whose} ({folder}) is no adapter of {base}: {reason}") from error
        else:
            if tied & _tensor_shapes(folder).keys():
                # transformers writes tied weights once. Written twice, as in some checkpoints, they
                # could come out of a merge unequal, and would then no longer be tied on loading.
                read_full_model(folder, dtype="auto").save_pretrained(model)
            else:
                model.symlink_to(folder.resolve(), target_is_directory=True)
            loader = Loader(model)
        if first and (found := _difference(first, model)):
            raise ModelError(f"{whose} ({folder}) cannot be merged with {base}: {found}")
        staged[model] = loader
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
    ours, theirs = load_config(base), load_config(model)
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


def _dtype(model: Path) -> torch.dtype:
    dtype = load_config(model).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _merge_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to calculate in: task vectors are too small for the steps of bfloat16."""
    return torch.promote_types(dtype, torch.float32)


def _run(
    staged: Mapping[Path, Loader],
    method: str,
    parameters: Mapping[str, float],
    own: Sequence[Mapping[str, float]],
    output: Path,
    *,
    seed: int,
) -> str | None:
    """Let mergekit merge the base and the specialists of `_stage`, and write each weight as it comes.

    `own` has each specialist's parameters beside the common ones. mergekit's own `run_merge` would collect up
    to 5 GB of weights before it writes.

    Returns:
        The first weight that is not finite, if there is one; the rest is then not written.
    """
    dtype = _dtype(next(iter(staged)))
    spec = merge_methods.MERGE_METHODS[method]
    shared, per_model = merge_methods.resolve(method, parameters)
    # Not ModelReference.parse, to which `@` and `+` in a path are a revision and an adapter.
    loaders = {ModelReference(model=ModelPath(path=str(path))): loader for path, loader in staged.items()}
    base, *inputs = loaders
    first = inputs[0] if spec.first_is_base else None
    configuration = MergeConfiguration(
        merge_method=method,
        models=[
            InputModelDefinition(model=model, parameters={**per_model, **its})
            for model, its in zip(inputs, own, strict=True)
        ],
        base_model=base if spec.needs_base else first,
        parameters=shared,
        dtype=str(_merge_dtype(dtype)).removeprefix("torch."),
        out_dtype=str(dtype).removeprefix("torch."),
    )
    options = MergeOptions(device="cpu", trust_remote_code=False)
    LoaderCache.loaders.update(loaders)
    try:
        LoaderCache().setup(options)
        with _seeded(seed):
            architecture = get_architecture_info(configuration, options)
            config = load_config(next(iter(staged)))
            planner = MergePlanner(configuration, architecture, options, config)
            plan = [task for task in planner.plan_to_disk(str(output)) if isinstance(task, SaveTensor)]
            output.mkdir()
            return _write(plan, output / "model.safetensors")
    finally:
        for model in loaders:  # the cache lives as long as the process
            LoaderCache.loaders.pop(model, None)


def _write(plan: list[SaveTensor], file: Path) -> str | None:
    """Calculate and write the tensors that a plan would save, up to the first that is not finite."""
    dtypes = {save.tensor_name: dtype_from_name(save.dtype) for save in plan}
    with SafetensorsWriter(file, dtypes) as writer:
        for task, tensor in Executor([save.tensor_task for save in plan]).run():
            name = str(task.output_weight.name)
            written = tensor.to(dtypes[name])
            if not is_finite(written):
                return name
            writer.add(name, written)
            del tensor, written  # before the next ones are read
    return None


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """With the global random generators, from which mergekit draws, set to `seed`, and put back after."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            set_seed(seed % 2**32)  # what NumPy accepts
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
