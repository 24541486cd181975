"""Bring all evaluations together: leaderboard, plots, and the page that shows both."""

import base64
import html
from collections.abc import Iterable
from pathlib import Path

from automixalign import config, files, leaderboard, plots
from automixalign.settings import ComparisonSettings

LEADERBOARD = "leaderboard.json"


def compare(
    settings: ComparisonSettings,
    evaluations: Iterable[Path],
    trajectories: dict[str, Path],
    board: Path,
    plot_folder: Path,
    markdown: Path,
    page: Path,
) -> list[leaderboard.Entry]:
    """Write `leaderboard.json`, the plots, and the leaderboard as Markdown and as one HTML page.

    Where `tracking.uri` names an MLflow store, everything is recorded there too.

    Args:
        evaluations: the folder of each model, in any order.
        trajectories: generalist -> its per-step log.

    Returns:
        The leaderboard.

    Raises:
        CacheError: the evaluation of a model of the experiment is missing.
        mlflow.exceptions.MlflowException: the MLflow store refuses.
    """
    experiment = settings.experiment
    entries = leaderboard.build(evaluations, config.model_names(experiment))
    files.write_json(board, entries)
    with files.replacing(plot_folder) as folder:
        folder.mkdir()
        ordered = {m.name: files.read_jsonl(trajectories[m.name]) for m in experiment.methods}
        plots.weight_trajectories(ordered, folder / "task_weights.png")
        for metric in leaderboard.METRICS:
            plots.task_bars(entries, metric, folder / f"{metric}.png")
    files.write_text(markdown, _markdown(entries))
    files.write_text(page, _page(experiment.name, entries, sorted(plot_folder.glob("*.png"))))
    if experiment.tracking.uri:
        from automixalign import tracking

        kept = {"leaderboard.json": board, "leaderboard.html": page, "plots": plot_folder}
        tracking.record(experiment, summary_metrics(entries), trajectories, kept)
    return entries


def summary_metrics(entries: list[leaderboard.Entry]) -> dict[str, float]:
    """`MODEL.worst.excess` and its like, for a metrics artifact."""
    return {
        f"{entry['model']}.{view}.{metric}": value
        for entry in entries
        for view in ("worst", "average")
        for metric, value in entry[view].items()
    }


def _markdown(entries: list[leaderboard.Entry]) -> str:
    header, rows = leaderboard.table(entries)
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join([leaderboard.verdict(entries), "", *lines, ""])


def _page(name: str, entries: list[leaderboard.Entry], images: list[Path]) -> str:
    header, rows = leaderboard.table(entries)

    def cells(values: list[str], tag: str) -> str:
        return "".join(f"<{tag}>{_bold(html.escape(value))}</{tag}>" for value in values)

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    figures = "".join(
        f'<img alt="{image.stem}" src="data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}">'
        for image in images
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(name)}</title><style>{_STYLE}</style><h1>{html.escape(name)}</h1>"
        f"<p>{html.escape(leaderboard.verdict(entries))}</p>"
        f"<table><thead><tr>{cells(header, 'th')}</tr></thead><tbody>{body}</tbody></table>{figures}</html>\n"
    )


def _bold(cell: str) -> str:
    return f"<b>{cell.strip('*')}</b>" if cell.startswith("**") else cell


_STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}th,td{padding:.3rem .6rem;text-align:right}"
    "th:first-child,td:first-child{text-align:left}tbody tr:nth-child(odd){background:#8882}"
    "img{max-width:100%;margin-top:1.5rem}"
)
