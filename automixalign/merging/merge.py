"""Merge the DPO specialists of several tasks into one model, through mergekit (LGPL-3.0).

A specialist is a full model or a LoRA adapter. The result is a full model with the base's tokenizer, chat
template and configuration. `merge_methods` lists the methods, their parameters and their papers.
"""

import json
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mergekit.architecture import get_architecture_info
from mergekit.common import ModelPath, ModelReference, dtype_from_name
from mergekit.config import InputModelDefinition, MergeConfiguration
from mergekit.graph import Executor
from mergekit.io.tasks import LoaderCache, SaveTensor
from mergekit.merge_methods.registry import register, registered_methods
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from safetensors import SafetensorError, safe_open
from transformers import set_seed

from automixalign.merging.inputs import Loader, fold, skeleton
from automixalign.method import merge_methods
from automixalign.models import safety
from automixalign.models.load import load_config, read_full_model
from automixalign.models.tokenizer import copy_tokenizer
from automixalign.models.weights import SafetensorsWriter, is_finite
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.system.errors import ModelError

_ARCHITECTURE_KEYS = ("model_type", "num_attention_heads", "num_key_value_heads", "tie_word_embeddings")
"""Keys that must agree between configurations; the shapes of the tensors do not always show them."""


def merge_specialists(
    base: Path,
    specialists: Mapping[str, Path],
    method: str,
    parameters: Mapping[str, float],
    output: Path,
    seed: int,
    weights: Mapping[str, float] | None = None,
) -> dict[str, object]:
    """Merge the specialists of a base model into one full model.

    The arithmetic is in float32 (float64 for a float64 base); the result has the base's dtype.

    Args:
        base: folder of the base model.
        specialists: task -> folder of a full model or a LoRA adapter.
        method: mergekit's name.
        parameters: replace the method's defaults.
        output: the new folder. It appears complete or not at all, and replaces an existing one.
        seed: determines the random pruning of DARE and DELLA, and the sampled quantiles of `arcee_fusion`. The
            caller's random generators keep their state.
        weights: task -> weight, where it differs from the common weight.

    Returns:
        The method, the tasks in order, all parameters in force, and the method's reference.

    Raises:
        ValueError: the method, its parameters or the number of specialists is impossible.
        ModelError: a folder holds no model in safetensors; a specialist does not have the base's architecture;
            or the result overflows.
    """
    with (
        files.replacing(output) as merged,
        staged_merge(base, specialists, method, parameters, output, seed) as merge,
    ):
        merge(weights or {}, merged)
    return merge_facts(method, specialists, parameters, weights)


@contextmanager
def staged_merge(
    base: Path,
    specialists: Mapping[str, Path],
    method: str,
    parameters: Mapping[str, float],
    output: Path,
    seed: int,
) -> Iterator[Callable[[Mapping[str, float], Path], None]]:
    """Check and prepare a merge once, for several task weights; see `merge_specialists`.

    Yields a function of the weights and of the folder to write. Temporary files are beside `output`.
    """
    merge_methods.check(method, len(specialists), parameters)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as staging:
        staged = _stage(base, specialists, Path(staging))

        def merge(weights: Mapping[str, float], folder: Path) -> None:
            own = [{"weight": weights[task]} if task in weights else {} for task in specialists]
            if name := _run(staged, method, parameters, own=own, output=folder, seed=seed):
                raise ModelError(
                    f"the merge by {method} of {', '.join(specialists)} overflows: its weight {name} is not "
                    "finite; check the specialists, or choose smaller parameters"
                )
            copy_tokenizer(base, folder)

        yield merge


def merge_facts(
    method: str, tasks: Iterable[str], parameters: Mapping[str, float], weights: Mapping[str, float] | None
) -> dict[str, object]:
    """What `merge_specialists` returns. The record of the stage gets it, too."""
    shared, per_model = merge_methods.resolve(method, parameters)
    facts: dict[str, object] = {
        "method": method,
        "tasks": list(tasks),
        "parameters": {**shared, **per_model},
        **({"weights": dict(weights)} if weights else {}),
        "paper": merge_methods.registered_merges()[method].paper,
    }
    current_step().record.add_params(facts)
    return facts


def _stage(base: Path, specialists: Mapping[str, Path], staging: Path) -> dict[Path, Loader]:
    """Full models of one layout for mergekit, under new names: the base, then the specialists.

    mergekit identifies and caches a model by its path. New names separate a folder that was trained again, two
    tasks with one folder, and a specialist that is the base.
    """
    safety.check_full_model(base)
    for folder in specialists.values():
        safety.check_model_folder(folder)
    tied = set(skeleton(base).all_tied_weights_keys)  # such as `lm_head.weight`
    staged: dict[Path, Loader] = {}
    for index, (task, folder) in enumerate([("", base), *specialists.items()]):
        model, first = staging / f"model-{index}", next(iter(staged), None)
        subject = f"the specialist of task {task!r}" if first else "the base model"
        if first and safety.is_adapter(folder):
            try:
                loader = fold(first, folder, model, _merge_dtype(_dtype(base)))
            except (ModelError, ValueError) as error:  # other shapes or other modules
                reason = " ".join(str(error).split()).replace(str(first), str(base))
                raise ModelError(f"{subject} ({folder}) is no adapter of {base}: {reason}") from error
        else:
            if tied & _tensor_shapes(folder).keys():
                # transformers writes tied weights once; some checkpoints hold them twice. A merge could make
                # the two unequal, and a loaded model would then no longer tie them.
                read_full_model(folder, dtype="auto").save_pretrained(model)
            else:
                model.symlink_to(folder.resolve(), target_is_directory=True)
            loader = Loader(model)
        if first and (difference := _difference(first, model)):
            raise ModelError(f"{subject} ({folder}) cannot be merged with {base}: {difference}")
        staged[model] = loader
    return staged


def _tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model, from the headers of its files."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    elif (folder / "model.safetensors").is_file():
        names = ["model.safetensors"]
    else:
        raise ModelError(f"{folder} holds no model.safetensors")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in (folder / name for name in names):
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118  not a mapping
                    shapes[key] = tuple(tensors.get_slice(key).get_shape())
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file} cannot be read: {error}") from error
    return shapes


def _difference(base: Path, model: Path) -> str:
    """How the architecture of `model` differs from that of `base`, or ""; names at most three tensors."""
    base_config, config = load_config(base), load_config(model)
    for key in _ARCHITECTURE_KEYS:
        expected, actual = getattr(base_config, key, None), getattr(config, key, None)
        if actual != expected:
            return f"{key} is {actual} instead of {expected}"

    def describe(shape: tuple[int, ...] | None) -> str:
        return "absent" if shape is None else str(list(shape))

    base_shapes, shapes = _tensor_shapes(base), _tensor_shapes(model)
    differences = [
        f"{name} is {describe(shapes.get(name))} instead of {describe(base_shapes.get(name))}"
        for name in sorted(base_shapes.keys() | shapes.keys())
        if shapes.get(name) != base_shapes.get(name)
    ]
    more = [f"and {len(differences) - 3} more"] if len(differences) > 3 else []
    return "; ".join(differences[:3] + more)


def _dtype(model: Path) -> torch.dtype:
    dtype = load_config(model).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _merge_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic: bfloat16 rounds task vectors too much."""
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
    """Let mergekit merge the models of `_stage`, and write each weight when it is computed.

    mergekit's own `run_merge` collects up to 5 GB of weights before it writes.

    Args:
        own: each specialist's parameters besides the common ones.

    Returns:
        The first weight that is not finite, or None. The weights after it are not written.
    """
    dtype = _dtype(next(iter(staged)))
    spec = merge_methods.registered_merges()[method]
    if spec.implementation is not None and spec.implementation not in registered_methods():
        register(spec.implementation)
    shared, per_model = merge_methods.resolve(method, parameters)
    # ModelReference.parse would take `@` and `+` in a path for a revision and an adapter.
    loaders = {ModelReference(model=ModelPath(path=str(path))): loader for path, loader in staged.items()}
    base, *inputs = loaders
    first = inputs[0] if spec.first_is_base else None
    configuration = MergeConfiguration(
        merge_method=method,
        models=[
            InputModelDefinition(model=model, parameters={**per_model, **overrides})
            for model, overrides in zip(inputs, own, strict=True)
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
        for model in loaders:  # the cache belongs to the process
            LoaderCache.loaders.pop(model, None)


def _write(plan: list[SaveTensor], file: Path) -> str | None:
    """Compute and write the tensors of a plan; stop at the first that is not finite and return its name."""
    dtypes = {save.tensor_name: dtype_from_name(save.dtype) for save in plan}
    with SafetensorsWriter(file, dtypes) as writer:
        for task, tensor in Executor([save.tensor_task for save in plan]).run():
            name = str(task.output_weight.name)
            converted = tensor.to(dtypes[name])
            if not is_finite(converted):
                return name
            writer.add(name, converted)
            del tensor, converted  # before the next tensors are read
    return None


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global random generators, which mergekit draws from; restore their state at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            set_seed(seed % 2**32)  # what NumPy accepts
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
