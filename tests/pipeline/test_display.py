"""What the terminal shows of the steps' events."""

import io

from rich.console import Console

from pipelines.local.display import Progress


def test_a_warning_is_shown_as_it_comes() -> None:
    console = Console(file=io.StringIO(), width=80)
    step = {"stage": "specialist_losses", "name": "a", "time": 1.0}
    events = [
        {**step, "event": "started"},
        {**step, "event": "warning", "message": "specialist-a: its held-out loss [0.3] lies above"},
        {**step, "event": "finished", "time": 3.5},
    ]
    progress = Progress(console, 1)
    progress.follow(events)
    shown = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert shown[0] == "! specialist-a: its held-out loss [0.3] lies above"
    assert shown[1].split() == ["✓", "specialist_losses", "[a]", "2.5", "s"]
    assert progress.finished == 1
