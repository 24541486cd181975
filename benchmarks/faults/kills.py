"""SIGKILL at seeded random moments of a whole run, and the same command again, until the run has ended.

A run is killed five times: at a random moment of a random stage, a training's steps among them, and in the
middle of a checkpoint, a merge and an upload. The victim is the step, kfp's runner, `ama` itself or all of them
at once. What the run ends with is held against an undisturbed run: leaderboard, weights, logs of the task
weights, what was published and registered.
"""

import atexit
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import psutil
import yaml

from automixalign.report import run_folder
from automixalign.steps.events import EVENTS_FILE
from automixalign.storage import files
from benchmarks.faults.case import Case, UnexpectedError
from benchmarks.servers.seaweed import Seaweed, seaweed

RUNS, KILLS = 10, 5
STAGES = (
    *(("prepare_base_model", ""), ("prepare_data", ""), ("reference_logps", "")),
    *(("train_specialist", "arithmetic"), ("train_specialist", "format")),
    *(("specialist_losses", "format"), ("train_generalist", "uniform"), ("train_generalist", "ama-s")),
    *(("merge_specialists", "ties"), ("evaluate", "ties"), ("compare", ""), ("register", ""), ("publish", "")),
)
"""The stages, in an order in which they can follow each other."""
WRITES = {"train": "checkpoint", "merge": "merge", "publish": "upload"}
"""What the stages whose names begin so write in several moves."""
VICTIMS = ("step", "runner", "ama", "all")
_KEPT = ExitStack()
atexit.register(_KEPT.close)
_SHARE_OF_WRITES = 0.5
_LIMIT = 300.0
_POLL = 0.002

EXPERIMENT: dict[str, Any] = {
    "name": "kills",
    "seed": 3,
    "base_model": {"source": "tiny", "tiny": {"hidden_size": 32, "layers": 1, "heads": 2, "steps": 40}},
    "tasks": [
        {"name": "arithmetic", "source": "synthetic:arithmetic", "limit": 60, "verifier": "exact"},
        {"name": "format", "source": "synthetic:format", "limit": 60},
    ],
    "max_length": 64,
    "training": {"batch_size": 4, "learning_rate": 0.005, "checkpoint_every": 3},
    "budget": {"specialist": {"steps": 25}, "generalist": {"steps": 40}},
    "methods": ["uniform", {"method": "ama-s", "eta": 0.5}],
    "merges": ["ties"],
    "evaluation": {"max_new_tokens": 4},
    "registry": {"name": "kills"},
}


class Moment(NamedTuple):
    """When to kill, and whom."""

    stage: str
    name: str
    seconds: float
    """After the stage has begun; or, with `write`, not used."""
    write: str | None
    """In the middle of writing this, if it is not None."""
    victim: str

    def __str__(self) -> str:
        where = f"mid-{self.write}" if self.write else f"+{self.seconds:.2f} s"
        return f"{'/'.join(filter(None, (self.stage, self.name)))} {where} ({self.victim})"


class Place(NamedTuple):
    """Where a run reads and writes."""

    folder: Path
    config: Path
    bucket: str
    environment: dict[str, str]

    @classmethod
    def make(cls, above: Path, server: Seaweed, bucket: str) -> "Place":
        """A configuration with an output of its own; nothing is shared with other runs."""
        server.client.create_bucket(Bucket=bucket)
        config = above / f"{bucket}.yaml"
        config.write_text(yaml.safe_dump(EXPERIMENT | {"output": f"s3://{bucket}/run"}), encoding="utf-8")
        environment = {**os.environ, **server.environment, "AMA_CACHE": str(above / f"cache-{bucket}")}
        return cls(above / bucket, config, bucket, environment)

    def start(self, *options: str) -> "subprocess.Popen[bytes]":
        """`ama run` into the folder; what it prints is appended to a file."""
        command = [sys.executable, "-c", "from pipelines.cli import main; main()", "run"]
        command += ["--config", str(self.config), "--output", str(self.folder), *options]
        with self.folder.with_suffix(".log").open("ab") as out:
            return subprocess.Popen(command, env=self.environment, stdout=out, stderr=subprocess.STDOUT)

    def events(self, after: int) -> list[dict[str, Any]]:
        """The steps' events behind a number of bytes."""
        path = self.folder / run_folder.LOGS / EVENTS_FILE
        if not path.exists():
            return []
        with path.open("rb") as stream:
            stream.seek(after)
            return [json.loads(line) for line in stream.read().rpartition(b"\n")[0].splitlines()]


@cache
def undisturbed() -> tuple[Place, Seaweed, dict[str, Any]]:
    """A run that nobody disturbed, the server that all runs use, and what the run ended with."""
    above = Path(tempfile.mkdtemp(prefix="ama-kills-"))
    (above / "s3").mkdir()
    _KEPT.callback(shutil.rmtree, above)
    server = _KEPT.enter_context(seaweed(above / "s3"))
    place = Place.make(above, server, "undisturbed")
    if place.start().wait(_LIMIT) != 0:
        raise UnexpectedError(f"the undisturbed run failed: {_tail(place)}")
    return place, server, outcome(place, server)


def outcome(place: Place, server: Seaweed) -> dict[str, Any]:
    """What a run ended with, without times and places."""
    models = {folder.name: files.digest(folder) for folder in (place.folder / "models").iterdir()}
    logs = {log.name: files.digest(log) for log in (place.folder / "trajectories").iterdir()}
    manifest = json.loads(server.client.get_object(Bucket=place.bucket, Key="run/manifest.json")["Body"].read())
    published = {
        name: entry["sha256"] for name, entry in manifest["files"].items() if not name.startswith("report/")
    }
    store = mlflow.MlflowClient(f"sqlite:///{place.folder / 'mlflow.db'}")
    versions = store.search_model_versions("name = 'kills'")
    (run,) = [
        run
        for run in store.search_runs([e.experiment_id for e in store.search_experiments()])
        if run.info.run_name == place.folder.name
    ]
    return {
        "leaderboard": (place.folder / "leaderboard.json").read_text(encoding="utf-8"),
        "models": models,
        "task weights": logs,
        "published": published,
        "versions": [version.version for version in versions],
        "tracked": run.info.status,
    }


def kill_and_go_on(number: int, above: Path) -> str:
    """Runs that are killed at random moments, until there were `KILLS` kills."""
    _, server, _ = undisturbed()
    random_ = random.Random(f"kills:{number}")  # the moments; what falls into them is the machine's
    done: list[str] = []
    for part in itertools.count():
        place = Place.make(above, server, f"run-{number}-{part}-{os.getpid()}")
        while len(done) < KILLS and (moment := next_moment(random_, place)):
            if killed := strike(place, server, place.start(), moment):
                done.append(killed)
        _finish(place, server, done)
        if len(done) == KILLS:
            break
    return f"{len(done)} kills, the same in all: {', '.join(done)}"


def kill_in_the_middle(stage: tuple[str, str], write: str, victim: str, above: Path) -> str:
    """One kill, while something that is written in several moves is half written."""
    _, server, _ = undisturbed()
    place = Place.make(above, server, f"{write}-{victim}-{os.getpid()}")
    killed = strike(place, server, place.start(), Moment(*stage, 0.0, write, victim))
    if not killed:
        raise UnexpectedError(f"the {write} was over before it was seen")
    _finish(place, server, [killed])
    return f"{killed}; the same in all"


def _finish(place: Place, server: Seaweed, kills: list[str]) -> None:
    """Start a run until it has ended well, and hold what it left against the undisturbed run."""
    after, expected = f"after {', '.join(kills)}", undisturbed()[2]
    for _ in range(2):  # the victim of the last kill may have been a step, which ends a run with an error
        if (status := place.start().wait(_LIMIT)) == 0:
            break
    if status:
        raise UnexpectedError(f"{after}: exit status {status}: {_tail(place)}")
    found = outcome(place, server)
    if different := [what for what, value in expected.items() if found[what] != value]:
        raise UnexpectedError(f"{after}: another {', '.join(different)}")
    if left := _left_behind(place):
        raise UnexpectedError(f"{after}: left behind: {', '.join(left)}")


def kill_and_try_again(above: Path) -> str:
    """A training that is killed, in a run that tries it again by itself."""
    _, server, _ = undisturbed()
    place = Place.make(above, server, f"retried-{os.getpid()}")
    moment = Moment("train_generalist", "ama-s", 0.0, "checkpoint", "step")
    process = place.start("--retries", "1")
    killed = strike(place, server, process, moment)
    if (status := process.returncode) or not killed:
        raise UnexpectedError(f"{killed or 'not killed'}; exit status {status}: {_tail(place)}")
    again = [e["event"] for e in place.events(0) if (e["stage"], e["name"]) == ("train_generalist", "ama-s")]
    if again.count("started") != 2:
        raise UnexpectedError(f"it was started {again.count('started')} times")
    _finish(place, server, [killed])
    return f"{killed}; tried again within the run, the same in all"


def start_twice(above: Path) -> str:
    """A second run on the folder of one that works, and a third after that one was killed."""
    _, server, _ = undisturbed()
    place = Place.make(above, server, f"twice-{os.getpid()}")
    first = place.start()
    while not place.events(0):
        time.sleep(_POLL)
    if (status := place.start().wait(_LIMIT)) != 2 or f"process {first.pid} on" not in _said(place):
        raise UnexpectedError(f"the second ended with {status}: {_said(place)}")
    _kill(first, 0, "ama")
    if (status := place.start().wait(_LIMIT)) != 0:
        raise UnexpectedError(f"the third ended with {status}: {_tail(place)}")
    return "the second refused by the first one's process id; killed, its lock held up nobody"


def _said(place: Place) -> str:
    return place.folder.with_suffix(".log").read_text(encoding="utf-8", errors="replace")


def next_moment(random_: random.Random, place: Place) -> Moment | None:
    """A moment of a stage that no attempt has finished yet; None when all have been."""
    done = {(event["stage"], event["name"]) for event in place.events(0) if event["event"] == "finished"}
    left = [stage for stage in STAGES if stage not in done]
    if not left:
        return None
    stage = random_.choice(left[: len(left) // 2 + 1])  # the nearer half: what is passed over is not killed
    written = WRITES.get(stage[0].partition("_")[0])
    write = written if written and random_.random() < _SHARE_OF_WRITES else None
    return Moment(*stage, random_.random() * typical_seconds()[stage], write, random_.choice(VICTIMS))


@cache
def typical_seconds() -> dict[tuple[str, str], float]:
    """How long each stage took undisturbed."""
    events = undisturbed()[0].events(0)
    return {(e["stage"], e["name"]): e["seconds"] for e in events if e["event"] == "finished"}


def strike(place: Place, server: Seaweed, process: "subprocess.Popen[bytes]", moment: Moment) -> str | None:
    """Wait for the moment and kill; None where the run ended, or the stage was over, before."""
    log = place.folder / run_folder.LOGS / EVENTS_FILE
    before = log.stat().st_size if log.exists() else 0
    deadline = time.monotonic() + _LIMIT
    began: dict[str, Any] | None = None
    while began is None:
        if process.poll() is not None:
            return None
        if time.monotonic() > deadline:
            raise UnexpectedError(f"{moment} never came: {_tail(place)}")
        for event in place.events(before):
            if (event["stage"], event["name"]) == (moment.stage, moment.name):
                if event["event"] == "cached":
                    process.wait(_LIMIT)
                    return None
                if event["event"] == "started":
                    began = event
        time.sleep(_POLL)
    if moment.write is None:
        time.sleep(moment.seconds)
    else:
        seen = _BEING_WRITTEN[moment.write]
        while not seen(place, server):
            over = any(
                (event["stage"], event["name"], event["event"]) == (moment.stage, moment.name, "finished")
                for event in place.events(before)
            )
            if over or process.poll() is not None:
                process.wait(_LIMIT)
                return None
    _kill(process, began["process"], moment.victim)
    return str(moment)


def _kill(process: "subprocess.Popen[bytes]", step: int, victim: str) -> None:
    runner = [child for child in psutil.Process(process.pid).children() if "pipelines" in child.cmdline()]
    targets = {
        "step": [step],
        "runner": [child.pid for child in runner],
        "ama": [process.pid],
        "all": [
            process.pid,
            *(child.pid for each in runner for child in (each, *each.children(recursive=True))),
        ],
    }
    for pid in targets[victim]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it has just ended by itself
            continue
    process.wait(_LIMIT)


def _checkpoint_is_written(place: Place, _: Seaweed) -> bool:
    found = (place.folder / run_folder.WORK / "checkpoints").glob("*/checkpoint-*")
    return any(not (checkpoint / "seal.json").exists() for checkpoint in found)


def _merge_is_written(place: Place, _: Seaweed) -> bool:
    return any((place.folder / run_folder.WORK).glob("attempt-*/*/*/merge-specialists/.*"))


def _upload_is_written(place: Place, server: Seaweed) -> bool:
    found = server.client.list_objects_v2(Bucket=place.bucket, Prefix="run/unfinished.json")
    return bool(found.get("KeyCount"))


_BEING_WRITTEN: dict[str, Callable[[Place, Seaweed], bool]] = {
    "checkpoint": _checkpoint_is_written,
    "merge": _merge_is_written,
    "upload": _upload_is_written,
}


def _left_behind(place: Place) -> list[str]:
    """Temporary files and processes that a run should have taken with it."""
    hidden = [
        str(path.relative_to(place.folder))
        for path in place.folder.rglob(".*")
        if path.name not in (run_folder.WORK, ".lock")
    ]
    attempts = [path.name for path in (place.folder / run_folder.WORK).glob("attempt-*")][1:]
    checkpoints = [path.name for path in (place.folder / run_folder.WORK).glob("checkpoints/*")]
    processes = [
        " ".join(process.info["cmdline"])
        for process in psutil.process_iter(["cmdline"])
        if any(str(place.folder) in word for word in process.info["cmdline"] or [])
    ]
    return [*hidden, *attempts, *checkpoints, *processes]


def _tail(place: Place) -> str:
    """What the last attempt said of its failure."""
    said = _said(place)
    return (said.rpartition("\n✗")[2] or said)[:3000]


CASES = [
    Case("kills", "two runs on one folder", "the second refused, a dead one's lock not", start_twice),
    Case("kills", "a killed training and --retries 1", "the same bits in one run", kill_and_try_again),
    *(
        Case(
            "kills",
            f"{KILLS} kills, seed {number}",
            "goes on to the same bits",
            partial(kill_and_go_on, number),
        )
        for number in range(RUNS)
    ),
    *(
        Case(
            "kills",
            f"in the middle of the {write}: {victim}",
            "the same bits",
            partial(kill_in_the_middle, stage, write, victim),
        )
        for stage, write in ((("merge_specialists", "ties"), "merge"), (("publish", ""), "upload"))
        for victim in ("step", "all")
    ),
]
