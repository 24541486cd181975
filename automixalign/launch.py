"""Run a function in several processes of this machine that torch.distributed joins: gloo, or NCCL on CUDA."""

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from automixalign import errors, files, progress

_WORLD = "WORLD_SIZE"


def world_size() -> int:
    """How many processes share the work; a launcher such as torchrun or `launch` says so."""
    return int(os.environ.get(_WORLD, "1"))


def launch(function: Callable[..., Any], arguments: tuple[Any, ...], processes: int) -> Any:
    """Call `function(*arguments)` in every one of `processes` processes; return what the first returned.

    With one process, or where a launcher has started several already, the function is simply called.

    Args:
        function: of a module, so that a new process can import it.
        arguments: anything that can be pickled.

    Raises:
        AutoMixAlignError: the error of the process that failed first, once the others are ended; a
            TrainingError where it was not one of ours.
    """
    if processes == 1 or _WORLD in os.environ:
        return function(*arguments)
    import torch
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

    threads = max(1, torch.get_num_threads() // processes)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        shared = (processes, threads, scratch, progress.current(), function, arguments)
        try:
            spawn(_rank, shared, nprocs=processes)  # type: ignore[no-untyped-call]
        except (ProcessRaisedException, ProcessExitedException) as failure:
            raise _error_of(scratch, failure) from failure
        return files.read_json(scratch / "result.json")


def _rank(
    rank: int,
    processes: int,
    threads: int,
    scratch: Path,
    step: progress.Step,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    import torch

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), _WORLD: str(processes)}
    os.environ["LOCAL_WORLD_SIZE"] = str(processes)
    torch.set_num_threads(threads)
    progress.adopt(step)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(rank)
    elif loopback := [name for _, name in socket.if_nameindex() if name.startswith("lo")]:
        # gloo would look up this machine's name and listen on that address.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    # They meet at a file: no port that another program could take.
    meeting = f"file://{scratch / 'meeting'}"
    torch.distributed.init_process_group(
        "nccl" if cuda else "gloo", init_method=meeting, rank=rank, world_size=processes
    )
    try:
        result = function(*arguments)
    except errors.AutoMixAlignError as error:
        files.write_json(scratch / f"error-{rank}.json", [type(error).__name__, str(error)])
        raise
    if rank == 0:
        files.write_json(scratch / "result.json", result)
    torch.distributed.destroy_process_group()


def _error_of(scratch: Path, failure: Exception) -> errors.AutoMixAlignError:
    for file in sorted(scratch.glob("error-*.json")):
        name, message = files.read_json(file)
        kind: type[errors.AutoMixAlignError] = getattr(errors, name)
        return kind(message)
    return errors.TrainingError(f"one of the processes failed: {failure}")
