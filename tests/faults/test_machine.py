"""A machine with too little: a full disk at every stage, and too little memory."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from automixalign.config.evaluation import ScoringSettings
from automixalign.config.experiment import ComparisonSettings, Experiment, parse_experiment
from automixalign.config.training import SpecialistLossesSettings, specialist_name
from automixalign.merging.merge import merge_specialists
from automixalign.report.compare import compare
from automixalign.report.facts.collect import RunResults
from automixalign.scoring.reference_logps import write_reference_logps
from automixalign.steps.events import EVENTS_FILE, LOGS_VARIABLE
from automixalign.steps.step import run_step
from automixalign.steps.tracking.record import Record
from automixalign.steps.tracking.send import send_waiting
from automixalign.steps.tracking.spool import FOLDER, FOLLOWED, RUN_ID, URI, Spool, Target
from automixalign.storage import files, publication
from automixalign.system.errors import StorageError
from automixalign.training.checkpoints.folder import CHECKPOINTS_VARIABLE
from automixalign.training.launch import train
from automixalign.training.specialist import SpecialistTraining
from automixalign.training.specialist_losses import write_specialist_losses
from benchmarks import tiny
from tests.faults.command_line import ama
from tests.faults.common import evaluate_tiny, prepare, raises
from tests.report.report_run import report_paths
from tests.system.processes import run

BALLAST = "ballast"
ROOM_BYTES = (0, 8 << 10, 24 << 10, 64 << 10, 200 << 10, 600 << 10)
"""Free bytes of a disk, so that it fills up at one moment or another."""
FULL = ("cannot be written: no space left", "free some")


class Disk:
    """A small tmpfs, in a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, megabytes: int, *options: str) -> bool:
        """Mount it with a size, or change its size with the option `remount`."""
        option = ",".join([f"size={megabytes}m", *options])
        command = ["mount", "-t", "tmpfs", "-o", option, "ama-fault", str(self.folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def fill(self, leave: int) -> None:
        """Leave this many bytes, to a page."""
        self.free()
        facts = os.statvfs(self.folder)
        with (self.folder / BALLAST).open("wb") as out:
            os.posix_fallocate(out.fileno(), 0, max(facts.f_bavail * facts.f_frsize - leave, 1))

    def free(self) -> None:
        """Free what `fill` took."""
        (self.folder / BALLAST).unlink(missing_ok=True)

    def clear(self) -> list[str]:
        """Remove everything else; return its names."""
        names = sorted(path.name for path in self.folder.iterdir() if path.name != BALLAST)
        for path in (self.folder / name for name in names):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return names


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    """A disk of 20 megabytes, or of the test's parameter."""
    disk = Disk(tmp_path / "disk")
    disk.folder.mkdir()
    if not disk.resize(getattr(request, "param", 20)):
        pytest.skip("a tmpfs can only be mounted as root")
    yield disk
    unmount = ["umount", "--lazy", str(disk.folder)]
    subprocess.run(unmount, check=False)


@pytest.fixture(autouse=True)
def _untracked(environment: Callable[..., None]) -> None:
    environment(**dict.fromkeys((URI, RUN_ID, FOLDER, FOLLOWED, LOGS_VARIABLE, CHECKPOINTS_VARIABLE)))


def training(output: Path, **options: Any) -> SpecialistTraining:
    """A specialist's training of three steps with a checkpoint each."""
    return tiny.specialist_training(output, checkpoint_every=1, **options)


def tiny_experiment() -> Experiment:
    tasks = [{"name": name, "source": f"synthetic:{name}", "limit": 30} for name in tiny.TASKS]
    return parse_experiment({**tiny.experiment(), "tasks": tasks}, "the test")


def score_reference(output: Path, batch_size: int = 16) -> None:
    settings = ScoringSettings(seed=0, batch_size=batch_size, precision="fp32")
    write_reference_logps(settings, tiny.world().data, tiny.world().base_model, output / "logps")


def merge(output: Path) -> None:
    base = tiny.world().base_model
    merge_specialists(base, dict.fromkeys(tiny.TASKS, base), "linear", {}, output / "model", seed=0)


def evaluate(output: Path, name: str = "uniform", family: str = "generalist") -> None:
    evaluate_tiny(tiny.world().base_model, name, family, output / name)


def write_losses(output: Path) -> None:
    world = tiny.world()
    settings = SpecialistLossesSettings(
        seed=0, batch_size=16, precision="fp32", loss=tiny_experiment().training.loss, warn_gap=9, fold=None
    )
    with tempfile.TemporaryDirectory() as scratch:
        evaluate(Path(scratch), "specialist", "specialist")
        write_specialist_losses(
            settings,
            task="format",
            data=world.data,
            reference_logps=world.reference_logps,
            scores=world.reference_logps / "format",
            evaluation=Path(scratch) / "specialist",
            output=output / "losses",
        )


@cache
def comparison_inputs() -> tuple[list[Path], Path, dict[str, Any]]:
    """Evaluations, the log of a training, and what the training returned."""
    folder = tiny.world().base_model.parent / "compared"
    families = {"reference": "reference", **{specialist_name(task): "specialist" for task in tiny.TASKS}}
    for name, family in {**families, "uniform": "generalist"}.items():
        evaluate(folder, name, family)
    cost = train(training(folder / "training"))
    log = folder / "training" / "trajectory.jsonl"
    first = {key: value["format"] for key, value in files.read_jsonl(log)[0].items() if key != "step"}
    measured = {**first, "excess": 0.1, "difference": 0.1, "clipped": 0.0}
    files.write_jsonl(
        log, [{"step": 1, **{key: dict.fromkeys(tiny.TASKS, value) for key, value in measured.items()}}]
    )
    return [folder / name for name in (*families, "uniform")], log, cost


def compare_models(output: Path) -> None:
    evaluations, log, cost = comparison_inputs()
    trained = [*map(specialist_name, tiny.TASKS), "uniform"]
    results = RunResults(
        evaluations=evaluations,
        trajectories=dict.fromkeys(trained, log),
        costs=dict.fromkeys(trained, cost),
        data=tiny.world().data,
        losses=tiny.world().losses,
    )
    compare(ComparisonSettings(seed=0, experiment=tiny_experiment()), results, report_paths(output))


STAGES: dict[str, Callable[[Path], object]] = {
    "prepare_base_model": lambda output: prepare(tiny.world().base_model, output / "model"),
    "prepare_data": lambda output: tiny.write_data(tiny.world().base_model, output / "data"),
    "reference_logps": score_reference,
    "train_specialist": lambda output: train(training(output)),
    "merge_specialists": merge,
    "evaluate": evaluate,
    "specialist_losses": write_losses,
    "compare": compare_models,
    "publish": lambda output: publication.publish(
        {"models/a": tiny.world().base_model}, str(output / "published")
    ),
}
"""Every stage that writes, with the folder of its results."""
SLOW_STAGES = (
    "prepare_base_model",
    "reference_logps",
    "train_specialist",
    "evaluate",
    "specialist_losses",
    "compare",
)


def run_stage(stage: str, output: Path) -> None:
    with run_step(stage):
        STAGES[stage](output)


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=[pytest.mark.slow] if stage in SLOW_STAGES else []) for stage in STAGES]
)
def test_a_disk_that_fills_up_under_a_stage(disk: Disk, stage: str) -> None:
    tiny.world()
    failures = 0
    for room in ROOM_BYTES:
        disk.fill(room)
        try:
            run_stage(stage, disk.folder)
        except StorageError:
            failures += 1
            with raises(StorageError, str(disk.folder), *FULL):
                run_stage(stage, disk.folder)
            # Whole results stay: `compare` writes several.
            assert not [name for name in disk.clear() if name.startswith(".")]
        else:
            break
    assert failures, "the disk never filled up"
    disk.free()
    disk.clear()
    run_stage(stage, disk.folder)


@pytest.mark.slow
def test_a_disk_that_checkpoints_fill(disk: Disk, tmp_path: Path, environment: Callable[..., None]) -> None:
    """The same training then goes on after the last whole one."""
    environment(**{CHECKPOINTS_VARIABLE: str(disk.folder / "checkpoints")})
    failures = 0
    for room in ROOM_BYTES:
        disk.fill(room)
        try:
            with run_step("train_specialist", "format"):
                train(training(tmp_path / "made"))
        except StorageError as error:
            assert FULL[0] in str(error)
            assert str(disk.folder) in str(error)
            assert not (tmp_path / "made" / "model").exists()
            failures += 1
        else:
            break
    assert failures, "the disk never filled up"
    disk.free()
    if not (tmp_path / "made" / "model").exists():
        with run_step("train_specialist", "format"):
            train(training(tmp_path / "made"))
    environment(**{CHECKPOINTS_VARIABLE: None})
    train(training(tmp_path / "undisturbed"))
    assert files.digest(tmp_path / "made" / "model") == files.digest(tmp_path / "undisturbed" / "model")


@pytest.mark.parametrize("disk", [1], indirect=True)
def test_a_full_disk_for_temporary_files(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.fill(0)
    monkeypatch.setattr("tempfile.tempdir", str(disk.folder))
    with raises(StorageError, str(disk.folder), *FULL), run_step("train_specialist", "format"):
        train(training(tmp_path / "made"))
    disk.free()
    with run_step("train_specialist", "format"):
        train(training(tmp_path / "made"))


@pytest.mark.parametrize("disk", [1], indirect=True)
def test_a_full_disk_for_logs_and_records(disk: Disk, environment: Callable[..., None]) -> None:
    (disk.folder / "spool").mkdir()
    environment(**{LOGS_VARIABLE: str(disk.folder), FOLDER: str(disk.folder / "spool"), FOLLOWED: "1"})
    disk.fill(0)
    with raises(StorageError, str(disk.folder), *FULL), run_step("merge_specialists", "linear"):
        print("x" * 10_000)
    disk.free()
    with run_step("merge_specialists", "linear"):
        print("x" * 10_000)
    assert json.loads((disk.folder / EVENTS_FILE).read_text().splitlines()[-1])["event"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("disk", [4], indirect=True)
def test_a_full_disk_for_the_mlflow_store(disk: Disk, tmp_path: Path) -> None:
    uri = f"sqlite:///{disk.folder}/mlflow.db"
    spool = Spool(tmp_path / "spool")
    spool.aim(Target(uri=uri, run_name="run", artifacts=(tmp_path / "artifacts").as_uri()))
    spool.add(Record(stage="first", ended=1.0))
    assert send_waiting(spool) is None
    record = Record(stage="second", ended=1.0)
    for step in range(5000):
        record.add_metrics({"loss": 0.5}, step)
    spool.add(record)
    disk.fill(0)
    assert "is full" in (send_waiting(spool) or "")
    assert len(spool.waiting()) == 1
    disk.free()
    assert send_waiting(spool) is None
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("automixalign").experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["first", "run", "second"]


@pytest.mark.slow
@pytest.mark.parametrize("disk", [2], indirect=True)
def test_a_disk_that_fills_up_under_a_run(disk: Disk, tmp_path: Path) -> None:
    """The same command completes the run on a larger disk."""
    (tmp_path / "config.yaml").write_text(json.dumps(tiny.experiment()))
    command = ("run", "--config", tmp_path / "config.yaml", "--output", disk.folder / "run")
    cached = {"AMA_CACHE": str(tmp_path / "cache")}
    ended = ama(*command, **cached)
    assert ended.returncode in (1, 2), ended.stderr
    assert "full" in ended.stderr or "no space" in ended.stderr, ended.stderr
    assert not (disk.folder / "run" / "leaderboard.json").exists()
    assert disk.resize(200, "remount")
    ended = ama(*command, **cached)
    assert ended.returncode == 0, ended.stderr
    assert (disk.folder / "run" / "leaderboard.json").exists()


IN_LITTLE_MEMORY = """
import json, resource, sys
from pathlib import Path
from automixalign.steps.step import run_step
from tests.faults import test_machine
folder, stage = Path(sys.argv[1]), sys.argv[2]
outcomes = []
test_machine.run_large_stage(stage, folder / "first", small=True)  # everything is imported, every pool is there
for number in (0, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192):
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (number << 20), -1))
    try:
        with run_step(stage):
            test_machine.run_large_stage(stage, folder / str(number))
        outcome = ["", ""]
    except Exception as error:
        outcome = [type(error).__name__, str(error)]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    outcomes.append([*outcome, [path.name for path in folder.rglob(".*")]])
    if not outcome[0]:
        break
print(json.dumps(outcomes))
"""


def run_large_stage(stage: str, output: Path, small: bool = False) -> None:
    """A stage that takes much memory, or the same one with little."""
    if stage == "train_specialist":
        job = training(output, **({} if small else {"batch_size": 512}))
        budget = job.settings.budget.model_copy(update={"steps": 1})
        train(job.model_copy(update={"settings": job.settings.model_copy(update={"budget": budget})}))
    else:
        score_reference(output, batch_size=4 if small else 4096)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "key"),
    [("train_specialist", "training.micro_batch_size"), ("reference_logps", "evaluation.batch_size")],
)
def test_a_stage_that_runs_out_of_memory_names_what_to_lower(tmp_path: Path, stage: str, key: str) -> None:
    """Address space is limited (as by `ulimit -v`) to a little more than is in use, then to more and more."""
    ended = run(IN_LITTLE_MEMORY, tmp_path, stage, check=False)
    assert ended.returncode == 0, ended.stderr
    failures = [outcome for outcome in json.loads(ended.stdout.splitlines()[-1]) if outcome[0]]
    assert failures, "memory never ran out"
    for kind, message, hidden_files in failures:
        assert kind == "ResourceError", message
        assert "ran out of memory" in message
        assert key in message
        assert not hidden_files


@contextmanager
def memory_group(megabytes: int) -> Iterator[None]:
    """This process and its children are in a control group with a limit of memory for a while."""
    root, limit = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
    if not root.is_dir():
        root, limit = Path("/sys/fs/cgroup"), "memory.max"
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    path = next(line.split(":", 2)[2] for line in lines if "memory" in line or line.startswith("0::"))
    group = root / f"ama-fault-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / limit).write_text(str(megabytes << 20))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"a control group can only be made as root: {error}")
    try:
        yield
    finally:
        (root / path.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


@pytest.mark.slow
def test_a_stage_that_the_system_kills_for_memory(tmp_path: Path) -> None:
    wide = {"hidden_size": 512, "layers": 4, "heads": 4, "steps": 1, "batch_size": 2}
    changes = {
        "base_model": {"source": "tiny", "tiny": wide},
        "training": {"batch_size": 512, "learning_rate": 0.001},
        "evaluation": {"batch_size": 2, "generate": False},
    }
    (tmp_path / "config.yaml").write_text(json.dumps({**tiny.experiment(), **changes}))
    command = ("run", "--config", tmp_path / "config.yaml", "--output", tmp_path / "run")
    with memory_group(3000):
        ended = ama(*command, AMA_CACHE=str(tmp_path / "cache"))
    assert ended.returncode == 1, ended.stderr
    assert "because memory ran out; lower training.micro_batch_size" in ended.stderr
    assert not (tmp_path / "run" / "leaderboard.json").exists()
