"""Write docs/architecture.md: every folder and file of the source with the first line of its docstring.

python docs/architecture.py [--check]    (part of `make pages`)
"""

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_suffix(".md")

_HEAD = """# Architecture

This page is for people who look for something in the code.
`make pages` generates it from the docstrings; `make test` checks it.

The library takes paths and returns paths; it knows nothing of Kubeflow.
`components/` wraps each stage in a thin typed function.
`pipelines/` wires the components, and holds the command line and the presets.
Imports point one way only: `pipelines` -> `components` -> `automixalign`.
Inside the library, a package imports only packages below it in this list:

{layers}

`make lint` checks this, and that there is no import circle.

Start with [`mixers.py`](../automixalign/method/mixers.py), the algorithm. Then read
[`trainer.py`](../automixalign/training/trainer.py), one optimiser step, and
[`pipeline.py`](../pipelines/dag/pipeline.py), how the stages are wired.
"""

_TAIL = """
## Everything else

| folder | content |
| --- | --- |
| `tests/` | mirrors the tree; `pipeline` runs it whole, `faults` breaks it, `container` builds the image |
| `benchmarks/` | measures quality and speed; the results are in `benchmarks/results` |
| `images/` | the container image |
| `manifests/` | what a cluster needs besides Kubeflow Pipelines |
| `examples/` | configurations to copy |
| `docs/` | these pages |
"""


def page() -> str:
    """The page as Markdown."""
    lines = [_HEAD.format(layers=f"`{'` > `'.join(_layers())}`")]
    for layer in _layers():
        for package in layer.split(" | "):
            lines += _section(ROOT / "automixalign" / package)
    lines += _section(ROOT / "components")
    lines += _section(ROOT / "pipelines")
    return "\n".join(lines) + _TAIL


def _layers() -> list[str]:
    """The library's packages from top to bottom, as the import contract in pyproject.toml has them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return next(contract["layers"] for contract in contracts if contract.get("containers") == ["automixalign"])


def _section(package: Path) -> Iterator[str]:
    name = package.relative_to(ROOT).as_posix()
    yield f"\n## `{name}/`\n\n{_docstring(package / '__init__.py')}\n\n| file | what it does |\n| --- | --- |"
    for file in sorted(package.rglob("*.py")):
        if file.name != "__init__.py":
            link = f"[`{file.relative_to(package).as_posix()}`](../{file.relative_to(ROOT).as_posix()})"
            yield f"| {link} | {_docstring(file).splitlines()[0]} |"


def _docstring(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    if not text:
        raise SystemExit(f"{file.relative_to(ROOT)} has no docstring")
    return text.replace("|", "\\|")


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(page() != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page(), encoding="utf-8")
