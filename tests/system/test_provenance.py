"""The digest of the environment; tests/pipeline/test_caching.py shows that a stage's settings hold it."""

import os
from pathlib import Path

from tests.system.processes import run

ROOT = Path(__file__).parents[2]


def digest(*packages: Path) -> str:
    code = "from automixalign.system.provenance import environment_digest; print(environment_digest())"
    path = os.pathsep.join(map(str, [*packages, ROOT]))
    return run(code, env={**os.environ, "PYTHONPATH": path}).stdout


def test_another_version_of_a_package_is_another_environment(tmp_path: Path) -> None:
    """Also of an optional one that computes numbers."""
    for name in ("scipy", "bitsandbytes", "unheard_of"):
        info = tmp_path / name / f"{name}-1.99.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.99.0\n")
    assert digest() == digest(tmp_path / "unheard_of")
    assert digest(tmp_path / "scipy") != digest() != digest(tmp_path / "bitsandbytes")
