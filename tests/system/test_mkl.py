"""Modules that load or train models first call, in one thread, each function that torch leaves to MKL."""

import re
from pathlib import Path

import pytest
import torch

from automixalign.system import mkl
from tests.system.processes import run

_CALLED = """
import sys
from importlib import import_module
import torch
with torch.profiler.profile(record_shapes=True) as profile:
    import_module(sys.argv[1])
print(*(event.name.removeprefix("aten::") for event in profile.events() if event.input_shapes == [[1]]))
"""


def test_the_functions_are_those_that_torch_leaves_to_mkl() -> None:
    header = Path(torch.__file__).parent / "include/ATen/cpu/vml.h"
    functions = re.findall(r"^IMPLEMENT_VML_MKL\((\w+), ", header.read_text(), re.MULTILINE)
    assert sorted(functions) == sorted(mkl.FUNCTIONS)


@pytest.mark.parametrize("module", ["models.load", "quickstart.tiny_model"])
def test_a_module_that_loads_or_trains_models_loads_the_kernels(module: str) -> None:
    called = run(_CALLED, f"automixalign.{module}").stdout.split()
    assert {name: called.count(name) for name in mkl.FUNCTIONS} == dict.fromkeys(mkl.FUNCTIONS, 2)
