"""Steps as processes that need not import torch, transformers and trl anew, half of a small step's time.

kfp starts a Python for each step. Here each is a fork of one process that has imported all of it and done
nothing else (multiprocessing's fork server), with kfp's own entry point in it.
"""

import multiprocessing
import os
import sys
import tempfile
import threading
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from pathlib import Path

from kfp.local import subprocess_task_handler

IMPORTS = (
    "automixalign.base_model",
    "automixalign.compare",
    "automixalign.data.prepare",
    "automixalign.evaluate",
    "automixalign.specialist_losses",
    "automixalign.tiny_model",
    "automixalign.trainer",
    "kfp.dsl.executor_main",
    "peft",
    "transformers.models.auto.modeling_auto",
)
"""What the steps import, but for what few of them need: mergekit, mlflow, boto3."""
_LIGHT = ("validate_config",)
"""Steps that need none of it; they alone run where everything else is taken from the cache."""

_ASKING = threading.Lock()
_start_anew = subprocess_task_handler.run_local_subprocess


def install() -> None:
    """Have kfp's subprocess runner start steps so."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTS))

    def run(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        if full_command[-1] in _LIGHT:
            return int(_start_anew(full_command, env_vars))
        return _fork(context, full_command, {**os.environ, **(env_vars or {})})

    subprocess_task_handler.run_local_subprocess = run


def _fork(context: ForkServerContext, full_command: list[str], environment: dict[str, str]) -> int:
    process = context.Process(target=_run, args=(full_command, environment))
    # A start also looks how the others have ended; two that ask at once would see 255 (Python 3.11).
    with _ASKING:
        process.start()
    wait([process.sentinel])
    with _ASKING:
        process.join()
    return process.exitcode or 0


def _run(full_command: list[str], environment: dict[str, str]) -> None:
    """What kfp's command does, `sh -c SCRIPT SOURCE ARGUMENTS...`: SCRIPT runs `executor_main` on SOURCE."""
    from kfp.dsl import executor_main

    source = full_command[3]
    os.environ.update(environment, _KFP_RUNTIME="true")
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder) / "ephemeral_component.py"
        module.write_text(source, encoding="utf-8")
        sys.argv = [executor_main.__file__, "--component_module_path", str(module), *full_command[4:]]
        executor_main.executor_main()
