"""Go through the DAG on this machine by kfp's local runner.

The steps are processes, or containers as the file of `containers.py` says.
"""

import os
from contextlib import nullcontext
from pathlib import Path

from kfp import local
from kfp.local import cache as kfp_cache
from kfp.local import logging_utils, subprocess_task_handler

from pipelines.dag.pipeline import build_pipeline
from pipelines.dag.placement import LocalPlacement
from pipelines.local import warm
from pipelines.local.attempt import Attempt
from pipelines.local.caching import StepCache

_LIGHT = ("validate_config",)
"""Steps that need no torch; they alone run where all else is taken from the cache."""

_start_anew = subprocess_task_handler.run_local_subprocess


def go_through(attempt: Attempt, fresh: bool = False) -> None:
    """Run every step that has not been done.

    Args:
        attempt: what to do, and where.
        fresh: this process was started for it, so that what it has imported is as new as in another one, and
            light steps may be forks of it.

    Raises:
        RuntimeError: a step failed; its own log says why.
    """
    local.init(
        runner=_containers(attempt) or local.SubprocessRunner(use_venv=False),
        pipeline_root=str(attempt.folder),
        workspace_root=str(attempt.folder / "workspace"),
        raise_on_error=True,
        enable_caching=True,
    )
    cache = StepCache(attempt.cache, attempt.folder, attempt.shared_cache)
    _start_steps_warm(fresh, attempt.log)
    kfp_cache.get_local_cache = lambda: cache  # it would make one of kfp's own kind
    # Around each step kfp puts another `print` into `builtins`, that indents. Steps that overlap put it back in
    # the wrong order, so that one stays, and each that stays doubles what the ones after it cost.
    logging_utils.indented_print = lambda num_spaces=4: nullcontext()
    build_pipeline(attempt.experiment, LocalPlacement(attempt.retries))(
        config=attempt.experiment.model_dump_json()
    )


def _containers(attempt: Attempt) -> local.DockerRunner | None:
    if attempt.containers is None:
        return None
    from pipelines.local.containers import docker_runner  # with the docker SDK

    return docker_runner(attempt.containers)


def _start_steps_warm(fresh: bool, log: Path | None) -> None:
    """Have kfp's subprocess runner start steps as `warm` does."""

    def run(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        light = full_command[-1] in _LIGHT
        if light and not fresh:
            return int(_start_anew(full_command, env_vars))
        return warm.run(full_command, {**os.environ, **(env_vars or {})}, log, here=light)

    subprocess_task_handler.run_local_subprocess = run
