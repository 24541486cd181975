"""What the terminal shows of the stages' events."""

import io

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
