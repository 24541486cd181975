"""Steps as processes that need not import torch, transformers and trl anew, half of a small step's time.

kfp starts a Python for each step. Here each is a fork of one process that has imported all of it and done
nothing else (multiprocessing's fork server), with kfp's own entry point in it.
"""

import multiprocessing
import os
import sys
import tempfile
import threading
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path

_PRELOADED = "pipelines.local.preloaded"
_ASKING = threading.Lock()


def begin() -> None:
    """Let the fork server begin with its imports, for which the first step would have to wait."""
    forkserver.set_forkserver_preload([_PRELOADED])
    forkserver.ensure_running()


def run(full_command: list[str], environment: dict[str, str], log: Path | None, here: bool = False) -> int:
    """Carry out kfp's command for a step in a process of its own.

    Args:
        full_command: kfp's command.
        environment: of the step.
        log: gets what the step prints.
        here: it is a fork of this process, and not of the one that has imported all that a step may need.

    Returns:
        The exit status.
    """
    forkserver.set_forkserver_preload([_PRELOADED])
    context = multiprocessing.get_context("fork" if here else "forkserver")
    process = context.Process(target=_carry_out, args=(full_command, environment, log))  # type: ignore[attr-defined]
    # A start also looks how the others have ended; two that ask at once would see 255 (Python 3.11).
    with _ASKING:
        process.start()
    wait([process.sentinel])
    with _ASKING:
        process.join()
    return process.exitcode or 0


def _carry_out(full_command: list[str], environment: dict[str, str], log: Path | None) -> None:
    """What kfp's command does, `sh -c SCRIPT SOURCE ARGUMENTS...`: SCRIPT runs `executor_main` on SOURCE."""
    from kfp.dsl import executor_main

    if log is not None:
        print_to(log)
    source = full_command[3]
    os.environ.update(environment, _KFP_RUNTIME="true")
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder) / "ephemeral_component.py"
        module.write_text(source, encoding="utf-8")
        sys.argv = [executor_main.__file__, "--component_module_path", str(module), *full_command[4:]]
        executor_main.executor_main()


def print_to(log: Path) -> None:
    """Append all output of this process, and of native code in it, to a file."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(out, number)
    os.close(out)
