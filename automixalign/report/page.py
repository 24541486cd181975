"""One self-contained HTML page of a report's facts; it loads nothing, and runs no script but its own."""

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
_SCRIPTS = ("dom.js", "table.js", "chart.js", "trainings.js", "run.js", "comparison.js", "main.js")


def write(data: dict[str, Any], page: Path, facts: Path | None = None) -> None:
    """Write the page, and its facts as JSON where a place is given for them."""
    if facts is not None:
        files.write_text(facts, json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
    files.write_text(page, render(data))


def render(data: dict[str, Any]) -> str:
    """The page as text.

    Names and texts reach it as JSON and are put in by the script as text, never as HTML.
    """
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
    """How a content security policy names the one inline text that it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(data: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
