"""One self-contained HTML page with the facts of a report: it loads nothing, and runs only its own script."""

import base64
import hashlib
import html
import json
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from automixalign.storage import files

_ASSETS = resources.files("automixalign.report") / "assets"
_SCRIPTS = (
    "dom.js",
    "table.js",
    "chart.js",
    "trainings.js",
    "validation.js",
    "origin.js",
    "examples.js",
    "tasks.js",
    "grids.js",
    "benchmarks.js",
    "tunings.js",
    "run.js",
    "comparison.js",
    "main.js",
)


def write(data: dict[str, Any], page: Path, facts: Path | None = None) -> None:
    """Write the page, and its facts as JSON to `facts` if given."""
    if facts is not None:
        files.write_text(facts, json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
    files.write_text(page, render(data))


def render(data: dict[str, Any]) -> str:
    """The page as text. Its script inserts all names and texts, which it gets as JSON, as text nodes."""
    style = _asset("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(map(_asset, _SCRIPTS)) + "})();\n"
    return Template(_asset("page.html")).substitute(
        title=html.escape(data["name"]),
        verdict=html.escape(data["verdict"]),
        policy="; ".join(
            [
                "default-src 'none'",
                f"style-src '{_hash(style)}'",
                f"script-src '{_hash(script)}'",
                "base-uri 'none'",  # these two do not follow default-src
                "form-action 'none'",
            ]
        ),
        style=style,
        script=script,
        data=_embedded(data),
    )


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The name of an allowed inline text in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(data: dict[str, Any]) -> str:
    """The facts as JSON that cannot close the script element around it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
