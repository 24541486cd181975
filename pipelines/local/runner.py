"""Run the DAG by kfp's local runner, with our cache and our way to start stages."""

from contextlib import nullcontext

from kfp import local
from kfp.local import cache, logging_utils, subprocess_task_handler

from pipelines.dag.pipeline import build_pipeline
from pipelines.dag.placement import LocalPlacement
from pipelines.local import warm_start
from pipelines.local.attempt import Attempt
from pipelines.local.stage_cache import StageCache


def run_dag(attempt: Attempt) -> None:
    """Run every stage whose result is not in the cache.

    Raises:
        RuntimeError: a stage failed; its log contains the reason.
    """
    local.init(
        runner=_runner(attempt),
        pipeline_root=str(attempt.folder),
        workspace_root=str(attempt.folder / "workspace"),
        raise_on_error=True,
        enable_caching=True,
    )
    stage_cache = StageCache(attempt.cache, attempt.folder, attempt.shared_cache)
    cache.get_local_cache = lambda: stage_cache
    subprocess_task_handler.run_local_subprocess = warm_start.run_stage
    # Around each stage kfp replaces `builtins.print` by one that indents. Stages that overlap restore it in the
    # wrong order, so some replacements stay, and each of them makes printing slower.
    logging_utils.indented_print = lambda num_spaces=4: nullcontext()
    pipeline = build_pipeline(attempt.experiment, LocalPlacement(attempt.retries))
    pipeline(config=attempt.experiment.model_dump_json())


def _runner(attempt: Attempt) -> local.DockerRunner | local.SubprocessRunner:
    if attempt.containers is None:
        return local.SubprocessRunner(use_venv=False)
    from pipelines.local.containers import docker_runner  # imports the docker SDK

    return docker_runner(attempt.containers)
