"""The compiled pipelines: deterministic, as committed, free of logic and secrets, and placed as configured."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import compiler
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from automixalign.config.cluster import TRAIN_JOB, Stage, TrainJobRequest
from automixalign.config.experiment import parse_experiment
from automixalign.preflight.validate import plan
from automixalign.system.errors import ConfigError
from automixalign.training import checkpoints
from pipelines.cli.options import load_experiment
from pipelines.dag.compiling import write_pipeline
from pipelines.dag.pipeline import build_pipeline
from pipelines.dag.placement import LocalPlacement
from tests.pipeline.compiled import EXPERIMENTS, GOLDEN, golden, pipeline

ROOT = Path(__file__).parents[2]
COMPONENTS = sorted((ROOT / "components").glob("*/component.py"))


@pytest.mark.parametrize("again", range(2))
def test_the_committed_pipeline_is_what_the_quickstart_compiles_to(again: int, tmp_path: Path) -> None:
    write_pipeline(load_experiment("quickstart"), tmp_path / "pipeline.yaml")
    committed = (ROOT / "pipelines" / "automixalign.yaml").read_text()
    assert (tmp_path / "pipeline.yaml").read_text() == committed, "run `make compile` and commit the change"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_the_cluster_is_asked_for_is_as_kept(name: str) -> None:
    kept = (GOLDEN / f"{name}.yaml").read_text()
    assert golden(name) == kept, "run `make compile` and look at the difference"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_container_gets_what_its_step_is_configured_to_get(name: str) -> None:
    """Read back from the YAML, executor by executor, without the code that wrote it."""
    spec, platform = pipeline(name)
    cluster = EXPERIMENTS[name].cluster
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    executors = spec["deploymentSpec"]["executors"]
    assert pods.keys() == executors.keys()
    for label, executor in executors.items():
        step = label.removeprefix("exec-").rstrip("-0123456789").replace("-", "_")
        hands_over = EXPERIMENTS[name].training.nodes > 1 and step.startswith("train_")
        asked = cluster.default if hands_over else cluster.pod(step)
        resources, pod = executor["container"].get("resources", {}), pods[label]
        assert resources.get("resourceCpuRequest") == asked.cpu
        assert resources.get("resourceCpuLimit") == asked.cpu_limit
        assert resources.get("resourceMemoryRequest") == resources.get("resourceMemoryLimit") == asked.memory
        accelerators = resources.get("accelerator", {}).get("resourceCount", "0")
        assert int(accelerators) == asked.accelerators
        volumes = {volume["mountPath"]: volume["sizeLimit"] for volume in pod.get("emptyDirMounts", [])}
        wanted = {"/tmp": asked.scratch, "/dev/shm": asked.shared_memory}  # noqa: S108  paths in a pod
        assert volumes == {path: size for path, size in wanted.items() if size}
        assert int(pod.get("activeDeadlineSeconds", 0)) == (asked.timeout_seconds or 0)
        assert pod.get("nodeSelector", {}).get("labels", {}) == asked.node_selector
        assert len(pod.get("tolerations", [])) == len(asked.tolerations)
        assert pod["securityContext"] == {"runAsNonRoot": True}
        secrets = {secret["secretName"] for secret in pod.get("secretAsEnv", [])}
        reads = step in ("validate_config", "prepare_base_model", "prepare_data")
        names = cluster.secrets
        trains = step in ("train_specialist", "train_generalist")
        keeps = trains and EXPERIMENTS[name].output is not None  # checkpoints
        stores = reads or hands_over or keeps or step in ("register", "publish")
        expected = {names.mlflow, names.s3 if stores else None}
        assert secrets == (expected | ({names.hub} if reads else set())) - {None}
        assert all(secret["optional"] for secret in pod.get("secretAsEnv", []))


def _told(spec: dict[str, Any], name: str) -> dict[str, str]:
    """The value of an environment variable, by the executors that have it."""
    return {
        label: variable["value"]
        for label, executor in spec["deploymentSpec"]["executors"].items()
        for variable in executor["container"].get("env", [])
        if variable["name"] == name
    }


def test_a_training_on_two_nodes_is_told_of_the_job_it_is_to_start() -> None:
    spec, _ = pipeline("two-nodes")
    executors = spec["deploymentSpec"]["executors"]
    told = _told(spec, TRAIN_JOB)
    assert told.keys() == {"exec-train-specialist", "exec-train-generalist"}
    job = TrainJobRequest.model_validate_json(told["exec-train-generalist"])
    assert (job.pod.accelerators, job.pod.memory) == (8, "512Gi")
    assert (job.storage, job.image) == ("s3://results/jobs", executors["exec-compare"]["container"]["image"])


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"output": "s3://results/run/"}, {"train-specialist", "train-generalist"}),
        (
            {"output": "s3://results/run", "specialist_losses": {"cross_fit": True}},
            {"train-specialist", "train-generalist", "specialist-losses"},
        ),
        ({"output": "/results/run"}, set()),
        ({}, set()),
    ],
)
def test_trainings_keep_checkpoints_below_an_output_in_s3(
    changes: dict[str, Any], steps: set[str], tmp_path: Path
) -> None:
    write_pipeline(parse_experiment(_data(**changes), "test"), tmp_path / "p.yaml")
    spec, platform = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    told = _told(spec, checkpoints.CHECKPOINTS_VARIABLE)
    assert told == {f"exec-{step}": "s3://results/run/.checkpoints" for step in steps}
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for label in told:
        assert "automixalign-s3" in {secret["secretName"] for secret in pods[label]["secretAsEnv"]}


def test_trainings_on_several_nodes_keep_no_checkpoints(tmp_path: Path) -> None:
    data = EXPERIMENTS["two-nodes"].model_dump(mode="json") | {"output": "s3://results/run"}
    write_pipeline(parse_experiment(data, "test"), tmp_path / "p.yaml")
    spec = next(yaml.safe_load_all((tmp_path / "p.yaml").read_text()))
    assert _told(spec, checkpoints.CHECKPOINTS_VARIABLE) == {}


def test_time_to_live_and_retries_are_compiled_in() -> None:
    spec, platform = pipeline("eight-gpus")
    assert "604800" in json.dumps(platform["platforms"]["kubernetes"]["pipelineConfig"])
    assert spec["root"]["dag"]["tasks"]["compare"]["retryPolicy"]["maxRetryCount"] == 2
    spec, _ = pipeline("many-tasks")
    assert "retryPolicy" not in spec["root"]["dag"]["tasks"]["compare"]


def test_only_steps_that_look_or_act_outside_are_never_cached() -> None:
    spec, _ = pipeline("one-gpu")
    dags = [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
    cached = {
        task["componentRef"]["name"]: task.get("cachingOptions", {}).get("enableCache", False)
        for dag in dags
        for task in dag["tasks"].values()
    }
    uncached = {"comp-validate-config", "comp-register", "comp-publish"}
    steps = {f"comp-{path.parent.name.replace('_', '-')}" for path in COMPONENTS} & cached.keys()
    assert {step for step in steps if not cached[step]} == uncached
    spec, _ = pipeline("lora")
    assert "enableCache" not in json.dumps(spec["root"]["dag"]["tasks"]["prepare-data"]), "cache: false"


@pytest.mark.parametrize("preset", ["zephyr-7b", "zephyr-7b-lora"])
def test_the_presets_for_a_cluster_compile(preset: str, tmp_path: Path) -> None:
    write_pipeline(
        load_experiment(preset, tasks=["helpful=org/helpful", "harmless=s3://data/harmless/"]),
        tmp_path / "p.yaml",
    )
    spec = next(yaml.safe_load_all((tmp_path / "p.yaml").read_text()))
    trained = spec["deploymentSpec"]["executors"]["exec-train-generalist"]["container"]["resources"]
    assert trained["accelerator"]["resourceCount"] == "8"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_pipeline_is_one_that_kfp_itself_can_read(name: str) -> None:
    spec, _ = pipeline(name)
    json_format.ParseDict(spec, PipelineSpec())
    config = spec["root"]["inputDefinitions"]["parameters"]["config"]
    assert parse_experiment(json.loads(config["defaultValue"]), "default") == EXPERIMENTS[name]


def _data(**changes: Any) -> dict[str, Any]:
    return EXPERIMENTS["cpu"].model_dump(mode="json", exclude={"merges", "cluster"}) | {"merges": []} | changes


def test_optional_parts_are_there_only_where_they_are_asked_for(tmp_path: Path) -> None:
    wanted = {
        "merges": {"merges": ["linear"]},
        "register": {"registry": {"name": "golden"}},
        "publish": {"output": "s3://results/golden"},
    }
    tasks = {}
    for step, change in ({"": {}} | wanted).items():
        compiler.Compiler().compile(
            build_pipeline(parse_experiment(_data(**change), "test"), LocalPlacement()),
            str(tmp_path / "pipeline.yaml"),
        )
        spec = next(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text()))
        tasks[step] = set(spec["root"]["dag"]["tasks"])
        assert (f"comp-{step}" in spec["components"]) == bool(step)
    assert {step: tasks[step] - tasks[""] for step in wanted} == {step: {step} for step in wanted}


def test_an_experiment_with_other_parts_is_refused_by_the_pipeline() -> None:
    text = json.dumps(_data(registry={"name": "golden"}))
    with pytest.raises(ConfigError, match="compiled for an experiment with merges, and this one has registry"):
        plan(text, ["merges"])


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"steps": {"train": {}}}, "cluster.steps.train"),
        ({"default": {"memory": "8 GB"}}, "cluster.default.memory"),
        ({"default": {"cpu": 0}}, "cluster.default.cpu"),
        ({"default": {"gpus": 1}}, "cluster.default.gpus: unknown key"),
        ({"default": {"timeout_seconds": 0}}, "cluster.default.timeout_seconds"),
        ({"default": {"node_selector": {"a b": "c"}}}, "cluster.default.node_selector"),
        ({"default": {"tolerations": [{"operator": "Equal"}]}}, "the operator must be 'Exists'"),
        ({"secrets": {"s3": "My_Secret"}}, "cluster.secrets.s3"),
        ({"secrets": {"aws": "x"}}, "cluster.secrets.aws: unknown key"),
        ({"steps": {"train_generalist": {"accelerators": 4}}}, "4 accelerators for training.processes: 1"),
    ],
)
def test_what_a_cluster_cannot_take_is_refused_by_its_key(cluster: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_experiment(_data(cluster=cluster), "test")


def test_a_step_takes_the_default_s_keys_where_it_has_none_of_its_own() -> None:
    cluster = {
        "default": {"cpu": 1, "memory": "4Gi", "retries": {"times": 1}},
        "steps": {"evaluate": {"cpu": "1.5", "retries": {"times": 0}}},
    }
    pods = parse_experiment(_data(cluster=cluster), "test").cluster
    assert (pods.pod("evaluate").cpu, pods.pod("evaluate").memory) == ("1.5", "4Gi")
    assert (pods.pod("evaluate").retries.times, pods.pod("compare").retries.times) == (0, 1)


def test_every_component_is_a_step_that_can_be_placed() -> None:
    assert set(Stage.__args__) == {path.parent.name for path in COMPONENTS}


def _is_text(node: ast.AST) -> bool:
    """A docstring: text that stands alone."""
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: path.parent.name)
def test_a_component_is_thin_and_in_the_dag(path: Path, tmp_path: Path) -> None:
    source = path.read_text()
    docstring = max((node.value.value for node in ast.walk(ast.parse(source)) if _is_text(node)), key=len)
    assert len(source.splitlines()) - len(docstring.splitlines()) <= 50
    whole = _data(registry={"name": "golden"}, output="s3://results/golden", merges=["linear"])
    compiler.Compiler().compile(
        build_pipeline(parse_experiment(whole, "test"), LocalPlacement()), str(tmp_path / "pipeline.yaml")
    )
    spec = next(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text()))
    assert f"exec-{path.parent.name.replace('_', '-')}" in spec["deploymentSpec"]["executors"]
