"""Compiled pipelines are deterministic, equal to the committed ones, thin, and placed as configured."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from kfp import compiler
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from automixalign.config.cluster import TRAIN_JOB, Stage, TrainJobRequest
from automixalign.config.experiment import Experiment, parse_experiment
from automixalign.preflight.validate import plan
from automixalign.system.errors import ConfigError
from automixalign.training.checkpoints.folder import CHECKPOINTS_VARIABLE
from pipelines.cli.options import load_experiment
from pipelines.dag.compiling import write_pipeline
from pipelines.dag.pipeline import build_pipeline
from pipelines.dag.placement import LocalPlacement
from tests.pipeline.compiled import EXPERIMENTS, GOLDEN, compile_experiment, golden, pipeline, read_documents

ROOT = Path(__file__).parents[2]
COMPONENTS = sorted((ROOT / "components").glob("*/component.py"))


def test_the_committed_pipeline_is_the_compiled_quickstart(tmp_path: Path) -> None:
    write_pipeline(load_experiment("quickstart"), tmp_path / "pipeline.yaml")
    committed = (ROOT / "pipelines" / "automixalign.yaml").read_text()
    assert (tmp_path / "pipeline.yaml").read_text() == committed, "run `make compile` and commit the change"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_excerpts_equal_the_golden_files(name: str) -> None:
    assert golden(name) == (GOLDEN / f"{name}.yaml").read_text(), "run `make compile` and read the difference"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_container_has_the_settings_of_its_stage(name: str) -> None:
    """Read from the YAML, executor by executor, without the code that wrote it."""
    spec, platform = pipeline(name)
    cluster = EXPERIMENTS[name].cluster
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    executors = spec["deploymentSpec"]["executors"]
    assert pods.keys() == executors.keys()
    for label, executor in executors.items():
        stage = label.removeprefix("exec-").rstrip("-0123456789").replace("-", "_")
        trains = stage in ("train_specialist", "train_generalist")
        starts_job = EXPERIMENTS[name].training.nodes > 1 and trains
        settings = cluster.default if starts_job else cluster.pod(stage)
        resources, pod = executor["container"].get("resources", {}), pods[label]
        assert resources.get("resourceCpuRequest") == settings.cpu
        assert resources.get("resourceCpuLimit") == settings.cpu_limit
        assert resources.get("resourceMemoryRequest") == resources.get("resourceMemoryLimit") == settings.memory
        assert int(resources.get("accelerator", {}).get("resourceCount", "0")) == settings.accelerators
        volumes = {volume["mountPath"]: volume["sizeLimit"] for volume in pod.get("emptyDirMounts", [])}
        sizes = {"/tmp": settings.scratch, "/dev/shm": settings.shared_memory}  # noqa: S108  paths in a pod
        assert volumes == {path: size for path, size in sizes.items() if size}
        assert int(pod.get("activeDeadlineSeconds", 0)) == (settings.timeout_seconds or 0)
        assert pod.get("nodeSelector", {}).get("labels", {}) == settings.node_selector
        assert len(pod.get("tolerations", [])) == len(settings.tolerations)
        assert pod["securityContext"] == {"runAsNonRoot": True}
        secrets = {secret["secretName"] for secret in pod.get("secretAsEnv", [])}
        reads = stage in ("validate_config", "prepare_base_model", "prepare_data")
        has_checkpoints = trains and EXPERIMENTS[name].output is not None
        uses_s3 = reads or starts_job or has_checkpoints or stage in ("register", "publish")
        names = cluster.secrets
        expected = {
            names.mlflow,
            names.s3 if uses_s3 else None,
            names.hub if reads or stage == "benchmark" else None,
            names.judge if name == "judged" and stage in ("validate_config", "evaluate") else None,
        }
        assert secrets == expected - {None}
        assert all(secret["optional"] for secret in pod.get("secretAsEnv", []))


def _variable(spec: dict[str, Any], name: str) -> dict[str, str]:
    """The value of an environment variable, by the executors that have it."""
    return {
        label: variable["value"]
        for label, executor in spec["deploymentSpec"]["executors"].items()
        for variable in executor["container"].get("env", [])
        if variable["name"] == name
    }


def test_a_training_on_two_nodes_gets_the_request_for_its_job() -> None:
    spec, _ = pipeline("two-nodes")
    executors = spec["deploymentSpec"]["executors"]
    requests = _variable(spec, TRAIN_JOB)
    assert requests.keys() == {"exec-train-specialist", "exec-train-generalist"}
    job = TrainJobRequest.model_validate_json(requests["exec-train-generalist"])
    assert (job.pod.accelerators, job.pod.memory) == (8, "512Gi")
    assert (job.storage, job.image) == ("s3://results/jobs", executors["exec-compare"]["container"]["image"])


@pytest.mark.parametrize(
    ("changes", "stages"),
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
def test_checkpoints_are_below_an_s3_output(changes: dict[str, Any], stages: set[str], tmp_path: Path) -> None:
    spec, platform = compile_experiment(parse_experiment(_data(**changes), "test"), tmp_path)
    folders = _variable(spec, CHECKPOINTS_VARIABLE)
    assert folders == {f"exec-{stage}": "s3://results/run/.checkpoints" for stage in stages}
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for label in folders:
        assert "automixalign-s3" in {secret["secretName"] for secret in pods[label]["secretAsEnv"]}


def test_trainings_on_several_nodes_have_no_checkpoints_in_s3(tmp_path: Path) -> None:
    data = EXPERIMENTS["two-nodes"].model_dump(mode="json") | {"output": "s3://results/run"}
    spec, _ = compile_experiment(parse_experiment(data, "test"), tmp_path)
    assert _variable(spec, CHECKPOINTS_VARIABLE) == {}


def test_time_to_live_and_retries_are_compiled_in() -> None:
    spec, platform = pipeline("eight-gpus")
    assert "604800" in json.dumps(platform["platforms"]["kubernetes"]["pipelineConfig"])
    assert spec["root"]["dag"]["tasks"]["compare"]["retryPolicy"]["maxRetryCount"] == 2
    spec, _ = pipeline("many-tasks")
    assert "retryPolicy" not in spec["root"]["dag"]["tasks"]["compare"]


def test_only_stages_that_depend_on_the_outside_are_never_cached() -> None:
    spec, _ = pipeline("one-gpu")
    dags = [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
    cached = {
        task["componentRef"]["name"]: task.get("cachingOptions", {}).get("enableCache", False)
        for dag in dags
        for task in dag["tasks"].values()
    }
    uncached = {"comp-validate-config", "comp-register", "comp-publish"}
    stages = {f"comp-{path.parent.name.replace('_', '-')}" for path in COMPONENTS} & cached.keys()
    assert {stage for stage in stages if not cached[stage]} == uncached
    spec, _ = pipeline("lora")
    assert "enableCache" not in json.dumps(spec["root"]["dag"]["tasks"]["prepare-data"]), "cache: false"


@pytest.mark.parametrize(
    ("preset", "gpus"), [("zephyr-7b", "8"), ("zephyr-7b-qlora", "1"), ("qwen3-lora", "1")]
)
def test_the_presets_for_a_cluster_compile(preset: str, gpus: str, tmp_path: Path) -> None:
    experiment = load_experiment(preset, tasks=["helpful=org/helpful", "harmless=s3://data/harmless/"])
    spec, _ = compile_experiment(experiment, tmp_path)
    resources = spec["deploymentSpec"]["executors"]["exec-train-generalist"]["container"]["resources"]
    assert resources["accelerator"]["resourceCount"] == gpus


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_kfp_can_read_the_pipeline(name: str) -> None:
    spec, _ = pipeline(name)
    json_format.ParseDict(spec, PipelineSpec())
    config = spec["root"]["inputDefinitions"]["parameters"]["config"]
    assert parse_experiment(json.loads(config["defaultValue"]), "default") == EXPERIMENTS[name]


def _data(**changes: Any) -> dict[str, Any]:
    return EXPERIMENTS["cpu"].model_dump(mode="json", exclude={"merges", "cluster"}) | {"merges": []} | changes


def _local_spec(experiment: Experiment, folder: Path) -> Any:
    compiler.Compiler().compile(build_pipeline(experiment, LocalPlacement()), str(folder / "pipeline.yaml"))
    return read_documents(folder / "pipeline.yaml")[0]


def test_optional_stages_exist_only_if_they_are_configured(tmp_path: Path) -> None:
    changes = {
        "merges": {"merges": ["linear"]},
        "benchmark": {"benchmarks": ["toxigen"]},
        "register": {"registry": {"name": "golden"}},
        "publish": {"output": "s3://results/golden"},
    }
    tasks = {}
    for stage, change in ({"": {}} | changes).items():
        spec = _local_spec(parse_experiment(_data(**change), "test"), tmp_path)
        tasks[stage] = set(spec["root"]["dag"]["tasks"])
        assert (f"comp-{stage}" in spec["components"]) == bool(stage)
    assert {stage: tasks[stage] - tasks[""] for stage in changes} == {stage: {stage} for stage in changes}


def test_an_experiment_with_other_parts_is_refused_by_the_pipeline() -> None:
    text = json.dumps(_data(registry={"name": "golden"}))
    with pytest.raises(ConfigError, match=r"experiment with generalists and merges, and .* registry"):
        plan(text, ["generalists", "merges"])


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
        ({"steps": {"evaluate": {"accelerators": 4}}}, "4 accelerators for evaluation.processes: 1"),
    ],
)
def test_an_invalid_cluster_key_is_refused_by_name(cluster: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_experiment(_data(cluster=cluster), "test")


def test_processes_that_exchange_gradients_need_shared_memory() -> None:
    data, pod = _data(), {"accelerators": 2}
    data["training"]["processes"] = data["evaluation"]["processes"] = 2
    steps = {"evaluate": pod, "train_generalist": pod, "train_specialist": {**pod, "shared_memory": "1Gi"}}
    with pytest.raises(ConfigError, match=r"cluster\.steps\.train_generalist\.shared_memory: its 2 processes"):
        parse_experiment({**data, "cluster": {"steps": steps}}, "test")
    parse_experiment({**data, "cluster": {"steps": steps, "default": {"shared_memory": "1Gi"}}}, "test")


def test_a_stage_has_the_default_s_values_for_keys_that_it_does_not_set() -> None:
    cluster = {
        "default": {"cpu": 1, "memory": "4Gi", "retries": {"times": 1}},
        "steps": {"evaluate": {"cpu": "1.5", "retries": {"times": 0}}},
    }
    pods = parse_experiment(_data(cluster=cluster), "test").cluster
    assert (pods.pod("evaluate").cpu, pods.pod("evaluate").memory) == ("1.5", "4Gi")
    assert (pods.pod("evaluate").retries.times, pods.pod("compare").retries.times) == (0, 1)


def test_every_component_is_a_stage_of_the_cluster_configuration() -> None:
    assert set(Stage.__args__) == {path.parent.name for path in COMPONENTS}


def _is_text(node: ast.AST) -> bool:
    """Whether the node is a docstring."""
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


def test_components_are_thin_and_in_the_dag(tmp_path: Path) -> None:
    release = {"registry": {"name": "golden"}, "output": "s3://results/golden"}
    whole = _data(**release, merges=["linear"], benchmarks=["toxigen"])
    whole["methods"].append({"method": "uniform", "name": "warm", "init": "linear"})
    spec = _local_spec(parse_experiment(whole, "test"), tmp_path)
    for path in COMPONENTS:
        source, stage = path.read_text(), path.parent.name
        docstring = max((node.value.value for node in ast.walk(ast.parse(source)) if _is_text(node)), key=len)
        assert len(source.splitlines()) - len(docstring.splitlines()) <= 50, stage
        assert f"exec-{stage.replace('_', '-')}" in spec["deploymentSpec"]["executors"]


def test_with_a_judge_every_evaluation_but_the_first_gets_that_of_the_reference() -> None:
    def evaluations(name: str) -> dict[str, bool]:
        spec = pipeline(name)[0]
        return {
            dag: "baseline" in task["inputs"]["artifacts"]
            for dag, component in {"root": spec["root"], **spec["components"]}.items()
            for task in component.get("dag", {}).get("tasks", {}).values()
            if task["componentRef"]["name"].startswith("comp-evaluate")
        }

    judged = evaluations("judged")
    assert judged.pop("root") is False
    assert list(judged.values()) == [True] * 4, "specialists, generalists, warm ones and merges"
    assert not any(evaluations("every-part").values())
