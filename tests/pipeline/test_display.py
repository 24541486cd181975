"""What the terminal shows of the stages' events."""

import io
import re

import pytest
from rich.console import Console

from pipelines.local.display import Progress


def test_a_warning_is_shown_at_once() -> None:
    console = Console(file=io.StringIO(), width=80)
    stage = {"stage": "specialist_losses", "name": "a", "time": 1.0}
    events = [
        {**stage, "event": "started"},
        {**stage, "event": "warning", "message": "specialist-a: its held-out loss [0.3] is above"},
        {**stage, "event": "finished", "time": 3.5},
    ]
    progress = Progress(console, 1)
    progress.show(events)
    shown = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert shown[0] == "! specialist-a: its held-out loss [0.3] is above"
    assert shown[1].split() == ["✓", "specialist_losses", "[a]", "2.5", "s"]
    assert progress.finished == 1


@pytest.mark.parametrize(
    ("reports", "left"),
    [
        ([], None),
        ([(60, 10, 400)], None),
        ([(60, 1000, 0), (61, 2000, 0)], None),
        ([(60, 10, 400), (160, 20, 400)], "63 min left"),
        ([(60, 10, 400), (70, 400, 400), (80, 1, 100), (90, 51, 100)], "10 s left"),
    ],
    ids=["no report", "one report", "an unknown total", "speed without the time to load", "a new bar"],
)
def test_the_time_left(
    reports: list[tuple[int, int, int]], left: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=io.StringIO(), width=80)
    stage = {"stage": "reference_logps", "name": ""}
    progress = Progress(console, 1)
    progress.show([{**stage, "event": "started", "time": 0.0}])
    progress.show([{**stage, "event": "progress", "time": t, "done": d, "total": n} for t, d, n in reports])
    monkeypatch.setattr("time.time", lambda: float(reports[-1][0] if reports else 1))
    console.print(progress.live.get_renderable())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("left" in shown) == (left is not None)
    assert left is None or left in shown
    assert ("2,000 done" in shown) == (reports[-1:] == [(61, 2000, 0)])


def test_a_terminal_without_the_marks_gets_others() -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    stage = {"stage": "evaluate", "name": "", "time": 1.0}
    with (progress := Progress(Console(file=terminal, width=80, force_terminal=True), 2)).live:
        progress.show([{**stage, "event": "started"}])
        progress.live.refresh()
        progress.show([{**stage, "event": "finished"}, {**stage, "event": "failed"}])
    terminal.seek(0)
    assert re.findall(r"(\S) evaluate ", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.read())) == ["+", "x"]
