"""The image's recipe and name; tests/container tests the image itself."""

import importlib.metadata
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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


def test_make_passes_only_arguments_of_the_recipe() -> None:
    """The CUDA image takes torch, with CUDA, from PyPI. It has what 4-bit training and FlexAttention need."""
    recipe = (ROOT / "images" / "Dockerfile").read_text()
    arguments = set(re.findall(r"^ARG (\w+)", recipe, re.MULTILINE))
    for target, torch_index, extras, compiler in (
        ("image-cpu", None, "bench", None),
        ("image-cuda", "https://pypi.org/simple", "quantize,bench", '"gcc'),
    ):
        done = subprocess.run(
            ["make", "--dry-run", target, "EXTRA=bench"],  # noqa: S607
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        given = dict(re.findall(r"--build-arg (\w+)=(\S*)", done.stdout))
        assert {"BASE", "VERSION", "REVISION", "SOURCE", "WHEELS"} <= given.keys() <= arguments
        assert (given.get("TORCH_INDEX"), given["EXTRA"]) == (torch_index, extras)
        assert given.get("COMPILER") == compiler
    assert "ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu\n" in recipe


def test_the_image_cannot_fetch_compiled_code_from_the_hub() -> None:
    """bitsandbytes and transformers fetch kernels when they are imported, if the package `kernels` is there."""
    project = (ROOT / "pyproject.toml").read_text() + (ROOT / "constraints.txt").read_text()
    assert not re.search(r"(?m)^\W*kernels\b", project)


SBOM = SimpleNamespace(**runpy.run_path(str(ROOT / "images" / "sbom.py")))
"""The part of the build that completes the bill of materials."""


def test_a_licence_is_concluded_only_where_none_is_stated() -> None:
    stated = [{"license": {"id": "MIT", "acknowledgement": "declared"}}]
    bom = {"components": [{"name": "huey"}, {"name": "protobuf", "licenses": stated}]}
    huey, protobuf = SBOM.complete(bom)["components"]
    assert huey["licenses"] == [{"license": {"id": "MIT", "acknowledgement": "concluded"}}]
    assert protobuf["licenses"] is stated


def test_an_unknown_licence_is_listed_and_warned_about(capsys: pytest.CaptureFixture[str]) -> None:
    bom = {"components": [{"name": "mystery", "licenses": []}, {"name": "huey"}, {"name": "riddle"}]}
    licences = [component["licenses"][0]["license"] for component in SBOM.complete(bom)["components"]]
    assert [licence.get("name") for licence in licences] == ["NOASSERTION", None, "NOASSERTION"]
    assert "warning: no licence is known of mystery, riddle: " in capsys.readouterr().err


def test_only_packages_that_state_no_licence_in_a_known_form_have_a_concluded_one() -> None:
    """A pinned package that states its licence needs no line any more."""
    for name in SBOM.CONCLUDED:
        facts = importlib.metadata.metadata(name)
        assert facts.get("License-Expression") is None, name
        assert not [line for line in facts.get_all("Classifier", []) if line.startswith("License ::")], name


@pytest.mark.parametrize("name", ["images/sbom-constraints.txt", ".ci/audit-constraints.txt"])
def test_tools_are_pinned(name: str) -> None:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    assert lines == sorted(lines, key=str.lower)
