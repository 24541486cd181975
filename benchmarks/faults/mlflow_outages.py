"""MLflow down, silent, wrong or locked: no step fails, the run's end waits a bounded time, nothing is lost.

What was not sent is sent later, each record as one run; only `register`, which needs the registry, fails by
name.
"""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from automixalign.config.experiment import RegistrySettings, parse_experiment
from automixalign.config.release import RegistrySpec
from automixalign.preflight.validate import plan_experiment
from automixalign.release.register import register
from automixalign.steps.step import run_step
from automixalign.steps.tracking.record import Record
from automixalign.steps.tracking.send import send_waiting
from automixalign.steps.tracking.spool import FOLDER, FOLLOWED, RUN_ID, URI, Spool, Target
from automixalign.storage import files
from automixalign.system.errors import UnreachableError
from benchmarks import tiny
from benchmarks.faults._outcome import environment, refused, see
from benchmarks.faults.case import Case, UnexpectedError, ama
from benchmarks.servers.mlflow_server import server
from benchmarks.servers.mlflow_store import sqlite_store
from benchmarks.servers.ports import free_port
from benchmarks.servers.proxy import Fault, Proxy, http, proxy
from pipelines.local.sending import PATIENCE, Sender

_STEPS = ("train [a]", "train [b]", "evaluate [a]", "compare")
_PAGE = http("200 OK", b"<html><body>welcome to nginx</body></html>", "text/html")
_BROKEN = http("500 Internal Server Error", b"<html>oops</html>", "text/html")
_ADVICE = "see that the MLflow server is up and that MLFLOW_TRACKING_URI is its address"
_HASTE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""Where a fault is not about how long MLflow is waited for."""


def record(title: str) -> Record:
    """A step's record with some of everything."""
    stage, _, name = title.removesuffix("]").partition(" [")
    made = Record(stage=stage, name=name, ended=time.time())
    made.add_params({"training": {"beta": 0.1}})
    for step in range(3):
        made.add_metrics({"loss": 1 / (step + 1)}, step)
    return made


def all_once(uri: str, titles: tuple[str, ...] = _STEPS, pipeline: str = "run") -> None:
    """See that a store has each step once, whole, below the run of the pipeline, which has ended."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("automixalign")
    runs = client.search_runs([experiment.experiment_id])
    names = sorted(run.info.run_name for run in runs)
    see(names == sorted([pipeline, *titles]), f"the store has {names}")
    see({run.info.status for run in runs} == {"FINISHED"}, "a run has not ended")
    (parent,) = (run.info.run_id for run in runs if run.info.run_name == pipeline)
    for run in runs:
        if run.info.run_id != parent:
            points = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
            see(points == [0, 1, 2], f"{run.info.run_name} has the points {points}")
            see(run.data.params == {"training.beta": "0.1"}, f"{run.info.run_name} has {run.data.params}")
            see(run.data.tags["mlflow.parentRunId"] == parent, f"{run.info.run_name} lies elsewhere")


def filled(folder: Path, uri: str) -> Spool:
    """A spool with the records of a run that is over."""
    spool = Spool(folder / "spool")
    spool.aim(Target(uri=uri, run_name="run", artifacts=None))
    for title in _STEPS:
        spool.add(record(title))
    spool.close("FINISHED")
    return spool


@contextmanager
def _stand(folder: Path) -> Iterator[tuple[str, Proxy]]:
    """A server, the address of the proxy before it, and the proxy."""
    port = free_port()
    with ExitStack() as stack:
        stack.enter_context(environment(**_HASTE, **dict.fromkeys((URI, RUN_ID, FOLDER, FOLLOWED))))
        stack.enter_context(server(folder, port, str(folder / "artifacts")))
        between = stack.enter_context(proxy(port))
        yield between.url, between


def not_taken(fault: Fault, *parts: str) -> Callable[[Path], str]:
    """Nothing is taken while the fault lasts, and it is said why; all is taken once it is over."""

    def run(folder: Path) -> str:
        with _stand(folder) as (uri, between):
            spool = filled(folder, uri)
            between.fault = fault
            left = send_waiting(spool) or ""
            see(left and all(part in left for part in parts), f"it said: {left}")
            see(len(spool.waiting()) == len(_STEPS), "records are gone")
            between.fault = Fault()
            again = send_waiting(spool)
            see(again is None, f"afterwards: {again}")
            all_once(uri)
            return f"{left} | afterwards each step once"

    return run


def answers_lost(folder: Path) -> str:
    """Every connection breaks after some answers: the server did what it was asked, and nobody heard of it."""
    with _stand(folder) as (uri, between):
        spool = filled(folder, uri)
        between.fault = Fault(cut_received=13_000)
        left, struck = send_waiting(spool), 0
        for _ in range(60):
            if left is None:
                break
            left = send_waiting(spool)
        struck = between.struck
        between.fault = Fault()
        see(left is None, f"not sent: {left}")
        see(struck > 2, f"only {struck} answers were lost")
        all_once(uri)
        return f"{struck} answers lost; each step once"


def slow(folder: Path) -> str:
    """Every answer takes half a second, and a step may spend three: it stops in time, later steps go on."""
    with _stand(folder) as (uri, between):
        spool = filled(folder, uri)
        between.fault = Fault(delay=0.5)
        began = time.monotonic()
        left = send_waiting(spool, seconds=3) or ""
        took = time.monotonic() - began
        see("the server is slow" in left and took < 12, f"after {took:.0f} s: {left}")
        between.fault = Fault()
        see(send_waiting(spool) is None, "afterwards not all was taken")
        all_once(uri)
        return f"stopped after {took:.1f} s: {left} | afterwards each step once"


def run_with_server(up: Callable[[int], bool]) -> Callable[[Path], str]:
    """Four steps with their sender, and a server that is up or down at the n-th one; then `ama sync`."""

    def run(folder: Path) -> str:
        port = free_port()
        uri = f"http://127.0.0.1:{port}"
        run_folder = folder / "run"
        run_folder.mkdir()
        experiment = parse_experiment(tiny.experiment(), "the case")
        with environment(**dict.fromkeys((RUN_ID, FOLDER, FOLLOWED)), **{URI: uri}):
            sender = Sender(experiment, run_folder)
            with ExitStack() as stack:
                serving = False
                sender.start(folder / "mlflow.log")
                for number, title in enumerate(_STEPS):
                    if up(number) and not serving:
                        stack.enter_context(server(folder, port, str(folder / "artifacts")))
                        serving = True
                    if not up(number) and serving:
                        stack.close()
                        serving = False
                    sender.spool.add(record(title))
                    _wait_until_sent(sender.spool, up(number))
                began = time.monotonic()
                sender.close("FINISHED")
                message = sender.wait()
                took = time.monotonic() - began
            see(message and "ama sync" in message, f"it said: {message}")
            see(took < 30, f"the run's end waited {took:.0f} s")
            with server(folder, port, str(folder / "artifacts")):
                done = ama("sync", run_folder)
                see(done.returncode == 0, done.stdout + done.stderr)
                all_once(uri)
            return f"the end waited {took:.0f} s (at most {PATIENCE}): {message} | {done.stdout.strip()}"

    return run


def _wait_until_sent(spool: Spool, up: bool) -> None:
    deadline = time.monotonic() + 60
    while up and spool.waiting():
        if time.monotonic() > deadline:
            raise UnexpectedError("the sender does not send although the server is up")
        time.sleep(0.1)


def step_alone(folder: Path) -> str:
    """A step on a cluster, which sends its own record: nobody listens."""
    uri = f"http://127.0.0.1:{free_port()}"
    with environment(**{FOLDER: str(folder / "spool"), URI: uri}, **dict.fromkeys((FOLLOWED, RUN_ID))):
        began = time.monotonic()
        with run_step("train_specialist", "a"):
            (folder / "model").write_text("made")
        took = time.monotonic() - began
    see(took < 15, f"it took {took:.0f} s")
    see((folder / "model").exists() and len(Spool(folder / "spool").waiting()) == 1, "something is lost")
    return f"the step ended well, {took:.1f} s later than without; its record waits"


def whole_run(folder: Path) -> str:
    """`ama run` with a server that is down all the time."""
    port = free_port()
    (folder / "config.yaml").write_text(json.dumps(tiny.experiment()))
    uri = f"http://127.0.0.1:{port}"
    done = ama("run", "--config", folder / "config.yaml", "--output", folder / "run", **{URI: uri})
    see(done.returncode == 0, f"exit {done.returncode}: {done.stdout}{done.stderr}")
    see("ama sync" in done.stdout and (folder / "run" / "leaderboard.json").exists(), done.stdout)
    with server(folder, port, str(folder / "artifacts")):
        sent = ama("sync", folder / "run")
        see(sent.returncode == 0, sent.stdout + sent.stderr)
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        runs = client.search_runs([client.get_experiment_by_name("automixalign").experiment_id])
        names = [found.info.run_name for found in runs]
        see(len(names) == len(set(names)) > 5, f"the store has {sorted(names)}")
    return f"exit 0 with a leaderboard; {sent.stdout.strip()}, {len(names)} runs"


def _local_store(folder: Path) -> tuple[Spool, str]:
    """A spool whose store, a SQLite file in the run folder, has a record already."""
    uri = sqlite_store(folder / "mlflow.db")
    spool = filled(folder, uri)
    with environment(**dict.fromkeys((URI, RUN_ID, FOLDER, FOLLOWED))):
        spool.aim(Target(uri=uri, run_name="run", artifacts=(folder / "artifacts").as_uri()))
        _, *rest = spool.waiting()
        kept = {file: file.read_bytes() for file in rest}
        for file in rest:
            file.unlink()
        see(send_waiting(spool) is None, "the store does not take anything")
        for file, data in kept.items():
            file.write_bytes(data)
    return spool, uri


def locked(folder: Path) -> str:
    """Another process holds the SQLite store."""
    spool, uri = _local_store(folder)
    with sqlite3.connect(folder / "mlflow.db") as holder:
        holder.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        left = send_waiting(spool) or ""
        took = time.monotonic() - began
    holder.close()
    see("locked" in left and took < 60, f"after {took:.0f} s: {left}")
    see(send_waiting(spool) is None, "afterwards not all was taken")
    all_once(uri)
    return f"{left[:120]} (after {took:.0f} s) | afterwards each step once"


def damaged(folder: Path) -> str:
    """The SQLite store is no database; then somebody removes it."""
    uri = f"sqlite:///{folder}/mlflow.db"
    spool = filled(folder, uri)
    command = [
        sys.executable,
        "-m",
        "automixalign.steps.tracking",
        str(spool.folder),
    ]  # MLflow keeps a store open
    (folder / "mlflow.db").write_bytes(os.urandom(8192))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    left = done.stderr.strip().rpartition("\n")[2]
    see(done.returncode == 1 and "file is not a database" in left, done.stderr)
    see(len(spool.waiting()) == len(_STEPS), "records are gone")
    (folder / "mlflow.db").unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    see(done.returncode == 0, done.stderr)
    all_once(uri)
    return f"{left[:120]} | in a new store each step once"


def registry_at_start(folder: Path) -> str:
    """A registered model is wanted, and nobody listens: refused before anything long."""
    experiment = parse_experiment({**tiny.experiment(), "registry": {"name": "assistant"}}, "the case")
    with environment(**{URI: f"http://127.0.0.1:{free_port()}"}):
        began = time.monotonic()
        seen = refused(UnreachableError, lambda: plan_experiment(experiment), "the model registry", _ADVICE)
    return f"{seen[:200]} ... {_ADVICE} (after {time.monotonic() - began:.1f} s)"


def registry_at_the_end(fault: Fault | None) -> Callable[[Path], str]:
    """The `register` step with a server that is down (None) or faulty."""

    def run(folder: Path) -> str:
        world = tiny.world()
        registry = RegistrySpec(name="assistant")
        experiment = parse_experiment(tiny.experiment() | {"registry": registry.model_dump()}, "the case")
        row = {"excess": 0.1, "accuracy": 0.9}
        board = [{"model": "uniform", "family": "generalist", "worst": row, "average": row}]
        files.write_json(folder / "board.json", board)
        settings = RegistrySettings(seed=0, registry=registry, experiment=experiment)
        candidates = {"uniform": world.base_model}

        def step() -> None:
            places = (world.data, world.base_model, folder / "registration.json")
            with run_step("register"):
                register(settings, folder / "board.json", candidates, *places)

        with proxy(free_port()) as between:
            if fault is not None:
                between.fault = fault
            uri = between.url
            told: dict[str, Any] = {URI: uri, FOLDER: str(folder / "spool"), FOLLOWED: "1", RUN_ID: None}
            with environment(**_HASTE, **told):
                seen = refused(UnreachableError, step, "uniform cannot be registered as assistant", _ADVICE)
        see(not (folder / "registration.json").exists(), "it says that it was registered")
        return seen

    return run


CASES = [
    Case(
        "mlflow_outages",
        "down all the time",
        "no step fails; `ama sync` sends each once",
        run_with_server(lambda _: False),
    ),
    Case(
        "mlflow_outages",
        "killed in the middle",
        "no step fails; `ama sync` sends each once",
        run_with_server(lambda n: n < 2),
    ),
    Case(
        "mlflow_outages",
        "killed at the end",
        "no step fails; `ama sync` sends each once",
        run_with_server(lambda n: n < 3),
    ),
    Case("mlflow_outages", "`ama run`, server down", "exit 0, leaderboard; `ama sync` sends all", whole_run),
    Case("mlflow_outages", "a step by itself, server down", "the step ends well, soon", step_alone),
    Case("mlflow_outages", "slow", "a bounded wait; sent later", slow),
    Case("mlflow_outages", "silent", "told; sent later", not_taken(Fault(stall_received=0), "timed out")),
    Case("mlflow_outages", "answers 500", "told; sent later", not_taken(Fault(answer=_BROKEN), "500")),
    Case(
        "mlflow_outages", "answers with a web page", "told; sent later", not_taken(Fault(answer=_PAGE), "JSON")
    ),
    Case("mlflow_outages", "answers are lost", "each step once", answers_lost),
    Case("mlflow_outages", "the SQLite store is locked", "told; sent later", locked),
    Case("mlflow_outages", "the SQLite store is damaged", "told; sent later", damaged),
    Case("mlflow_outages", "a registry is wanted, down at start", "refused at once, advice", registry_at_start),
    Case("mlflow_outages", "`register`, server down", "UnreachableError, advice", registry_at_the_end(None)),
    Case(
        "mlflow_outages",
        "`register`, answers 500",
        "UnreachableError, advice",
        registry_at_the_end(Fault(answer=_BROKEN)),
    ),
]
