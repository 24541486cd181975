"""SIGKILL at seeded random moments of a whole run, and the same command again, until the run has ended.

A run is killed five times: at a random moment of a random stage, or in the middle of a checkpoint, a merge
or an upload. The victim is the stage's process, kfp's runner, `ama` itself or all of them. The results are
compared with those of an undisturbed run: leaderboard, weights, task weights, publication, registry.
"""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import psutil
import pytest
import yaml

from automixalign.report import run_folder
from automixalign.steps.events import EVENTS_FILE
from automixalign.storage import files
from benchmarks import tiny
from benchmarks.servers.seaweed import Seaweed, seaweed

pytestmark = pytest.mark.slow

KILLS = 5
STAGES = (
    *(("prepare_base_model", ""), ("prepare_data", ""), ("reference_logps", "")),
    *(("train_specialist", "arithmetic"), ("train_specialist", "format")),
    *(("specialist_losses", "format"), ("train_generalist", "uniform"), ("train_generalist", "ama-s")),
    *(("merge_specialists", "ties"), ("evaluate", "ties"), ("compare", ""), ("register", ""), ("publish", "")),
)
"""The stages, in an order in which they can follow each other."""
WRITES = {"train": "checkpoint", "merge": "merge", "publish": "upload"}
"""First word of a stage -> what it writes in several moves."""
VICTIMS = ("step", "runner", "ama", "all")
SHARE_OF_WRITES = 0.5
LIMIT_SECONDS = 300.0
POLL_SECONDS = 0.002

EXPERIMENT: dict[str, Any] = {
    **tiny.experiment(),
    "seed": 3,
    "base_model": {"source": "tiny", "tiny": {"hidden_size": 32, "layers": 1, "heads": 2, "steps": 40}},
    "training": {"batch_size": 4, "learning_rate": 0.005, "checkpoint_every": 3},
    "budget": {"specialist": {"steps": 25}, "generalist": {"steps": 40}},
    "methods": ["uniform", {"method": "ama-s", "eta": 0.5}],
    "merges": ["ties"],
    "evaluation": {"max_new_tokens": 4},
    "registry": {"name": "kills"},
}


class Moment(NamedTuple):
    """When to kill, and which process."""

    stage: tuple[str, str]
    victim: str
    seconds: float = 0.0
    """After the stage has begun; not used with `write`."""
    write: str | None = None
    """In the middle of this write."""


class Run:
    """A run with a configuration, a bucket and a cache of its own."""

    def __init__(self, parent: Path, server: Seaweed, name: str) -> None:
        server.client.create_bucket(Bucket=name)
        self.folder, self.bucket, self.client = parent / name, name, server.client
        self.working = parent / f"working-{name}"
        self.working.mkdir()
        self.config, self.log = parent / f"{name}.yaml", parent / f"{name}.log"
        self.config.write_text(yaml.safe_dump(EXPERIMENT | {"output": f"s3://{name}/run"}), encoding="utf-8")
        self.environment = {**os.environ, **server.environment, "AMA_CACHE": str(parent / f"cache-{name}")}

    def start(self, *options: str) -> "subprocess.Popen[bytes]":
        """Start `ama run`; its output is appended to the log."""
        command = [sys.executable, "-c", "from pipelines.cli import main; main()", "run"]
        command += ["--config", str(self.config), "--output", str(self.folder), *options]
        with self.log.open("ab") as out:
            return subprocess.Popen(
                command, env=self.environment, stdout=out, stderr=subprocess.STDOUT, cwd=self.working
            )

    def finish(self) -> int:
        """Start it and wait until it has ended; return its status."""
        return self.start().wait(LIMIT_SECONDS)

    def output(self) -> str:
        """The output of all starts."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def events(self, after: int = 0) -> list[dict[str, Any]]:
        """The stages' events after a number of bytes."""
        path = self.folder / run_folder.LOGS / EVENTS_FILE
        if not path.exists():
            return []
        with path.open("rb") as stream:
            stream.seek(after)
            return [json.loads(line) for line in stream.read().rpartition(b"\n")[0].splitlines()]

    def events_of(self, stage: tuple[str, str], after: int = 0) -> dict[str, dict[str, Any]]:
        """The last event of each kind of a stage."""
        return {e["event"]: e for e in self.events(after) if (e["stage"], e["name"]) == stage}

    def results(self) -> dict[str, Any]:
        """The results, without times and paths."""
        manifest = json.loads(
            self.client.get_object(Bucket=self.bucket, Key="run/manifest.json")["Body"].read()
        )
        store = mlflow.MlflowClient(f"sqlite:///{self.working / 'mlflow.db'}")
        experiments = [experiment.experiment_id for experiment in store.search_experiments()]
        (tracked,) = (r for r in store.search_runs(experiments) if r.info.run_name == self.folder.name)
        return {
            "leaderboard": (self.folder / "leaderboard.json").read_text(encoding="utf-8"),
            "models": {folder.name: files.digest(folder) for folder in (self.folder / "models").iterdir()},
            "task weights": {log.name: files.digest(log) for log in (self.folder / "trajectories").iterdir()},
            "published": {
                name: entry["sha256"]
                for name, entry in manifest["files"].items()
                if not name.startswith("report/")
            },
            "versions": [version.version for version in store.search_model_versions("name = 'kills'")],
            "tracked": tracked.info.status,
        }

    def is_writing(self, write: str) -> bool:
        """Whether a checkpoint, a merge or an upload is half written."""
        work = self.folder / run_folder.WORK
        if write == "checkpoint":
            return any(not (path / "seal.json").exists() for path in work.glob("checkpoints/*/checkpoint-*"))
        if write == "merge":
            return any(work.glob("attempt-*/*/*/merge-specialists/.*"))
        listing = self.client.list_objects_v2(Bucket=self.bucket, Prefix="run/unfinished.json")
        return bool(listing.get("KeyCount"))

    def check(self, expected: dict[str, Any]) -> None:
        """The results are those of an undisturbed run; no temporary file and no process is left."""
        assert self.results() == expected
        work = self.folder / run_folder.WORK
        assert {path.name for path in self.folder.rglob(".*")} <= {run_folder.WORK, ".lock"}
        assert len(list(work.glob("attempt-*"))) <= 1
        assert not list(work.glob("checkpoints/*"))
        commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        assert not [command for command in commands if any(str(self.folder) in word for word in command)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(server: Seaweed, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("undisturbed"), server, "undisturbed")
    assert run.finish() == 0, run.output()
    return run


@pytest.fixture
def new_run(server: Seaweed, tmp_path: Path) -> Callable[[], Run]:
    """Makes runs that share nothing but the server."""
    numbers = itertools.count()
    return lambda: Run(tmp_path, server, f"{tmp_path.name.replace('_', '-')}-{next(numbers)}")


def kill(process: "subprocess.Popen[bytes]", step: int, victim: str) -> None:
    """Kill a stage's process, the runner, `ama` or all, and wait for `ama` to end."""
    runners = [
        child for child in psutil.Process(process.pid).children() if "pipelines.local" in child.cmdline()
    ]
    targets = {"step": [step], "runner": [runner.pid for runner in runners], "ama": [process.pid]}
    below = [child.pid for runner in runners for child in (runner, *runner.children(recursive=True))]
    for pid in targets.get(victim, [process.pid, *below]):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it has just ended by itself
            continue
    process.wait(LIMIT_SECONDS)


def strike(run: Run, process: "subprocess.Popen[bytes]", moment: Moment) -> bool:
    """Wait for the moment and kill; False where the run or the stage ended before."""
    log = run.folder / run_folder.LOGS / EVENTS_FILE
    before = log.stat().st_size if log.exists() else 0
    deadline = time.monotonic() + LIMIT_SECONDS
    while "started" not in (events := run.events_of(moment.stage, before)):
        if process.poll() is not None:
            return False
        if "cached" in events:
            process.wait(LIMIT_SECONDS)
            return False
        assert time.monotonic() < deadline, f"{moment} never came: {run.output()}"
        time.sleep(POLL_SECONDS)
    if moment.write is None:
        time.sleep(moment.seconds)
    else:
        while not run.is_writing(moment.write):
            if "finished" in run.events_of(moment.stage, before) or process.poll() is not None:
                process.wait(LIMIT_SECONDS)
                return False
    kill(process, events["started"]["process"], moment.victim)
    return True


def next_moment(generator: random.Random, run: Run, undisturbed: Run) -> Moment | None:
    """A moment of a stage that no attempt has finished; None when all have been."""
    finished = {(event["stage"], event["name"]) for event in run.events() if event["event"] == "finished"}
    stages = [stage for stage in STAGES if stage not in finished]
    if not stages:
        return None
    stage = generator.choice(stages[: len(stages) // 2 + 1])  # the nearer half, so that most stages are hit
    write = WRITES.get(stage[0].partition("_")[0])
    if write and generator.random() >= SHARE_OF_WRITES:
        write = None
    seconds = generator.random() * undisturbed.events_of(stage)["finished"]["seconds"]
    return Moment(stage, generator.choice(VICTIMS), seconds, write)


def finish(run: Run, undisturbed: Run) -> None:
    """Start a run until it has ended well; its results are those of the undisturbed run."""
    # The victim of the last kill may have been a stage, which ends a run with an error.
    assert run.finish() == 0 or run.finish() == 0, run.output()
    run.check(undisturbed.results())


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 10))])
def test_five_kills_at_random_moments(new_run: Callable[[], Run], undisturbed: Run, seed: int) -> None:
    generator, kills = random.Random(f"kills:{seed}"), 0
    while kills < KILLS:
        run = new_run()
        while kills < KILLS and (moment := next_moment(generator, run, undisturbed)):
            kills += strike(run, run.start(), moment)
        finish(run, undisturbed)


@pytest.mark.parametrize("victim", [pytest.param("step", marks=pytest.mark.soak), "all"])
@pytest.mark.parametrize(
    ("stage", "write"), [(("merge_specialists", "ties"), "merge"), (("publish", ""), "upload")]
)
def test_a_kill_in_the_middle_of_a_write(
    new_run: Callable[[], Run], undisturbed: Run, stage: tuple[str, str], write: str, victim: str
) -> None:
    run = new_run()
    assert strike(run, run.start(), Moment(stage, victim, write=write)), f"the {write} was over too soon"
    finish(run, undisturbed)


def test_a_killed_training_is_retried_within_the_run(new_run: Callable[[], Run], undisturbed: Run) -> None:
    run, stage = new_run(), ("train_generalist", "ama-s")
    process = run.start("--retries", "1")
    assert strike(run, process, Moment(stage, "step", write="checkpoint"))
    assert process.returncode == 0, run.output()
    starts = [e for e in run.events() if (e["stage"], e["name"], e["event"]) == (*stage, "started")]
    assert len(starts) == 2
    run.check(undisturbed.results())


def test_two_runs_on_one_folder(new_run: Callable[[], Run]) -> None:
    """The second names the first one's process; the lock of a killed run holds up nobody."""
    run = new_run()
    first = run.start()
    while not run.events():
        time.sleep(POLL_SECONDS)
    assert run.finish() == 2
    assert f"process {first.pid} on" in run.output()
    kill(first, 0, "ama")
    assert run.finish() == 0, run.output()
