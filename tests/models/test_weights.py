"""Weights on disk: what the writer writes is what safetensors reads; what is not finite is noticed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from automixalign.models.weights import SafetensorsWriter, first_nonfinite_weight, is_finite


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "long": torch.randn(7, 3, 2, dtype=torch.float64),
        'odd "name" \u00fc': torch.randn(3, 5),
        "transposed": torch.randn(3, 5).T,
        "half": torch.randn(9).half(),
        "brain": torch.randn(1, 2, 3).bfloat16(),
        "counted": torch.arange(4),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }


def test_what_is_written_is_read(tmp_path: Path) -> None:
    expected = tensors()
    with SafetensorsWriter(tmp_path / "one", [*expected, "one that never came"]) as writer:
        for name, tensor in expected.items():
            writer.add(name, tensor)
    actual = load_file(tmp_path / "one")
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert torch.equal(actual[name], tensor)
    content = (tmp_path / "one").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert (8 + length) % 64 == 0
    assert json.loads(content[8 : 8 + length])["__metadata__"] == {"format": "pt"}


def test_a_file_that_was_given_up_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(KeyError), SafetensorsWriter(tmp_path / "one", ["a"]) as writer:
        writer.add("a", torch.ones(3))
        raise KeyError
    with pytest.raises(Exception, match="header"):
        load_file(tmp_path / "one")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("index", [0, 40, 99])
def test_what_is_not_finite_is_noticed(tmp_path: Path, dtype: torch.dtype, value: float, index: int) -> None:
    tensor = torch.linspace(-9, 9, 100, dtype=torch.float32).to(dtype)
    assert is_finite(tensor)
    assert is_finite(tensor[:0])
    save_file({"a": tensor, "b": tensor.clone()}, tmp_path / "model.safetensors")
    assert first_nonfinite_weight(tmp_path) is None
    tensor[index] = value
    assert not is_finite(tensor)
    save_file({"a": torch.ones(2), "b": tensor}, tmp_path / "model.safetensors")
    assert first_nonfinite_weight(tmp_path) == "b"
