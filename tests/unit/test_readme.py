"""The README names everything that a configuration may name."""

from pathlib import Path
from typing import get_args

import pytest

from automixalign.losses import LossType
from automixalign.mixers import MIXERS

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
OPTIONS = {option for mixer in MIXERS.values() for option in mixer.schema.model_fields}
LOSSES = get_args(get_args(LossType)[0])


@pytest.mark.parametrize("name", [*MIXERS, *sorted(OPTIONS), *LOSSES])
def test_every_method_option_and_loss_is_named(name: str) -> None:
    assert f"`{name}`" in README
