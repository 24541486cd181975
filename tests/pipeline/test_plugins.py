"""A run with code from outside the project: every module of docs/extending.md, as its reader writes it."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from automixalign.storage import files
from benchmarks import tiny
from tests.faults.command_line import ROOT, ama

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
IMPORTED = ["my_mixers", "my_merges", "my_metrics"]
"""The modules that the configuration names; the others are declared by an installed package."""


def install(folder: Path) -> None:
    """Install the modules of the page in a folder, with the entry points of those that are not imported."""
    for name, code in re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL):
        (folder / f"{name}.py").write_text(code)
    lines = []
    for block in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL):
        ((group, items),) = tomllib.loads(block)["project"]["entry-points"].items()
        ((name, value),) = items.items()
        if value.partition(":")[0] not in IMPORTED:
            lines.append(f"[{group}]\n{name} = {value}\n")
    metadata = folder / "mine-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: mine\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("".join(lines))


@pytest.mark.slow
def test_code_from_outside_takes_part_in_a_run(tmp_path: Path) -> None:
    install(tmp_path)
    rows = [
        {"question": f"say {number}", "winner": f"Well {number}", "loser": "no", "votes": number % 4}
        for number in range(60)
    ]
    files.write_jsonl(tmp_path / "duels.jsonl", rows)
    (method,) = re.findall(r'@register\("(.*)"\)', PAGE)
    duels = {"path": str(tmp_path / "duels.jsonl"), "format": {"name": "duel", "min_votes": 1}}
    experiment = tiny.experiment()
    experiment["tasks"][0]["verifier"] = "same-words"
    experiment["tasks"].append({"name": "duels", "source": duels})
    merge = {"method": "quantile", "parameters": {"q": 0.4}}
    experiment |= {"plugins": IMPORTED, "methods": [method], "merges": [merge]}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(experiment))
    ran = ama(
        *("run", "--config", tmp_path / "my.yaml", "--output", tmp_path / "run", "--no-cache"),
        PYTHONPATH=f"{tmp_path}:{ROOT}",
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    board = {entry["model"]: entry for entry in json.loads((tmp_path / "run" / "leaderboard.json").read_text())}
    assert {method, "quantile"} <= board.keys()
    header = (tmp_path / "run" / "leaderboard.md").read_text().partition("| model | family |")[2]
    assert header.startswith(" worst gap "), "the project's own metrics come first"
    tasks = board["quantile"]["tasks"]
    assert all(0 <= tasks[task]["sure"] <= 1 for task in tasks), "a metric of the user"
    assert "pass_rate" in tasks[experiment["tasks"][0]["name"]], "a verifier of the user"
    card = {task["name"]: task for task in files.read_json(tmp_path / "run" / "data" / "card.json")["tasks"]}
    assert card["duels"]["rows"] == {"read": 60, "few_votes": 15}, "a row format of the user"
    assert "sure pairs" in (tmp_path / "run" / "leaderboard.md").read_text()
