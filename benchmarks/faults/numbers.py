"""Values that are not finite, from the base model to the leaderboard: a named error, never a wrong number."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.torch import load_file, save_file

from automixalign.config.evaluation import EvaluationSettings
from automixalign.config.experiment import ComparisonSettings, parse_experiment
from automixalign.config.methods import MethodSpec
from automixalign.config.models import BaseModelSettings
from automixalign.config.training import specialist_name
from automixalign.data.split import TEST, TRAIN
from automixalign.data.store import read_split
from automixalign.merging.merge import merge_specialists
from automixalign.models.load import load_full_model, load_tokenizer
from automixalign.models.prepare import prepare_base_model
from automixalign.report import leaderboard
from automixalign.report.compare import compare
from automixalign.scoring import caches
from automixalign.scoring.caches import SUMMARY
from automixalign.scoring.evaluate import evaluate
from automixalign.scoring.scorer import Scorer
from automixalign.storage import files
from automixalign.system.errors import AutoMixAlignError, CacheError, ModelError, TrainingError
from automixalign.training.launch import train
from automixalign.training.train import GeneralistTraining
from benchmarks import tiny
from benchmarks.faults._outcome import environment, refused, see
from benchmarks.faults.case import Case, ama
from benchmarks.servers.seaweed import seaweed

NAN, INF = float("nan"), float("inf")
_COLUMNS = (caches.CHOSEN, caches.REJECTED, caches.LOSS)
_LAST = "model.norm.weight"


def spoilt_model(folder: Path, value: float = NAN, name: str = _LAST) -> Path:
    """The small model with one value of one weight replaced."""
    shutil.copytree(tiny.world().base_model, folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights[name].view(-1)[-1] = value
    save_file(weights, file, {"format": "pt"})
    return folder


def _in_shards(folder: Path) -> Path:
    """The model of a folder in several files; the spoilt weight is in one of them only."""
    model = load_full_model(folder)
    target = folder.with_name("sharded")
    model.save_pretrained(target, max_shard_size="8KB")
    load_tokenizer(folder).save_pretrained(target)
    see(len(list(target.glob("*.safetensors"))) > 1, "there is one shard only")
    return target


def _prepare(source: str, output: Path) -> None:
    spec: dict[str, Any] = {"source": source}
    settings = {"seed": 0, "base_model": spec, "synthetic_tasks": [], "fingerprint": ""}
    prepare_base_model(BaseModelSettings.model_validate(settings), output)


def base_model(value: float, place: Callable[[Path], Path] = lambda folder: folder) -> Callable[[Path], str]:
    """A local base model with one such value."""

    def run(folder: Path) -> str:
        source = place(spoilt_model(folder / "spoilt", value))
        parts = (f"base_model.source: {source}", f"the weight {_LAST} is not finite")
        seen = refused(ModelError, lambda: _prepare(str(source), folder / "made" / "model"), *parts)
        _nothing_in(folder / "made")
        return seen

    return run


def base_model_on_s3(folder: Path) -> str:
    """The same behind s3://."""
    spoilt = spoilt_model(folder / "spoilt")
    (folder / "server").mkdir()
    with seaweed(folder / "server") as server, environment(**server.environment):
        for file in spoilt.iterdir():
            server.client.upload_file(str(file), "ready", f"base/{file.name}")
        source, part = "s3://ready/base", f"the weight {_LAST} is not finite"
        seen = refused(ModelError, lambda: _prepare(source, folder / "made" / "model"), source, part)
    _nothing_in(folder / "made")
    return seen


def base_model_in_the_registry(folder: Path) -> str:
    """The same behind models:/."""
    import mlflow

    spoilt = spoilt_model(folder / "spoilt")
    uri = f"sqlite:///{folder}/mlflow.db"
    with environment(MLFLOW_TRACKING_URI=uri):
        client = mlflow.MlflowClient(uri)
        run = client.create_run(client.create_experiment("e", (folder / "artifacts").as_uri()))
        client.log_artifacts(run.info.run_id, str(spoilt), "model")
        client.create_registered_model("base")
        client.create_model_version("base", f"{run.info.artifact_uri}/model", run.info.run_id)
        source, part = "models:/base/1", f"the weight {_LAST} is not finite"
        seen = refused(ModelError, lambda: _prepare(source, folder / "made" / "model"), source, part)
    _nothing_in(folder / "made")
    return seen


def tiny_model_diverges(folder: Path) -> str:
    """The run's own small model, trained with a huge learning rate."""
    tiny = {"hidden_size": 16, "layers": 1, "heads": 2, "steps": 2, "learning_rate": 1e39}
    settings = {
        "seed": 0,
        "base_model": {"source": "tiny", "tiny": tiny},
        "synthetic_tasks": ["format"],
        "fingerprint": "",
    }
    checked = BaseModelSettings.model_validate(settings)
    seen = refused(
        ModelError,
        lambda: prepare_base_model(checked, folder / "made" / "model"),
        "base_model.tiny.learning_rate",
    )
    _nothing_in(folder / "made")
    return seen


def _nothing_in(folder: Path) -> None:
    left = [path.name for path in folder.iterdir()] if folder.exists() else []
    see(not left, f"left behind: {left}")


def specialist_diverges(rate: float, steps: int, *parts: str, **options: Any) -> Callable[[Path], str]:
    """A specialist trained with a learning rate that makes it fly apart."""

    def run(folder: Path) -> str:
        training = tiny.specialist_training(folder / "made", steps, learning_rate=rate, **options)
        seen = refused(TrainingError, lambda: train(training), "lower the learning rate", *parts)
        _nothing_in(folder / "made")
        return seen

    return run


def run_diverges(folder: Path) -> str:
    """`ama run` with such a specialist."""
    training = {"batch_size": 4, "learning_rate": 1e38, "warmup_steps": 0}
    (folder / "config.yaml").write_text(json.dumps({**tiny.experiment(), "training": training}))
    done = ama("run", "--config", folder / "config.yaml", "--output", folder / "run")
    see(done.returncode == 1, f"exit {done.returncode}: {done.stdout}{done.stderr}")
    see("TrainingError: step" in done.stderr and "train_specialist" in done.stderr, done.stderr)
    see(not (folder / "run" / "leaderboard.json").exists(), "there is a leaderboard")
    return next(line for line in done.stderr.splitlines() if "failed:" in line) + " | exit 1, no leaderboard"


def merge_overflows(folder: Path) -> str:
    """Two specialists whose weights are finite, and whose sum is not."""
    sources = {}
    for task in tiny.TASKS:
        sources[task] = spoilt_model(folder / task, 3e38)
    output = folder / "made" / "model"
    seen = refused(
        ModelError,
        lambda: merge_specialists(
            tiny.world().base_model, sources, "task_arithmetic", {"weight": 1.0}, output, seed=0
        ),
        "overflows",
        _LAST,
    )
    _nothing_in(folder / "made")
    return seen


def _evaluation_settings(precision: str = "fp32") -> EvaluationSettings:
    experiment = parse_experiment(tiny.experiment(), "the case")
    return EvaluationSettings.model_validate(
        {
            "seed": 0,
            "evaluation": {"batch_size": 16, "precision": precision, "generate": False},
            "loss": experiment.training.loss.model_dump(),
            "verifiers": {},
        }
    )


def _evaluate(model: Path, name: str, family: str, output: Path, precision: str = "fp32") -> None:
    world = tiny.world()
    places = (world.data, world.reference_logps, world.base_model, model, output)
    evaluate(_evaluation_settings(precision), name, family, *places)


def evaluated_overflows(precision: str) -> Callable[[Path], str]:
    """A model with finite weights whose log-probabilities are not."""

    def run(folder: Path) -> str:
        # Beyond fp32's range only when multiplied with activations.
        model = spoilt_model(folder / "model", 3e38, "lm_head.weight")
        weights = load_file(model / "model.safetensors")
        weights["lm_head.weight"] *= 1e37 / weights["lm_head.weight"].abs().median()
        weights["lm_head.weight"].clamp_(-3e38, 3e38)
        save_file(weights, model / "model.safetensors", {"format": "pt"})
        weights[_LAST] *= 100
        save_file(weights, model / "model.safetensors", {"format": "pt"})
        output = folder / "made" / "evaluation"
        seen = refused(
            ModelError, lambda: _evaluate(model, "m", "generalist", output, precision), "not finite", "pair"
        )
        _nothing_in(folder / "made")
        return seen

    return run


def _spoil(file: Path, column: str, value: float, row: int = 1) -> None:
    """Put a value into a cache, past the checks of whoever writes caches."""
    table = files.read_table(file)
    values = caches.column(table, column).copy()
    values[row] = value
    at = table.column_names.index(column)
    files.write_table(file, table.set_column(at, column, pa.array(values)))


def reference_cache(column: str, value: float) -> Callable[[Path], str]:
    """A value of the reference's log-probabilities that a specialist is about to train with."""

    def run(folder: Path) -> str:
        reference_logps = folder / "reference_logps"
        shutil.copytree(tiny.world().reference_logps, reference_logps)
        _spoil(reference_logps / "format" / f"{TRAIN}.parquet", column, value)
        training = tiny.specialist_training(folder / "made", 2).model_copy(
            update={"reference_logps": reference_logps}
        )
        seen = refused(CacheError, lambda: train(training), f"format/{TRAIN}.parquet", column, "not finite")
        _nothing_in(folder / "made")
        return seen

    return run


def _generalist(folder: Path, losses: Sequence[Path]) -> GeneralistTraining:
    base = tiny.specialist_training(folder / "made", 2)
    method = MethodSpec.model_validate({"method": "ama-r", "eta": 0.1, "name": "ama-r"})
    fields = {
        name: getattr(base, name) for name in ("data", "reference_logps", "base_model", "output", "trajectory")
    }
    return GeneralistTraining(
        settings=base.settings.model_copy(update={"method": method}), losses=list(losses), **fields
    )


def specialist_cache(value: float) -> Callable[[Path], str]:
    """A specialist's loss that a generalist is about to train with."""

    def run(folder: Path) -> str:
        shutil.copytree(tiny.world().losses[0].parent, folder / "losses")
        losses = [folder / "losses" / task for task in tiny.TASKS]
        _spoil(losses[0] / f"{TRAIN}.parquet", caches.LOSS, value)
        seen = refused(
            CacheError, lambda: train(_generalist(folder, losses)), f"{TRAIN}.parquet", "the loss of 1 of"
        )
        _nothing_in(folder / "made")
        return seen

    return run


def cut_cache(folder: Path) -> str:
    """Half of a cache's file."""
    shutil.copytree(tiny.world().losses[0].parent, folder / "losses")
    losses = [folder / "losses" / task for task in tiny.TASKS]
    file = losses[0] / f"{TRAIN}.parquet"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    seen = refused(CacheError, lambda: train(_generalist(folder, losses)), str(file), "cannot be read")
    _nothing_in(folder / "made")
    return seen


def flipped_cache(folder: Path) -> str:
    """Single bits of a cache's file, 200 of them one after the other: refused, or of no consequence."""
    file = folder / f"{TRAIN}.parquet"
    shutil.copytree(tiny.world().losses[0], folder, dirs_exist_ok=True)
    whole, table, draw = file.read_bytes(), caches.read_cache(folder, TRAIN, *_COLUMNS), random.Random(0)
    noticed = 0
    for _ in range(200):
        spoilt = bytearray(whole)
        spoilt[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        file.write_bytes(spoilt)
        try:
            found = caches.read_cache(folder, TRAIN, *_COLUMNS)
        except CacheError:
            noticed += 1
        else:
            see(found.select(table.column_names).equals(table), f"bit {noticed} changed a value unnoticed")
    see(noticed > 100, f"only {noticed} of 200 were noticed")
    return f"{noticed} of 200 refused, the others changed no value"


def _evaluations(folder: Path) -> list[Path]:
    """Evaluations of two specialists and a generalist by the small model, whose numbers are all right."""
    model = tiny.world().base_model
    made = []
    for name, family in (
        *((specialist_name(task), "specialist") for task in tiny.TASKS),
        ("uniform", "generalist"),
    ):
        made.append(folder / "evaluations" / name)
        _evaluate(model, name, family, made[-1])
    return made


def _names() -> list[str]:
    return [*map(specialist_name, tiny.TASKS), "uniform"]


def leaderboard_of(change: Callable[[Path], None], *parts: str) -> Callable[[Path], str]:
    """A leaderboard from evaluations of which the generalist's, a folder, was changed."""

    def run(folder: Path) -> str:
        made = _evaluations(folder)
        leaderboard.build(made, _names())  # as they are
        change(made[-1])
        return refused(CacheError, lambda: leaderboard.build(made, _names()), *parts)

    return run


def _change_summary(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    summary = files.read_json(folder / SUMMARY)
    change(summary)
    (folder / SUMMARY).write_text(json.dumps(summary))


def trajectory(line: str, *parts: str) -> Callable[[Path], str]:
    """A training's log with such a line, on its way into the report."""

    def run(folder: Path) -> str:
        experiment = parse_experiment(tiny.experiment(), "the case")
        log = folder / "uniform.jsonl"
        log.write_text(line + "\n")
        board = folder / "leaderboard.json"
        places = [folder / name for name in ("plots", "leaderboard.md", "page.html", "data.json")]
        settings = ComparisonSettings(seed=0, experiment=experiment)

        def step() -> None:
            compare(settings, [], {"uniform": log}, {}, tiny.world().data, [], board, *places)

        seen = refused(CacheError, step, f"{log}:1", *parts)
        see(not board.exists(), "there is a leaderboard")
        return seen

    return run


def scores_are_checked_when_written(folder: Path) -> str:
    """Whoever writes a cache is held to it, too."""
    pairs = read_split(tiny.world().data, "format", TEST)
    table = pa.table({"pair_id": pairs.column("pair_id"), caches.LOSS: pa.array(np.full(len(pairs), INF))})
    seen = refused(
        CacheError,
        lambda: caches.write_cache(folder / "c", "format", {TEST: table}, tiny.world().data),
        "finite",
    )
    see(not list(folder.rglob("*.parquet")), "it was written")
    return seen


def good_model_scores(folder: Path) -> str:
    """What is right is not refused: the same model unspoilt."""
    scorer = Scorer(load_full_model(tiny.world().base_model), 16, "bf16")
    chosen, rejected = scorer.logps(read_split(tiny.world().data, "format", TEST))
    see(np.isfinite(chosen).all() and np.isfinite(rejected).all(), "not finite")
    try:
        leaderboard.build(_evaluations(folder), _names())
    except AutoMixAlignError as error:
        see(False, str(error))
    return "a leaderboard"


CASES = [
    Case("numbers", "nothing is wrong", "a leaderboard", good_model_scores),
    Case("numbers", "base model with a NaN", "ModelError naming the weight", base_model(NAN)),
    Case("numbers", "base model with an infinity", "ModelError naming the weight", base_model(INF)),
    Case(
        "numbers", "base model, NaN in one shard", "ModelError naming the weight", base_model(NAN, _in_shards)
    ),
    Case("numbers", "base model on S3 with a NaN", "ModelError naming the weight", base_model_on_s3),
    Case(
        "numbers", "base model models:/ with a NaN", "ModelError naming the weight", base_model_in_the_registry
    ),
    Case("numbers", "the tiny base model diverges", "ModelError, what to lower", tiny_model_diverges),
    Case(
        "numbers",
        "a specialist diverges",
        "TrainingError naming step and task",
        specialist_diverges(1e38, 8, "step ", "format"),
    ),
    Case(
        "numbers",
        "a specialist diverges, bf16",
        "TrainingError naming step and task",
        specialist_diverges(1e38, 8, "step ", "format", precision="bf16"),
    ),
    Case(
        "numbers",
        "the last step spoils the weights",
        "TrainingError, no model",
        specialist_diverges(1e39, 1, "after step 1 the weight"),
    ),
    Case(
        "numbers",
        "the last step spoils an adapter",
        "TrainingError, no model",
        specialist_diverges(1e39, 1, "after step 1 the weight", lora={"rank": 2}),
    ),
    Case("numbers", "`ama run`, a specialist diverges", "exit 1, TrainingError, no leaderboard", run_diverges),
    Case("numbers", "a merge overflows", "ModelError, no model", merge_overflows),
    Case("numbers", "evaluated logits overflow", "ModelError naming a pair", evaluated_overflows("fp32")),
    Case("numbers", "evaluated logits overflow, bf16", "ModelError naming a pair", evaluated_overflows("bf16")),
    Case(
        "numbers",
        "NaN in the reference's cache",
        "CacheError naming file and pair",
        reference_cache(caches.CHOSEN, NAN),
    ),
    Case(
        "numbers",
        "-inf in the reference's cache",
        "CacheError naming file and pair",
        reference_cache(caches.REJECTED, -INF),
    ),
    Case("numbers", "NaN in a specialist's losses", "CacheError naming file and pair", specialist_cache(NAN)),
    Case(
        "numbers", "infinity in a specialist's losses", "CacheError naming file and pair", specialist_cache(INF)
    ),
    Case("numbers", "a cache cut short", "CacheError naming the file", cut_cache),
    Case("numbers", "flipped bits in a cache", "CacheError, or no change", flipped_cache),
    Case(
        "numbers",
        "a cache is written with infinity",
        "CacheError, nothing written",
        scores_are_checked_when_written,
    ),
    Case(
        "numbers",
        "NaN in an evaluation's scores",
        "CacheError, no leaderboard",
        leaderboard_of(
            lambda e: _spoil(e / "format.parquet", caches.LOSS, NAN), "format.parquet", "the loss of 1"
        ),
    ),
    Case(
        "numbers",
        "NaN in an evaluation's summary",
        "CacheError, no leaderboard",
        leaderboard_of(
            lambda e: _change_summary(e, lambda s: s["tasks"]["format"].update(accuracy=NAN)),
            "the accuracy of task format is nan",
        ),
    ),
    Case(
        "numbers",
        "a summary that its scores deny",
        "CacheError, no leaderboard",
        leaderboard_of(
            lambda e: _change_summary(e, lambda s: s["tasks"]["format"].update(loss=0.01)),
            "the loss of task format is 0.01, but",
        ),
    ),
    Case(
        "numbers",
        "a model without one task's evaluation",
        "CacheError, no leaderboard",
        leaderboard_of(
            lambda e: _change_summary(e, lambda s: s["tasks"].pop("refusal")), "was evaluated on format, but"
        ),
    ),
    Case(
        "numbers",
        "a model evaluated on fewer pairs",
        "CacheError, no leaderboard",
        leaderboard_of(
            lambda e: files.write_table(e / "format.parquet", files.read_table(e / "format.parquet").slice(1)),
            "pairs of task format, but its specialist",
        ),
    ),
    Case(
        "numbers",
        "NaN in a training's log",
        "CacheError naming file and line",
        trajectory('{"step": 1, "loss": {"a": NaN}}', "loss/a is nan"),
    ),
    Case(
        "numbers",
        "a line of a training's log cut short",
        "CacheError naming file and line",
        trajectory('{"step": 1, "lo', "no line of"),
    ),
]
