"""Generate the page of each component and their index.

    python -m components.pages            # write `components/README.md` and `components/NAME/README.md`
    python -m components.pages --check    # write nothing; name stale pages and exit with 1

Names and types come from the compiled component, descriptions from its docstring.
"""

import argparse
import importlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import docstring_parser

_FOLDER = Path(__file__).parent
_GENERATED = "<!-- Written by `python -m components.pages`; change the docstring in component.py. -->"
_TYPES = {
    "String": "str",
    "Integer": "int",
    "Float": "float",
    "Boolean": "bool",
    "List": "list",
    "Dict": "dict",
}


def names() -> list[str]:
    """The components, by the names of their folders."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/component.py"))


def pages() -> dict[Path, str]:
    """The text of each page: the index, and one page for each component.

    Raises:
        ValueError: a docstring does not describe an argument.
    """
    index = ["Component", "What it does"]
    rows = []
    texts = {}
    for name in names():
        component = _load(name)
        rows.append([f"[{name}]({name}/README.md)", _parsed(component).short_description or ""])
        texts[_FOLDER / name / "README.md"] = _page(name, component)
    intro = "Each component is a thin typed function over the library `automixalign`; `pipelines/` wires them."
    texts[_FOLDER / "README.md"] = _join("# Components", _GENERATED, intro, _table(index, rows))
    return texts


def stale() -> list[Path]:
    """The pages that differ from their text."""
    return [path for path, text in pages().items() if not path.exists() or path.read_text("utf-8") != text]


def _load(name: str) -> Any:
    return getattr(importlib.import_module(f"components.{name}.component"), name)


def _parsed(component: Any) -> docstring_parser.Docstring:
    return docstring_parser.parse(component.python_func.__doc__, docstring_parser.DocstringStyle.GOOGLE)


def _page(name: str, component: Any) -> str:
    module = importlib.import_module(f"components.{name}.component")
    parsed, spec = _parsed(component), component.component_spec
    described = {
        key.strip(): " ".join((param.description or "").split())
        for param in parsed.params
        for key in param.arg_name.split(",")  # several arguments can share a line
    }
    inputs, outputs = spec.inputs or {}, spec.outputs or {}
    returned = parsed.returns.description if parsed.returns else None
    missing = [key for key in (*inputs, *outputs) if not described.get(key)]
    if missing and not (returned and set(missing) <= outputs.keys()):
        raise ValueError(f"{name}: the docstring does not describe {', '.join(missing)}")

    def section(title: str, ports: dict[str, Any], lead: str | None = None) -> list[str]:
        if not ports:
            return [f"## {title}", "None."]
        rows = [[f"`{key}`", _type(port), described.get(key, "")] for key, port in ports.items()]
        head = ["Name", "Type", "Description"]
        if not any(row[2] for row in rows):
            rows, head = [row[:2] for row in rows], head[:2]
        return [f"## {title}", *([lead] if lead else []), _table(head, rows)]

    artifacts = {key: port for key, port in inputs.items() if _is_artifact(port)}
    return _join(
        f"# {name}",
        _GENERATED,
        module.__doc__ or "",
        parsed.description or "",
        *section("Inputs", artifacts),
        *section("Outputs", outputs, returned),
        *section("Parameters", {key: port for key, port in inputs.items() if key not in artifacts}),
        "Source: [component.py](component.py)",
    )


def _is_artifact(port: Any) -> bool:
    return str(port.type).startswith("system.")


def _type(port: Any) -> str:
    kind = str(port.type).partition("@")[0].removeprefix("system.")
    kind = _TYPES.get(kind, kind)
    kind = f"list[{kind}]" if port.is_artifact_list else kind
    return f"`{kind}`, optional" if getattr(port, "optional", False) else f"`{kind}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells))


def _join(*blocks: str) -> str:
    return "\n\n".join(block.strip() for block in blocks if block.strip()) + "\n"


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    texts = pages()
    for path in (changed := stale()):
        name = path.relative_to(_FOLDER.parent)
        sys.stdout.write(f"{name} is stale: run python -m components.pages\n" if check else f"{name}\n")
        if not check:
            path.write_text(texts[path], encoding="utf-8")
    sys.exit(1 if check and changed else 0)


if __name__ == "__main__":
    main()
