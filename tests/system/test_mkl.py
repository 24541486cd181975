"""Modules that load or train models first call, in one thread, each function that torch leaves to MKL."""

import re
from importlib.util import find_spec, module_from_spec
from pathlib import Path

import pytest
import torch

from automixalign.system import mkl


def test_the_functions_are_those_that_torch_leaves_to_mkl() -> None:
    header = Path(torch.__file__).parent / "include/ATen/cpu/vml.h"
    functions = re.findall(r"^IMPLEMENT_VML_MKL\((\w+), ", header.read_text(), re.MULTILINE)
    assert sorted(functions) == sorted(mkl.FUNCTIONS)


def test_each_function_is_called_in_both_precisions() -> None:
    with torch.profiler.profile(record_shapes=True) as profile:
        mkl.load_kernels()
    called = [event.name.removeprefix("aten::") for event in profile.events() if event.input_shapes == [[1]]]
    assert {name: called.count(name) for name in mkl.FUNCTIONS} == dict.fromkeys(mkl.FUNCTIONS, 2)


@pytest.mark.parametrize("module", ["models.load", "quickstart.tiny_model"])
def test_a_module_that_loads_or_trains_models_loads_the_kernels(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, calls = find_spec(f"automixalign.{module}"), []
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.setattr(mkl, "load_kernels", lambda: calls.append(module))
    spec.loader.exec_module(module_from_spec(spec))
    assert calls == [module]
