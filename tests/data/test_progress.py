"""The progress of `prepare_data`."""

from pathlib import Path
from typing import Any

import pytest

from automixalign.config.data import DataSettings
from automixalign.steps.events import EVENTS_FILE, LOGS_VARIABLE, parse_events
from automixalign.steps.step import run_step
from benchmarks import tiny


@pytest.mark.parametrize(("changes", "total"), [({}, 0), ({"limit": 30}, 30)], ids=["all pairs", "drawn pairs"])
def test_tokenised_pairs_are_reported(
    changes: dict[str, Any], total: int, base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "a.jsonl"
    line = '{{"prompt": "p{}", "chosen": "a", "rejected": "b"}}\n'
    rows.write_text("".join(line.format(number) for number in range(50)))
    monkeypatch.setenv(LOGS_VARIABLE, str(tmp_path))
    given = {"seed": 0, "tasks": [{"name": "a", "source": str(rows), **changes}], "split": {}}
    settings = DataSettings.model_validate({**given, "max_length": 64, "fingerprints": [""]})
    with run_step("prepare_data"):
        tiny.prepare(settings, base_model, tmp_path / "data")
    events = parse_events((tmp_path / EVENTS_FILE).read_bytes())
    progress = [(event["done"], event["total"]) for event in events if event["event"] == "progress"]
    assert progress[-1] == (total or 50, total)
