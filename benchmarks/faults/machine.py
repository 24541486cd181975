"""A machine with too little: a full disk at every step, and too little memory."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from automixalign.config.evaluation import EvaluationSettings, ScoringSettings
from automixalign.config.experiment import ComparisonSettings, Experiment, parse_experiment
from automixalign.config.models import BaseModelSettings
from automixalign.config.training import SpecialistLossesSettings, specialist_name
from automixalign.merging.merge import merge_specialists
from automixalign.models.prepare import prepare_base_model
from automixalign.report.compare import compare
from automixalign.scoring.evaluate import evaluate
from automixalign.scoring.scorer import write_reference_logps
from automixalign.steps.events import EVENTS_FILE, LOGS_VARIABLE
from automixalign.steps.step import run_step
from automixalign.steps.tracking.record import Record
from automixalign.steps.tracking.send import send_waiting
from automixalign.steps.tracking.spool import FOLDER, FOLLOWED, RUN_ID, URI, Spool, Target
from automixalign.storage import files
from automixalign.storage import publication as publish
from automixalign.system.errors import StorageError
from automixalign.training import checkpoints
from automixalign.training.launch import train
from automixalign.training.specialist_losses import write_specialist_losses
from automixalign.training.train import SpecialistTraining
from benchmarks import tiny
from benchmarks.faults._outcome import environment, refused, see
from benchmarks.faults.case import Case, UnexpectedError, ama

_BALLAST = "ballast"
_ROOMS = (0, 8 << 10, 24 << 10, 64 << 10, 200 << 10, 600 << 10)
"""Bytes that are left on a disk, so that it fills up at one moment or another."""
_FULL = ("cannot be written: no space left", "free some")
_UNTRACKED = dict.fromkeys((URI, RUN_ID, FOLDER, FOLLOWED, LOGS_VARIABLE, checkpoints.PLACE))


def may_mount() -> bool:
    """Whether a tmpfs can be mounted here: as root, and not in every container."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with small_disk(Path(scratch), 1):
                return True
        except UnexpectedError:
            return False


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of that size, below a folder."""
    place = folder / "disk"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "ama-fault"]
    done = _system("mount", *options, str(place))
    if done.returncode:
        raise UnexpectedError(f"no tmpfs can be mounted here (it takes root): {done.stderr.strip()}")
    try:
        yield place
    finally:
        _system("umount", "--lazy", str(place))


def _system(*command: str) -> "subprocess.CompletedProcess[str]":
    """One of the system's own programs, wherever it has them."""
    return subprocess.run(command, capture_output=True, text=True, check=False)


def fill(disk: Path, leave: int) -> None:
    """Leave so many bytes on a disk, to a page."""
    with contextlib.suppress(FileNotFoundError):
        (disk / _BALLAST).unlink()
    facts = os.statvfs(disk)
    with (disk / _BALLAST).open("wb") as out:
        os.posix_fallocate(out.fileno(), 0, max(facts.f_bavail * facts.f_frsize - leave, 1))


def training(output: Path, **options: Any) -> SpecialistTraining:
    """Of a specialist, in three steps with a checkpoint each."""
    return tiny.specialist_training(output, checkpoint_every=1, **options)


def _experiment() -> Experiment:
    tasks = [{"name": name, "source": f"synthetic:{name}", "limit": 30} for name in tiny.TASKS]
    return parse_experiment({**tiny.experiment(), "tasks": tasks}, "the case")


def _evaluate(output: Path, name: str = "uniform", family: str = "generalist") -> None:
    world = tiny.world()
    settings = EvaluationSettings.model_validate(
        {
            "seed": 0,
            "evaluation": {"batch_size": 16, "generate": False},
            "loss": _experiment().training.loss.model_dump(),
            "verifiers": {},
        }
    )
    places = (world.data, world.reference_logps, world.base_model, world.base_model, output / name)
    evaluate(settings, name, family, *places)


def _base_model(output: Path) -> None:
    spec = {"source": str(tiny.world().base_model)}
    settings = {"seed": 0, "base_model": spec, "synthetic_tasks": [], "fingerprint": ""}
    prepare_base_model(BaseModelSettings.model_validate(settings), output / "model")


def _references(output: Path) -> None:
    world = tiny.world()
    settings = ScoringSettings(seed=0, batch_size=16, precision="fp32")
    write_reference_logps(settings, world.data, world.base_model, output / "logps")


def _merge(output: Path) -> None:
    base = tiny.world().base_model
    merge_specialists(base, dict.fromkeys(tiny.TASKS, base), "linear", {}, output / "model", seed=0)


def _losses(output: Path) -> None:
    world = tiny.world()
    settings = SpecialistLossesSettings(
        seed=0, batch_size=16, precision="fp32", loss=_experiment().training.loss, warn_gap=9, fold=None
    )
    with tempfile.TemporaryDirectory() as scratch:
        _evaluate(Path(scratch), "specialist", "specialist")
        places = (
            world.data,
            world.reference_logps,
            world.base_model,
            world.base_model,
            Path(scratch) / "specialist",
        )
        write_specialist_losses(settings, "format", *places, output / "losses")


@cache
def _compared() -> tuple[list[Path], Path, dict[str, Any]]:
    """What is compared: evaluations, a training's log, and what the training returned."""
    folder = tiny.world().base_model.parent / "compared"
    tasks = [(specialist_name(task), "specialist") for task in tiny.TASKS]
    models = [("reference", "reference"), *tasks, ("uniform", "generalist")]
    for name, family in models:
        _evaluate(folder, name, family)
    cost = train(training(folder / "training"))
    log = folder / "training" / "trajectory.jsonl"
    first = {key: value["format"] for key, value in files.read_jsonl(log)[0].items() if key != "step"}
    measured = {**first, "excess": 0.1, "difference": 0.1, "clipped": 0.0}
    row = {key: dict.fromkeys(tiny.TASKS, value) for key, value in measured.items()}
    files.write_jsonl(log, [{"step": 1, **row}])
    return [folder / name for name, _ in models], log, cost


def _compare(output: Path) -> None:
    world = tiny.world()
    evaluations, log, cost = _compared()
    trained = [*map(specialist_name, tiny.TASKS), "uniform"]
    compare(
        ComparisonSettings(seed=0, experiment=_experiment()),
        evaluations,
        dict.fromkeys(trained, log),
        dict.fromkeys(trained, cost),
        world.data,
        world.losses,
        output / "leaderboard.json",
        output / "plots",
        output / "leaderboard.md",
        output / "report.html",
        output / "report.json",
    )


def _publish(output: Path) -> None:
    publish.publish({"models/a": tiny.world().base_model}, str(output / "published"))


STAGES: dict[str, Callable[[Path], object]] = {
    "prepare_base_model": _base_model,
    "prepare_data": lambda output: tiny.write_data(tiny.world().base_model, output / "data"),
    "reference_logps": _references,
    "train_specialist": lambda output: train(training(output)),
    "merge_specialists": _merge,
    "evaluate": _evaluate,
    "specialist_losses": _losses,
    "compare": _compare,
    "publish": _publish,
}
"""Every step that writes: given a folder, it writes its results there."""


def full_disk(stage: str) -> Callable[[Path], str]:
    """Results go to a disk that fills up at several moments."""

    def run(folder: Path) -> str:
        tiny.world()
        seen = []
        with small_disk(folder, 20) as disk, environment(**_UNTRACKED):
            for room in _ROOMS:
                fill(disk, room)
                try:
                    _step(stage, disk)
                except StorageError:
                    seen.append(refused(StorageError, lambda: _step(stage, disk), str(disk), *_FULL))
                    left = sorted(path.name for path in disk.iterdir() if path.name != _BALLAST)
                    # What is whole stays: `compare` writes several results.
                    see(not any(name.startswith(".") for name in left), f"left behind: {left}")
                    _remove(disk, left)
                else:
                    break
            see(seen, "the disk never filled up")
            (disk / _BALLAST).unlink()
            _remove(disk, sorted(path.name for path in disk.iterdir()))
            _step(stage, disk)
        return f"{len(seen)} times {seen[-1]} | with room: well"

    return run


def _remove(disk: Path, names: list[str]) -> None:
    for name in names:
        place = disk / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()


def _step(stage: str, output: Path) -> None:
    with run_step(stage):
        STAGES[stage](output)


def full_checkpoints(folder: Path) -> str:
    """Checkpoints go to a disk that fills up; the same training then goes on from what is whole."""
    seen = []
    with small_disk(folder, 20) as disk:
        with environment(**{**_UNTRACKED, checkpoints.PLACE: str(disk / "checkpoints")}):

            def step() -> None:
                with run_step("train_specialist", "format"):
                    train(training(folder / "made"))

            for room in _ROOMS:
                fill(disk, room)
                try:
                    step()
                except StorageError as error:
                    see(
                        "cannot be written: no space left" in str(error) and str(disk) in str(error), str(error)
                    )
                    see(not (folder / "made" / "model").exists(), "a model was left")
                    seen.append(str(error))
                else:
                    break
            see(seen, "the disk never filled up")
            (disk / _BALLAST).unlink()
            if not (folder / "made" / "model").exists():
                step()
        with environment(**_UNTRACKED):
            train(training(folder / "undisturbed"))
    same = files.digest(folder / "made" / "model") == files.digest(folder / "undisturbed" / "model")
    see(same, "the weights are others than those of an undisturbed training")
    return f"{len(seen)} times StorageError: {seen[-1]} | with room: it went on, same weights"


def full_temporary(folder: Path) -> str:
    """The folder for passing files is full."""
    kept = tempfile.tempdir
    with small_disk(folder, 1) as disk, environment(**_UNTRACKED):
        fill(disk, 0)
        tempfile.tempdir = str(disk)
        try:

            def step() -> None:
                with run_step("train_specialist", "format"):
                    train(training(folder / "made"))

            seen = refused(StorageError, step, str(disk), *_FULL)
            (disk / _BALLAST).unlink()
            step()
        finally:
            tempfile.tempdir = kept
    return f"{seen} | with room: well"


def full_logs(folder: Path) -> str:
    """The run folder's disk is full: neither events nor log nor record can be written."""
    with small_disk(folder, 1) as disk:
        (disk / "spool").mkdir()
        told = {**_UNTRACKED, LOGS_VARIABLE: str(disk), FOLDER: str(disk / "spool"), FOLLOWED: "1"}
        with environment(**told):
            fill(disk, 0)

            def step() -> None:
                with run_step("merge_specialists", "linear"):
                    print("x" * 10_000)

            seen = refused(StorageError, step, str(disk), *_FULL)
            (disk / _BALLAST).unlink()
            step()
            events = [json.loads(line) for line in (disk / EVENTS_FILE).read_text().splitlines() if line]
            see(events[-1]["event"] == "finished", f"the last event is {events[-1]}")
    return f"{seen} | with room: well"


def full_store(folder: Path) -> str:
    """MLflow's SQLite store lies on a full disk."""
    with small_disk(folder, 4) as disk, environment(**_UNTRACKED):
        uri = f"sqlite:///{disk}/mlflow.db"
        spool = Spool(folder / "spool")
        spool.aim(Target(uri=uri, run_name="run", artifacts=(folder / "artifacts").as_uri()))
        spool.add(Record(stage="first", ended=1.0))
        see(send_waiting(spool) is None, "the store takes nothing")
        record = Record(stage="second", ended=1.0)
        for step in range(5000):
            record.add_metrics({"loss": 0.5}, step)
        spool.add(record)
        fill(disk, 0)
        left = send_waiting(spool) or ""
        see("is full" in left and len(spool.waiting()) == 1, f"it said: {left}")
        (disk / _BALLAST).unlink()
        see(send_waiting(spool) is None, "with room the store takes nothing")
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        runs = client.search_runs([client.get_experiment_by_name("automixalign").experiment_id])
        names = sorted(run.info.run_name for run in runs)
        see(names == ["first", "run", "second"], f"the store has {names}")
    return f"{left[:100]} | with room: each step once"


def full_run(folder: Path) -> str:
    """`ama run` into a folder on a disk that fills up in mid-run; the same command again, once it is larger."""
    (folder / "config.yaml").write_text(json.dumps(tiny.experiment()))
    with small_disk(folder, 2) as disk:
        command = ("run", "--config", folder / "config.yaml", "--output", disk / "run")
        told = {"AMA_CACHE": str(folder / "cache")}
        done = ama(*command, **told)
        see(done.returncode in (1, 2), f"exit {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        reason = next((line for line in done.stderr.splitlines() if "full" in line or "no space" in line), "")
        see(reason, f"it does not say that the disk is full: {done.stderr[-3000:]}")
        see(not (disk / "run" / "leaderboard.json").exists(), "there is a leaderboard")
        see(_system("mount", "-o", "remount,size=200m", str(disk)).returncode == 0, "no larger disk")
        again = ama(*command, **told)
        see(
            again.returncode == 0,
            f"again: exit {again.returncode}: {again.stdout[-2000:]}{again.stderr[-2000:]}",
        )
        see((disk / "run" / "leaderboard.json").exists(), "there is no leaderboard")
    return f"exit {done.returncode}: {reason.strip()} | same command, larger disk: exit 0"


_IN_LITTLE_MEMORY = """
import json, resource, sys
from pathlib import Path
from benchmarks.faults import machine
from automixalign.steps.step import run_step
folder, stage = Path(sys.argv[1]), sys.argv[2]
seen = []
machine.large_stage(stage, folder / "first", small=True)  # everything is imported, every pool is there
for number in (0, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192):
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (number << 20), -1))
    try:
        with run_step(stage):
            machine.large_stage(stage, folder / str(number))
        outcome = ["", ""]
    except Exception as error:
        outcome = [type(error).__name__, str(error)]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    left = [path.name for path in folder.rglob(".*")]
    seen.append([*outcome, left])
    if not outcome[0]:
        break
print(json.dumps(seen))
"""


def large_stage(stage: str, output: Path, small: bool = False) -> None:
    """A step that takes a good deal of memory, or, `small`, the same with little."""

    if stage == "train_specialist":
        job = training(output, **({} if small else {"batch_size": 512}))
        budget = job.settings.budget.model_copy(update={"steps": 1})
        train(job.model_copy(update={"settings": job.settings.model_copy(update={"budget": budget})}))
    else:
        world = tiny.world()
        settings = ScoringSettings(seed=0, batch_size=4 if small else 4096, precision="fp32")
        write_reference_logps(settings, world.data, world.base_model, output / "logps")


def little_memory(stage: str, *lower: str) -> Callable[[Path], str]:
    """Address space is limited (as by `ulimit -v`) to a little more than is in use, then to more and more."""

    def run(folder: Path) -> str:
        command = [sys.executable, "-c", _IN_LITTLE_MEMORY, str(folder), stage]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        see(done.returncode == 0, f"exit {done.returncode}: {done.stderr[-1500:]}")
        outcomes = json.loads(done.stdout.splitlines()[-1])
        errors = [(kind, message, left) for kind, message, left in outcomes if kind]
        see(errors, "memory never ran out")
        for kind, message, left in errors:
            told = kind == "ResourceError" and "ran out of memory" in message
            see(told and all(part in message for part in lower), f"{kind}: {message}")
            see(not left, f"left behind: {left}")
        return f"{len(errors)} times {errors[-1][0]}: {errors[-1][1][:400]}" + (
            "" if outcomes[-1][0] else " | with more: well"
        )

    return run


@contextmanager
def memory_group(megabytes: int) -> Iterator[Path]:
    """A control group with a limit of memory; yields its file of processes."""
    version_1 = Path("/sys/fs/cgroup/memory")
    root, limit = (
        (version_1, "memory.limit_in_bytes") if version_1.is_dir() else (Path("/sys/fs/cgroup"), "memory.max")
    )
    group = root / f"ama-fault-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / limit).write_text(str(megabytes << 20))
    except OSError as error:
        raise UnexpectedError(f"no control group can be made here (it takes root): {error}") from error
    try:
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def killed_for_memory(folder: Path) -> str:
    """`ama run` in a control group whose limit a training exceeds: the system kills the step."""
    wide = {"hidden_size": 512, "layers": 4, "heads": 4, "steps": 1, "batch_size": 2}
    changed = {
        "base_model": {"source": "tiny", "tiny": wide},
        "training": {"batch_size": 512, "learning_rate": 0.001},
        "evaluation": {"batch_size": 2, "generate": False},
    }
    (folder / "config.yaml").write_text(json.dumps({**tiny.experiment(), **changed}))
    told = {"AMA_CACHE": str(folder / "cache")}
    with memory_group(3000) as processes, ExitStack() as stack:
        here = Path("/proc/self/cgroup").read_text()
        stack.callback(_leave, processes, here)
        processes.write_text(str(os.getpid()))
        done = ama("run", "--config", folder / "config.yaml", "--output", folder / "run", **told)
        stack.close()
    see(done.returncode == 1, f"exit {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    reason = next((line for line in done.stderr.splitlines() if "failed:" in line), "")
    see("because memory ran out; lower training.micro_batch_size" in reason, done.stderr[-3000:])
    see(not (folder / "run" / "leaderboard.json").exists(), "there is a leaderboard")
    return f"exit 1: {reason.strip()}"


def _leave(processes: Path, before: str) -> None:
    """Go back to the control group of before."""
    root = processes.parent.parent
    place = next(
        line.split(":", 2) for line in before.splitlines() if "memory" in line or line.startswith("0::")
    )
    (root / place[2].lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))


CASES = [
    *(
        Case("machine", f"disk full: {stage}", "StorageError naming the place; nothing half", full_disk(stage))
        for stage in STAGES
    ),
    Case("machine", "disk full: checkpoints", "StorageError; goes on to the same weights", full_checkpoints),
    Case("machine", "disk full: temporary files", "StorageError naming the place", full_temporary),
    Case("machine", "disk full: logs and records", "StorageError naming the place", full_logs),
    Case("machine", "disk full: MLflow's store", "told; sent when there is room", full_store),
    Case("machine", "disk full: `ama run`", "told; the same command completes it", full_run),
    Case(
        "machine",
        "memory limit: a training",
        "ResourceError, what to lower",
        little_memory("train_specialist", "training.micro_batch_size"),
    ),
    Case(
        "machine",
        "memory limit: scoring",
        "ResourceError, what to lower",
        little_memory("reference_logps", "evaluation.batch_size"),
    ),
    Case("machine", "killed for memory: `ama run`", "exit 1, says so, what to lower", killed_for_memory),
]
