"""What several fault tests share."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from automixalign.config.evaluation import EvaluationSettings
from automixalign.config.experiment import parse_experiment
from automixalign.config.models import BaseModelSettings, BaseModelSpec
from automixalign.models.prepare import prepare_base_model
from automixalign.scoring.evaluate import evaluate
from automixalign.system.errors import AutoMixAlignError
from benchmarks import tiny


@contextmanager
def raises(kind: type[AutoMixAlignError], *parts: str) -> Iterator[None]:
    """Expect an error of exactly this kind whose message holds all parts."""
    with pytest.raises(AutoMixAlignError) as error:
        yield
    assert type(error.value) is kind
    assert not [part for part in parts if part not in str(error.value)], error.value


def assert_empty(folder: Path) -> None:
    """Assert that a folder has no file or does not exist."""
    assert not list(folder.glob("*"))


def prepare(source: object, output: Path) -> dict[str, Any]:
    """Prepare the base model from a source."""
    spec = BaseModelSpec(source=str(source))
    settings = BaseModelSettings(seed=0, base_model=spec, synthetic_tasks=[], fingerprint="")
    return prepare_base_model(settings, output)


Damage = Callable[[Path], object]
"""Damage a file in a folder, or the folder."""


def write(name: str, content: bytes | str) -> Damage:
    """Write a file."""
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def remove(*patterns: str) -> Damage:
    """Remove files."""
    return lambda folder: [file.unlink() for pattern in patterns for file in folder.glob(pattern)]


def cut(name: str, end: int | None = None) -> Damage:
    """Leave the first bytes of a file, half of them by default."""

    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2 if end is None else end])

    return damage


def flip(name: str, byte: int = -1) -> Damage:
    """Change one bit of a file."""

    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[byte] ^= 1
        (folder / name).write_bytes(content)

    return damage


class Bomb:
    """Unpickled, it makes the folder `marker`, where real code would do worse."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (self.marker,)


def write_pickle(path: Path, marker: Path) -> None:
    """Write a torch file that makes `marker` when it is unpickled; this is tried once."""
    torch.save({"weight": Bomb(marker)}, path)
    with path.open("rb") as stream:
        torch.load(stream, weights_only=False)
    marker.rmdir()


def code(marker: Path) -> str:
    """A Python module that makes `marker` when it is imported."""
    return f"import os\nos.mkdir({str(marker)!r})\n"


def change_json(path: Path, **keys: object) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def evaluate_tiny(
    model: Path | None,
    name: str,
    family: str,
    output: Path,
    precision: str = "fp32",
    reference_logps: Path | None = None,
) -> None:
    """Evaluate a model on the tiny world's data, without generations."""
    world = tiny.world()
    logps = reference_logps or world.reference_logps
    settings = {
        "seed": 0,
        "evaluation": {"batch_size": 16, "precision": precision, "generate": False},
        "loss": parse_experiment(tiny.experiment(), "the test").training.loss.model_dump(),
        "verifiers": {},
    }
    checked = EvaluationSettings.model_validate(settings)
    evaluate(checked, name, family, world.data, logps, world.base_model, model, output)
