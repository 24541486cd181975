"""The image's recipe, and how an image is named; what is in it is tested in tests/container."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from components.image import is_pinned

ROOT = Path(__file__).parents[2]
DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("image", "pinned"),
    [
        (f"registry.example:5000/team/automixalign@sha256:{DIGEST}", True),
        (f"automixalign:0.1.0@sha256:{DIGEST}", True),
        (f"automixalign@sha512:{2 * DIGEST}", True),
        ("automixalign", False),
        ("automixalign:0.1.0", False),
        ("registry.example:5000/automixalign", False),
        (f"automixalign:sha256-{DIGEST}", False),
        (f"automixalign@sha256:{DIGEST[:-1]}", False),
        (f"@sha256:{DIGEST}", False),
        ("automixalign@sha256:latest", False),
    ],
)
def test_only_a_digest_pins_an_image(image: str, pinned: bool) -> None:
    assert is_pinned(image) is pinned


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--no-color", ROOT / "images" / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_make_gives_only_arguments_that_the_recipe_takes() -> None:
    """For both images; the CUDA image's torch comes from where PyPI's does, with CUDA."""
    recipe = (ROOT / "images" / "Dockerfile").read_text()
    taken = set(re.findall(r"^ARG (\w+)", recipe, re.MULTILINE))
    for target, torch_index in (("image-cpu", None), ("image-cuda", "https://pypi.org/simple")):
        done = subprocess.run(
            ["make", "--dry-run", target],  # noqa: S607
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        given = dict(re.findall(r"--build-arg (\w+)=(\S*)", done.stdout))
        assert {"BASE", "VERSION", "REVISION", "SOURCE", "WHEELS"} <= given.keys() <= taken
        assert given.get("TORCH_INDEX") == torch_index
    assert "ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu\n" in recipe
