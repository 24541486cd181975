"""Renders the manifests with `kubectl kustomize`, and selects documents of them."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

MANIFESTS = Path(__file__).parents[2] / "manifests"
WORKLOADS = ("Deployment", "StatefulSet")

Document = dict[str, Any]

MANAGED_DATABASE = "postgresql+psycopg2://mlflow@database.example.com:5432/mlflow?sslmode=require"


def _with(*components: str) -> Callable[[dict[str, Any]], object]:
    return lambda own: own["components"].extend(f"../../components/{name}" for name in components)


def _with_a_managed_database(own: dict[str, Any]) -> None:
    own["components"] = ["../../components/database"]
    own["configMapGenerator"][0]["literals"].append(f"MLFLOW_BACKEND_STORE_URI={MANAGED_DATABASE}")


BUILDS: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "local": ("local", _with()),
    "cluster": ("cluster", _with()),
    "local with postgres": ("local", _with("postgres")),
    "local with trainer": ("local", _with("trainer")),
    "cluster with trainer": ("cluster", _with("trainer")),
    "cluster with kserve": ("cluster", _with("kserve")),
    "cluster with seaweedfs": ("cluster", _with("seaweedfs")),
    "cluster with a managed database": ("cluster", _with_a_managed_database),
}
"""Name -> an overlay, and a change to its kustomization.yaml that the page describes."""

needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None,
    reason="THE MANIFESTS ARE NOT CHECKED: kubectl, which renders them, is not on the PATH",
)


@cache
def render(build: str) -> list[Document]:
    """The documents of an entry of BUILDS. Do not change them: they are cached."""
    overlay, edit = BUILDS[build]
    with tempfile.TemporaryDirectory() as folder:
        edited = Path(folder) / "manifests"
        shutil.copytree(MANIFESTS, edited)
        own = edited / "overlays" / overlay / "kustomization.yaml"
        content = yaml.safe_load(own.read_text())
        edit(content)
        own.write_text(yaml.safe_dump(content))
        command = ["kubectl", "kustomize", str(own.parent)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr  # fails on warnings, too
    return list(yaml.safe_load_all(done.stdout))


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    return [document for document in documents if document["kind"] in kinds]


def named(documents: list[Document], kind: str, name: str) -> Document:
    """The document of this kind and name; ignores the digest that ends a generated name."""
    (match,) = (
        document
        for document in of_kind(documents, kind)
        if re.sub(r"-[a-z0-9]{10}$", "", document["metadata"]["name"]) == name
    )
    return match


def name_of(document: Document) -> str:
    return str(document["metadata"]["name"])


def pods(documents: list[Document]) -> list[tuple[str, Document]]:
    """Name and pod template of every workload."""
    return [(name_of(each), each["spec"]["template"]) for each in of_kind(documents, *WORKLOADS)]


def containers(documents: list[Document]) -> list[tuple[Document, Document]]:
    """Every container with the spec of its pod."""
    pairs = [
        (container, template["spec"])
        for _, template in pods(documents)
        for container in [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]
    ]
    assert pairs
    return pairs


def settings(documents: list[Document], name: str) -> dict[str, str]:
    """The data of a ConfigMap."""
    data: dict[str, str] = named(documents, "ConfigMap", name)["data"]
    return data


if __name__ == "__main__":  # `make scan` scans these files
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    for build in BUILDS:
        (folder / f"{build.replace(' ', '-')}.yaml").write_text(yaml.safe_dump_all(render(build)))
