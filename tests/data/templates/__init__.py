"""Short copies of what the chat templates of well-known models do."""

from pathlib import Path

TEMPLATES = {file.stem: file.read_text(encoding="utf-8") for file in Path(__file__).parent.glob("*.jinja")}
