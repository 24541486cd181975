"""Values that are not finite, from the base model to the leaderboard: a named error, never a wrong number."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from automixalign.config.evaluation import ScoringSettings
from automixalign.config.experiment import ComparisonSettings, parse_experiment
from automixalign.config.methods import GeneralistSettings, MethodSpec
from automixalign.config.models import BaseModelSettings
from automixalign.config.training import specialist_name
from automixalign.data.store import TEST, TRAIN, read_split
from automixalign.merging.merge import merge_specialists
from automixalign.models.load import load_full_model, load_tokenizer
from automixalign.models.prepare import prepare_base_model
from automixalign.report import leaderboard
from automixalign.report.compare import compare
from automixalign.report.facts.collect import RunResults
from automixalign.scoring import caches
from automixalign.scoring.caches import SUMMARY
from automixalign.scoring.reference_logps import write_reference_logps
from automixalign.scoring.scorer import Scorer
from automixalign.storage import files
from automixalign.system.errors import CacheError, ModelError, TrainingError
from automixalign.training.generalist import GeneralistTraining
from automixalign.training.launch import train
from benchmarks import tiny
from tests.faults.command_line import ama
from tests.faults.common import assert_empty, evaluate_tiny, prepare, raises
from tests.report.report_run import report_paths

NAN, INF = float("nan"), float("inf")
NORM, HEAD = "model.norm.weight", "lm_head.weight"
MODELS = {**{specialist_name(task): "specialist" for task in tiny.TASKS}, "uniform": "generalist"}


def spoil(model: Path, value: float, name: str = NORM) -> None:
    """Replace one value of a weight."""
    weights = load_file(model / "model.safetensors")
    weights[name].view(-1)[-1] = value
    save_file(weights, model / "model.safetensors", {"format": "pt"})


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder for results, empty after a failure."""
    return tmp_path / "output"


def test_finite_numbers_pass(tmp_path: Path) -> None:
    scorer = Scorer(load_full_model(tiny.world().base_model), 16, "bf16")
    for logps in scorer.logps(read_split(tiny.world().data, "format", TEST)):
        assert np.isfinite(logps).all()
    leaderboard.build(evaluations(tmp_path), list(MODELS))


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_base_model(model: Path, output: Path, value: float) -> None:
    spoil(model, value)
    with raises(ModelError, f"base_model.source: {model}", f"the weight {NORM} is not finite"):
        prepare(model, output / "model")
    assert_empty(output)


def test_a_base_model_in_shards(model: Path, output: Path, tmp_path: Path) -> None:
    spoil(model, NAN)
    load_full_model(model).save_pretrained(tmp_path / "sharded", max_shard_size="8KB")
    load_tokenizer(model).save_pretrained(tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    with raises(ModelError, f"the weight {NORM} is not finite"):
        prepare(tmp_path / "sharded", output / "model")
    assert_empty(output)


def test_a_base_model_on_s3(model: Path, output: Path, s3: Any) -> None:
    spoil(model, NAN)
    for file in model.iterdir():
        s3.upload_file(str(file), "ready", f"spoilt/{file.name}")
    with raises(ModelError, "s3://ready/spoilt", f"the weight {NORM} is not finite"):
        prepare("s3://ready/spoilt", output / "model")
    assert_empty(output)


def test_a_base_model_in_the_registry(model: Path, output: Path, registered: Callable[[Path], str]) -> None:
    spoil(model, NAN)
    source = registered(model)
    with raises(ModelError, source, f"the weight {NORM} is not finite"):
        prepare(source, output / "model")
    assert_empty(output)


def test_the_tiny_base_model_diverges(output: Path) -> None:
    spec = {"hidden_size": 16, "layers": 1, "heads": 2, "steps": 2, "learning_rate": 1e39}
    settings = {
        "seed": 0,
        "base_model": {"source": "tiny", "tiny": spec},
        "synthetic_tasks": ["format"],
        "fingerprint": "",
    }
    with raises(ModelError, "base_model.tiny.learning_rate"):
        prepare_base_model(BaseModelSettings.model_validate(settings), output / "model")
    assert_empty(output)


DIVERGING: dict[str, tuple[float, int, dict[str, Any], str]] = {
    "fp32": (1e38, 8, {}, "format"),
    "bf16": (1e38, 8, {"precision": "bf16"}, "format"),
    "in the last step": (1e39, 1, {}, "after step 1 the weight"),
    "in the last step, LoRA": (1e39, 1, {"lora": {"rank": 2}}, "after step 1 the weight"),
}


@pytest.mark.parametrize(("rate", "steps", "options", "part"), DIVERGING.values(), ids=DIVERGING)
def test_specialist_diverges(output: Path, rate: float, steps: int, options: dict[str, Any], part: str) -> None:
    with raises(TrainingError, "step ", part, "lower the learning rate"):
        train(tiny.specialist_training(output, steps, learning_rate=rate, **options))
    assert_empty(output)


@pytest.mark.slow
def test_a_specialist_of_a_run_diverges(tmp_path: Path) -> None:
    training = {"batch_size": 4, "learning_rate": 1e38, "warmup_steps": 0}
    (tmp_path / "config.yaml").write_text(json.dumps({**tiny.experiment(), "training": training}))
    ended = ama("run", "--config", tmp_path / "config.yaml", "--output", tmp_path / "run")
    assert ended.returncode == 1, ended.stderr
    assert "failed: step " in ended.stderr
    assert "the loss is not finite" in ended.stderr
    assert "train_specialist" in ended.stderr
    assert not (tmp_path / "run" / "leaderboard.json").exists()


def test_a_merge_overflows(output: Path, tmp_path: Path) -> None:
    """Each specialist's weights are finite; their sum is not."""
    base, specialists = tiny.world().base_model, {task: tmp_path / task for task in tiny.TASKS}
    for specialist in specialists.values():
        spoil(shutil.copytree(base, specialist), 3e38)
    with raises(ModelError, "overflows", NORM):
        merge_specialists(base, specialists, "task_arithmetic", {"weight": 1.0}, output / "model", seed=0)
    assert_empty(output)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluated_logits_overflow(output: Path, model: Path, tmp_path: Path, precision: str) -> None:
    """The weights are finite; their products with activations are beyond the range of fp32."""
    world, reference_logps = tiny.world(), tmp_path / "reference_logps"
    scoring = ScoringSettings.model_validate({"seed": 0, "batch_size": 16, "precision": precision})
    write_reference_logps(scoring, world.data, world.base_model, reference_logps)
    weights = load_file(model / "model.safetensors")
    weights[HEAD] = (weights[HEAD] * (1e37 / weights[HEAD].abs().median())).clamp(-3e38, 3e38)
    weights[NORM] *= 100
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with raises(ModelError, "not finite", "pair"):
        evaluate_tiny(model, "m", "generalist", output / "evaluation", precision, reference_logps)
    assert_empty(output)


def replace_score(file: Path, column: str, value: float, row: int = 1) -> None:
    """Put a value into a cache, past the checks of its writer."""
    table = files.read_table(file)
    values = caches.column(table, column).copy()
    values[row] = value
    files.write_table(file, table.set_column(table.column_names.index(column), column, pa.array(values)))


@pytest.mark.parametrize(("column", "value"), [(caches.CHOSEN, NAN), (caches.REJECTED, -INF)])
def test_a_cache_of_the_reference_model(output: Path, tmp_path: Path, column: str, value: float) -> None:
    reference_logps = Path(shutil.copytree(tiny.world().reference_logps, tmp_path / "reference_logps"))
    replace_score(reference_logps / "format" / f"{TRAIN}.parquet", column, value)
    training = tiny.specialist_training(output, 2).model_copy(update={"reference_logps": reference_logps})
    with raises(CacheError, f"format/{TRAIN}.parquet", column, "not finite"):
        train(training)
    assert_empty(output)


@pytest.fixture
def losses(tmp_path: Path) -> Path:
    """A copy of the specialists' losses."""
    return Path(shutil.copytree(tiny.world().losses[0].parent, tmp_path / "losses"))


def generalist(output: Path, losses: Path) -> GeneralistTraining:
    base = tiny.specialist_training(output, 2)
    method = MethodSpec.model_validate({"method": "ama-r", "eta": 0.1, "name": "ama-r"})
    fields = {
        name: getattr(base, name) for name in ("data", "reference_logps", "base_model", "output", "trajectory")
    }
    shared = base.settings.model_dump(exclude={"score_precision"})
    settings = GeneralistSettings.model_validate({**shared, "method": method})
    return GeneralistTraining(settings=settings, losses=[losses / task for task in tiny.TASKS], **fields)


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_cache_of_specialist_losses(output: Path, losses: Path, value: float) -> None:
    replace_score(losses / tiny.TASKS[0] / f"{TRAIN}.parquet", caches.LOSS, value)
    with raises(CacheError, f"{TRAIN}.parquet", "the loss of 1 of"):
        train(generalist(output, losses))
    assert_empty(output)


def test_a_cache_cut_short(output: Path, losses: Path) -> None:
    file = losses / tiny.TASKS[0] / f"{TRAIN}.parquet"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with raises(CacheError, str(file), "cannot be read"):
        train(generalist(output, losses))
    assert_empty(output)


def test_flipped_bits_in_a_cache_are_refused_or_change_nothing(losses: Path) -> None:
    columns = (caches.CHOSEN, caches.REJECTED, caches.LOSS)
    cache = losses / tiny.TASKS[0]
    file = cache / f"{TRAIN}.parquet"
    content, table, generator = file.read_bytes(), caches.read_cache(cache, TRAIN, *columns), random.Random(0)
    refused = 0
    for _ in range(200):
        changed = bytearray(content)
        changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        file.write_bytes(changed)
        try:
            assert caches.read_cache(cache, TRAIN, *columns).select(table.column_names).equals(table)
        except CacheError:
            refused += 1
    assert refused > 100


def test_a_cache_is_not_written_with_infinity(tmp_path: Path) -> None:
    pairs = read_split(tiny.world().data, "format", TEST)
    table = pa.table({"pair_id": pairs.column("pair_id"), caches.LOSS: pa.array(np.full(len(pairs), INF))})
    with raises(CacheError, "finite"):
        caches.write_cache(tmp_path / "c", "format", {TEST: table}, tiny.world().data)
    assert not list(tmp_path.rglob("*.parquet"))


def evaluations(folder: Path) -> list[Path]:
    """Valid evaluations of two specialists and a generalist, all by the small model."""
    for name, family in MODELS.items():
        evaluate_tiny(tiny.world().base_model, name, family, folder / name)
    return [folder / name for name in MODELS]


@pytest.fixture(scope="module")
def valid_evaluations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("evaluations")
    evaluations(folder)
    return folder


def summary(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(evaluation: Path) -> None:
        content = files.read_json(evaluation / SUMMARY)
        change(content["tasks"])
        (evaluation / SUMMARY).write_text(json.dumps(content))

    return apply


def drop_pair(evaluation: Path) -> None:
    file = evaluation / "format.parquet"
    files.write_table(file, files.read_table(file).slice(1))


WRONG: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "NaN in the scores": (
        lambda evaluation: replace_score(evaluation / "format.parquet", caches.LOSS, NAN),
        ["format.parquet", "the loss of 1"],
    ),
    "NaN in the summary": (
        summary(lambda tasks: tasks["format"].update(accuracy=NAN)),
        ["the accuracy of task format is nan"],
    ),
    "another loss": (
        summary(lambda tasks: tasks["format"].update(loss=0.01)),
        ["the loss of task format is 0.01, but"],
    ),
    "a missing task": (summary(lambda tasks: tasks.pop("refusal")), ["was evaluated on format, but"]),
    "fewer pairs": (drop_pair, ["pairs of task format, but its specialist"]),
}


@pytest.mark.parametrize(("change", "parts"), WRONG.values(), ids=WRONG)
def test_an_evaluation_on_its_way_to_the_leaderboard(
    valid_evaluations: Path, tmp_path: Path, change: Callable[[Path], None], parts: list[str]
) -> None:
    folder = Path(shutil.copytree(valid_evaluations, tmp_path / "evaluations"))
    change(folder / "uniform")
    with raises(CacheError, *parts):
        leaderboard.build([folder / name for name in MODELS], list(MODELS))


@pytest.mark.parametrize(
    ("line", "part"), [('{"step": 1, "loss": {"a": NaN}}', "loss/a is nan"), ('{"step": 1, "lo', "no line of")]
)
def test_the_log_of_a_training_on_its_way_to_the_report(tmp_path: Path, line: str, part: str) -> None:
    log, paths = tmp_path / "uniform.jsonl", report_paths(tmp_path)
    log.write_text(line + "\n")
    settings = ComparisonSettings(seed=0, experiment=parse_experiment(tiny.experiment(), "the case"))
    results = RunResults(
        evaluations=[], trajectories={"uniform": log}, costs={}, data=tiny.world().data, losses=[]
    )
    with raises(CacheError, f"{log}:1", part):
        compare(settings, results, paths)
    assert not paths.leaderboard.exists()
