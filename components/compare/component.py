"""The leaderboard, the plots and the report of the run."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Metrics, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def compare(
    settings: str,
    reference: Input[Dataset],
    specialists: Input[list[Dataset]],
    specialist_trajectories: Input[list[Artifact]],
    data: Input[Dataset],
    losses: Input[list[Dataset]],
    leaderboard: Output[Artifact],
    plots: Output[Artifact],
    markdown: Output[Markdown],
    page: Output[HTML],
    facts: Output[Artifact],
    metrics: Output[Metrics],
    generalists: Input[list[Dataset]] = None,  # kfp's form of an optional
    trajectories: Input[list[Artifact]] = None,
    warm_generalists: Input[list[Dataset]] = None,
    warm_trajectories: Input[list[Artifact]] = None,
    merges: Input[list[Dataset]] = None,
    reference_benchmarks: Input[Artifact] = None,
    generalist_benchmarks: Input[list[Artifact]] = None,
    warm_benchmarks: Input[list[Artifact]] = None,
    merge_benchmarks: Input[list[Artifact]] = None,
) -> None:
    """Compare all models: on each task, on average and on the worst task.

    Args:
        settings: `ComparisonSettings` as JSON.
        reference, specialists, merges: the evaluations of the models of each family.
        generalists, warm_generalists: those of generalists that start from the base model, and from a merge.
        trajectories, warm_trajectories, specialist_trajectories: logs of the optimiser steps and the costs.
        reference_benchmarks, generalist_benchmarks, warm_benchmarks, merge_benchmarks: results on benchmarks.
        data, losses: the prepared splits, and the specialists' losses on them.
        leaderboard, markdown: every model on every task, as JSON and a table; worst and average.
        metrics: the chosen model on its worst task of the test split.
        plots: folder of PNG files: task weights over time, and one bar chart for each metric.
        page, facts: the report as one HTML file, and its data as JSON.
    """
    from automixalign.config.experiment import ComparisonSettings
    from automixalign.report.compare import ReportPaths, compare
    from automixalign.report.facts.collect import RunResults
    from automixalign.steps.artifacts import flat
    from automixalign.steps.step import run_step

    evaluations = flat(reference, specialists, generalists, warm_generalists, merges)
    benchmarks = flat(reference_benchmarks, generalist_benchmarks, warm_benchmarks, merge_benchmarks)
    logs = flat(trajectories, warm_trajectories, specialist_trajectories)
    outputs = {"leaderboard": leaderboard, "markdown": markdown, "plots": plots, "page": page, "facts": facts}
    with run_step("compare", reads=flat(evaluations, benchmarks, logs, data, losses), writes=outputs.values()):
        results = RunResults.of_artifacts(evaluations, logs, data, losses, benchmarks)
        paths = ReportPaths.of_artifacts(outputs)
        metrics.metadata.update(compare(ComparisonSettings.model_validate_json(settings), results, paths))
