"""The leaderboard, the plots and the page that shows them."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Metrics, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def compare(
    settings: str,
    reference: Input[Dataset],
    specialists: Input[list[Dataset]],
    generalists: Input[list[Dataset]],
    trajectories: Input[list[Artifact]],
    leaderboard: Output[Artifact],
    metrics: Output[Metrics],
    plots: Output[Artifact],
    markdown: Output[Markdown],
    page: Output[HTML],
    merges: Input[list[Dataset]] = None,  # kfp's form of an optional
) -> None:
    """Bring all evaluations together: per task, on average and on the worst task.

    Args:
        settings: `ComparisonSettings` as JSON.
        reference: the evaluation of the reference model.
        specialists: the evaluations of the specialists.
        generalists: the evaluations of the generalists.
        trajectories: the generalists' per-step logs.
        leaderboard: JSON, an entry a model.
        metrics: worst and average of every model.
        plots: folder of PNG files: task weights over time, a bar chart a metric.
        markdown: the leaderboard as a table.
        page: leaderboard and plots as one HTML file.
        merges: the evaluations of the merges, if there are any.
    """
    from pathlib import Path

    from automixalign.compare import compare, summary_metrics
    from automixalign.progress import step
    from automixalign.settings import ComparisonSettings

    evaluations = [reference, *specialists, *generalists, *(merges or [])]
    outputs = [leaderboard, plots, markdown, page]
    with step("compare"):
        entries = compare(
            ComparisonSettings.model_validate_json(settings),
            [Path(artifact.path) for artifact in evaluations],
            {artifact.metadata["model"]: Path(artifact.path) for artifact in trajectories},
            *(Path(artifact.path) for artifact in outputs),
        )
        metrics.metadata.update(summary_metrics(entries))
        names = ["leaderboard.json", "plots", "leaderboard.md", "leaderboard.html"]
        for artifact, name in zip(outputs, names, strict=True):
            artifact.metadata["run_path"] = name
