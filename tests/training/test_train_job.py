"""A training on several nodes, as a TrainJob that a stub of Kubeflow Trainer checks and runs."""

import json
import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubernetes.config import incluster_config

from automixalign.config.cluster import TRAIN_JOB
from automixalign.data.store import read_split
from automixalign.models.load import load_model
from automixalign.scoring import caches
from automixalign.scoring.scorer import Scorer
from automixalign.steps.jobs.job import result_file
from automixalign.steps.jobs.launch import start_processes
from automixalign.steps.step import run_step
from automixalign.storage import files
from automixalign.system.errors import AutoMixAlignError, CacheError, ConfigError, StorageError, TrainingError
from automixalign.training.generalist import GeneralistTraining
from automixalign.training.launch import train
from automixalign.training.nodes import node, server, train_job
from automixalign.training.nodes.handover import Exchange, pack
from automixalign.training.specialist import SpecialistTraining
from tests.training.common import CLOCK, assert_same, generalist
from tests.training.trainer_stub import NAMESPACE, Stub, condition, request, running

Data = dict[str, Any]
COMPLETE = condition("Complete", "AllJobsCompleted", "jobset completed successfully")
FORBIDDEN = 'trainjobs.trainer.kubeflow.org is forbidden: User "me" cannot create resource "trainjobs"'
NOT_FOUND = (404, "not found")


@pytest.fixture
def bucket(s3: Any) -> str:
    name = f"train-job-{uuid.uuid4().hex}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def text_inputs(tmp_path: Path) -> Data:
    """Files that replace the inputs where nothing is trained."""
    folder = tmp_path / "inputs"
    for name in ("data", "reference_logps", "base_model", "losses"):
        files.write_text(folder / name / "file", name)
    inputs = {name: folder / name for name in ("data", "reference_logps", "base_model")}
    return {**inputs, "losses": [folder / "losses"]}


def on_nodes(output: Path, inputs: Data, **changes: Any) -> GeneralistTraining:
    return generalist(output, inputs, **{"nodes": 2, **changes})


def environment(*keys: str) -> dict[str, str]:
    return {key: os.environ[key] for key in keys}


@pytest.fixture
def storage(stub: Stub, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The environment of a stage's pod and of its nodes; the prefix of its trainings."""
    prefix = f"s3://{bucket}/jobs"
    monkeypatch.setenv(TRAIN_JOB, request({"cpu": "1"}, storage=prefix).model_dump_json())
    stub.secrets["automixalign-s3"] = environment("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    stub.config_maps["automixalign-env"] = environment("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
    with run_step("train_generalist", "AMA-R_task"):
        yield prefix


@dataclass
class Stage:
    """A stage whose nodes train nothing; the test sets the status of its job."""

    stub: Stub
    storage: str
    training: GeneralistTraining
    exchange: Exchange
    nodes: Path
    """A folder of the nodes."""

    def run(self) -> Data:
        return train_job.run(self.training)

    def complete(self) -> Data:
        """Upload what a first node would have trained; return the status of a complete job."""
        files.write_text(self.nodes / "model" / "weights", "trained")
        files.write_jsonl(self.nodes / "trajectory.jsonl", [{"step": 1}])
        files.write_json(self.nodes / result_file(0), {"steps": 1})
        self.exchange.upload_trained(self.nodes)
        self.exchange.upload_result(self.nodes)
        return COMPLETE


@pytest.fixture
def stage(storage: str, stub: Stub, text_inputs: Data, tmp_path: Path) -> Stage:
    training = on_nodes(tmp_path / "out", text_inputs)
    return Stage(stub, storage, training, Exchange.of(pack(training)[0], storage), tmp_path / "trained")


@pytest.mark.usefixtures("storage")
@pytest.mark.slow
def test_two_nodes_train_what_one_process_trains(
    stub: Stub, inputs: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    two = train(on_nodes(tmp_path / "two", inputs))
    one = train(on_nodes(tmp_path / "one", inputs, nodes=1))
    assert {**one, **CLOCK} == {**two, **CLOCK}
    assert_same(tmp_path / "one", tmp_path / "two")

    (job,) = stub.created
    name = job["metadata"]["name"]
    assert name.startswith("train-ama-r-task-")
    assert stub.requests[:2] == [f"create {name}", f"get {name}"], "the first request found no job"
    assert stub.requests[-1] == f"delete {name}"
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in json.dumps(job)
    log = capfd.readouterr().err
    assert f"TrainJob {name} (namespace {NAMESPACE}) runs on 2 nodes" in log
    assert f"kubectl logs --namespace {NAMESPACE}" in log
    assert not list((tmp_path / "two").glob(".*")), "no scratch remains"

    # A stage that is started again finds the result, and needs no cluster.
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert train(on_nodes(tmp_path / "again", inputs)) == two
    for part in ("model/model.safetensors", "model/tokenizer.json", "log.jsonl"):
        assert files.digest(tmp_path / "again" / part) == files.digest(tmp_path / "two" / part)


@pytest.mark.usefixtures("storage")
@pytest.mark.slow
def test_the_first_node_scores_the_pairs_of_a_specialist(
    stub: Stub, s3: Any, bucket: str, inputs: Data, tmp_path: Path
) -> None:
    whole = on_nodes(tmp_path, inputs, processes=2, batch_size=8, micro_batch_size=2)
    settings = {**whole.settings.model_dump(exclude={"method", "plugins"}), "score_precision": "fp32"}
    paths = {**whole.model_dump(exclude={"losses", "settings", "start"}), "scores": tmp_path / "scores"}
    specialist = SpecialistTraining.model_validate({**paths, "settings": settings, "task": "format"})
    facts = train(specialist)
    scorer = Scorer(load_model(specialist.output, specialist.base_model), 4, "fp32")
    scores = scorer.scores(read_split(specialist.data, "format", "train"))
    assert caches.read_cache(tmp_path / "scores", "train") == scores

    # Without its last publication, it is as after a scoring that failed: the model is not trained again.
    result = f"jobs/trainings/{stub.created[0]['metadata']['name'].removeprefix('train-')}/result/"
    for item in s3.list_objects_v2(Bucket=bucket, Prefix=result)["Contents"]:
        s3.delete_object(Bucket=bucket, Key=item["Key"])
    assert train(specialist) == facts, "with the seconds of the first training"
    assert len(stub.created) == 2
    assert caches.read_cache(tmp_path / "scores", "train") == scores


def test_the_processes_of_a_node_share_its_threads_in_training_and_scoring(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    threads: list[str] = []
    for launcher in ("torch.distributed.run.main", "accelerate.commands.launch.launch_command"):
        monkeypatch.setattr(launcher, lambda _: threads.append(os.environ["OMP_NUM_THREADS"]))
    monkeypatch.setattr("torch.get_num_threads", lambda: int(os.environ["OMP_NUM_THREADS"]))
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    node._start_workers(tmp_path, 2)
    start_processes(2, ["script.py"])
    assert threads == ["4", "4"]


@pytest.mark.slow
def test_the_error_of_a_node_is_the_error_of_the_stage(
    storage: str, stub: Stub, inputs: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster would restart the nodes again and again; the stage deletes the job at the first error."""
    monkeypatch.setenv(TRAIN_JOB, request({}, storage=storage).model_dump_json())
    incomplete = {**inputs, "losses": inputs["losses"][:1]}
    with pytest.raises(CacheError, match="there are no specialist losses of task format"):
        train(on_nodes(tmp_path / "out", incomplete))
    assert not (tmp_path / "out").exists()
    stub.stop()
    assert not stub.killed, "SIGTERM ends the nodes"


def test_a_restarted_stage_follows_the_running_job(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    stub = stage.stub
    stub.statuses = [running(1)]
    stub.faults["get"] = [NOT_FOUND] + [(503, "")] * 4
    with pytest.raises(
        TrainingError, match=r"answers 503: .*; the TrainJob may still run: start the stage again"
    ):
        stage.run()
    assert "retrying" in capfd.readouterr().err
    assert len(stub.jobs) == 1, "the job still runs"
    stub.statuses = [running(0), running(1), stage.complete]
    assert stage.run() == {"steps": 1}
    assert len(stub.created) == 1
    assert "runs already" in capfd.readouterr().err
    assert (stage.training.output / "weights").read_text() == "trained"
    assert files.read_jsonl(stage.training.trajectory) == [{"step": 1}]
    stub.stop()
    assert not stub.jobs


@pytest.mark.parametrize(
    ("status", "memory"),
    [(condition("Failed", "FailedJobs", "jobset failed"), None), (running(0), "64Gi")],
    ids=["it has failed", "the pods have other settings"],
)
def test_an_obsolete_job_is_deleted_first(
    status: Data, memory: str | None, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = stage.stub
    stub.statuses = [lambda: stage.complete() if len(stub.created) == 2 else status]
    stub.faults["get"] = [NOT_FOUND] + [(500, "")] * 4
    with pytest.raises(TrainingError):
        stage.run()
    stage.exchange.report_error(CacheError("of an earlier attempt"), "0", 1)
    pod = {"cpu": "1", **({"memory": memory} if memory else {})}
    monkeypatch.setenv(TRAIN_JOB, request(pod, storage=stage.storage).model_dump_json())
    assert stage.run() == {"steps": 1}
    assert len(stub.created) == 2
    assert stub.created[1]["spec"]["trainer"]["resourcesPerNode"].get("limits", {}).get("memory") == memory
    assert stage.exchange.first_error() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_stage_deletes_the_job(number: signal.Signals, stage: Stage) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def send_signal() -> Data:
        os.kill(os.getpid(), number)
        return running(1)

    stage.stub.statuses = [running(0), send_signal, running(1)]
    with pytest.raises(SystemExit if number == signal.SIGTERM else KeyboardInterrupt) as end:
        stage.run()
    if number == signal.SIGTERM:
        assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert stage.stub.requests[-1].startswith("delete ")


@pytest.mark.parametrize(
    ("status", "reports", "kind", "message"),
    [
        (
            condition("Failed", "DeadlineExceeded", "too long"),
            [],
            TrainingError,
            r"failed \(DeadlineExceeded\): too",
        ),
        (
            condition("Failed", "FailedJobs", "jobset failed"),
            [(3, TrainingError("one of the processes failed: gone")), (2, StorageError("s3://x is full"))],
            StorageError,
            "^s3://x is full\nthen node 0 failed with TrainingError: one of the processes failed: gone$",
        ),
        (running(1), [(5, ConfigError("no GPU"))], ConfigError, "^no GPU$"),
        (None, [], TrainingError, "was deleted before its end"),
    ],
    ids=["deadline", "first of two", "before the job fails", "deleted"],
)
def test_the_reason_of_a_failed_job_is_raised(
    status: Data | None,
    reports: list[tuple[int, AutoMixAlignError]],
    kind: type[Exception],
    message: str,
    stage: Stage,
) -> None:
    def report() -> Data:
        for nanoseconds, error in reports:
            stage.exchange.report_error(error, "0", nanoseconds)
        if status is None:
            stage.stub.jobs.clear()
        return status or running(1)

    stage.stub.statuses = [running(0), report, status or running(1)]
    with pytest.raises(kind, match=message):
        stage.run()
    stage.stub.stop()
    assert not stage.stub.jobs


def test_a_queue_that_suspends_a_job_is_logged(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    suspended = condition("Suspended", "Suspended", "TrainJob is suspended")
    stage.stub.statuses = [suspended, running(0), stage.complete]
    stage.run()
    log = capfd.readouterr().err
    assert log.index("is suspended, for example by a queue") < log.index("waits for its 2 nodes to start")


@pytest.mark.parametrize(
    ("verb", "fault", "message"),
    [
        (
            "get",
            (403, FORBIDDEN),
            r"does not get .* namespace team-a: trainjobs.* needs a Role to create, get and del",
        ),
        ("create", (403, FORBIDDEN), r"does not create .*\(403\); the pod's service account needs a Role"),
        ("create", (404, ""), r"\(404\); check that the namespace exists; it needs Kubeflow Trainer 2.3"),
        (
            "create",
            (400, 'unknown field "spec.runtimePatches"'),
            r"runtimePatches.*it needs Kubeflow Trainer 2.3",
        ),
        ("create", (401, "Unauthorized"), "check the service account's token"),
        ("create", (422, "spec.x: Invalid value"), r"spec.x: Invalid value \(422\); check 'cluster'"),
        ("runtime", None, r"must be created before .* check 'cluster', and that 'cluster.train_job.runt"),
    ],
    ids=["get forbidden", "create forbidden", "no Trainer", "old Trainer", "no token", "invalid", "no runtime"],
)
def test_refusals_are_explained(verb: str, fault: tuple[int, str] | None, message: str, stage: Stage) -> None:
    if fault is None:
        stage.stub.runtimes = {"deepspeed-distributed"}
    else:
        stage.stub.faults[verb] = [fault]
    with pytest.raises(ConfigError, match=message):
        stage.run()
    assert not any(call.startswith("delete") for call in stage.stub.requests)


def test_requests_to_a_silent_server_are_repeated(stage: Stage) -> None:
    stage.stub.statuses = [running(1), stage.complete]
    stage.stub.faults = {
        "get": [NOT_FOUND, (500, "etcdserver: leader changed"), (429, ""), (503, "")],
        "create": [(500, "failed calling webhook"), (504, "")],
    }
    assert stage.run() == {"steps": 1}
    assert len(stage.stub.created) == 1


def test_an_unreachable_cluster_is_named(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubeconfig = Path(os.environ["KUBECONFIG"])
    kubeconfig.write_text(kubeconfig.read_text().replace(stage.stub.url, "http://127.0.0.1:9"))
    with pytest.raises(TrainingError, match="the Kubernetes API cannot be reached"):
        stage.run()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="neither a service account here nor a kubeconfig"):
        stage.run()


def test_errors_of_several_nodes_come_in_their_order(bucket: str) -> None:
    exchange = Exchange(f"s3://{bucket}/trainings/x")
    assert exchange.first_error() is None
    exchange.report_error(TrainingError("connection closed"), "0", 1_700_000_000_000_000_002)
    exchange.report_error(CacheError("no cache"), "11", 1_700_000_000_000_000_001)
    error = exchange.first_error()
    assert isinstance(error, CacheError)
    assert str(error) == "no cache"
    assert error.__notes__ == ["then node 0 failed with TrainingError: connection closed"]
    exchange.delete_errors()
    assert exchange.first_error() is None


def test_a_pod_asks_its_cluster_as_its_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("token", "ca.crt", "namespace"):
        (tmp_path / name).write_text(f"the-{name}")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(server, "_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    jobs = server.TrainJobs()
    assert jobs.namespace == "the-namespace"
    configuration = jobs._api.api_client.configuration
    assert (configuration.host, configuration.ssl_ca_cert) == ("https://10.0.0.1:443", str(tmp_path / "ca.crt"))
    assert configuration.get_api_key_with_prefix("authorization") == "bearer the-token"


def test_several_nodes_need_a_cluster(
    text_inputs: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRAIN_JOB, raising=False)
    message = r"training.nodes: 2 nodes need Kubeflow Trainer.*set training.nodes: 1"
    with pytest.raises(ConfigError, match=message):
        train(on_nodes(tmp_path, text_inputs))
    monkeypatch.setenv(TRAIN_JOB, '{"image": "x"}')
    with pytest.raises(ConfigError, match="AMA_TRAIN_JOB is not what this version writes"):
        train(on_nodes(tmp_path, text_inputs))


def test_the_id_of_a_training_names_what_determines_it(text_inputs: Data, tmp_path: Path) -> None:
    def name(inputs: Data, **changes: Any) -> str:
        return pack(on_nodes(tmp_path / "anywhere", inputs, **changes))[0].id

    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "inputs", moved)
    elsewhere = {key: moved / key for key in ("data", "reference_logps", "base_model")}
    elsewhere["losses"] = [moved / "losses"]
    first = name(text_inputs)
    assert name(elsewhere) == first, "paths do not count"
    files.write_text(moved / "base_model" / ".hidden", "x")
    assert name(elsewhere) == first
    assert name(text_inputs, beta=0.3) != first
    files.write_text(moved / "losses" / "file", "other")
    assert name(elsewhere) != first
    with pytest.raises(StorageError, match=r"losses/0: there is no file in .*nowhere"):
        name({**text_inputs, "losses": [tmp_path / "nowhere"]})


def test_the_pairs_of_a_packed_specialist_are_sorted(text_inputs: Data, tmp_path: Path) -> None:
    whole = on_nodes(tmp_path, text_inputs)
    pairs = [f"pair-{number}" for number in range(50)]
    part = SpecialistTraining(
        **whole.model_dump(exclude={"losses", "settings", "start"}),
        settings=whole.settings.model_dump(exclude={"method", "plugins"}),
        task="format",
        pair_ids=frozenset(pairs),
    )
    assert pack(part)[0].job.job["pair_ids"] == sorted(pairs)


def test_inputs_are_uploaded_once_and_arrive_complete(
    bucket: str, s3: Any, text_inputs: Data, tmp_path: Path
) -> None:
    storage = f"s3://{bucket}/jobs/"
    for learning_rate in (1e-2, 1e-3):
        training = on_nodes(tmp_path / "out", text_inputs, learning_rate=learning_rate)
        handover, sources = pack(training)
        Exchange.of(handover, storage).send(handover, sources)
    keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert sum(key.startswith("jobs/files/") for key in keys) == 4, "two trainings share their inputs"
    assert sum(key.endswith("/training.json") for key in keys) == 2
    texts = [s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode() for key in keys]
    assert not any(str(tmp_path) in text for text in texts)
    received = Exchange.of(handover, storage).receive(tmp_path / "node")
    assert isinstance(received, GeneralistTraining)
    assert received.settings == training.settings
    assert (received.losses[0] / "file").read_text() == "losses"
    assert received.output == tmp_path / "node" / "model"
    damaged = handover.inputs.files["inputs/data/file"].sha256
    s3.put_object(Bucket=bucket, Key=f"jobs/files/{damaged}", Body=b"dada")
    with pytest.raises(StorageError, match="is not what was stored"):
        Exchange.of(handover, storage).receive(tmp_path / "another")


def test_other_code_on_a_node_is_refused(bucket: str, text_inputs: Data, tmp_path: Path) -> None:
    handover, sources = pack(on_nodes(tmp_path / "out", text_inputs))
    older = handover.model_copy(update={"library": "0" * 16})
    exchange = Exchange.of(older, f"s3://{bucket}")
    with pytest.raises(StorageError, match=r"training.json does not exist"):
        exchange.receive(tmp_path / "node")
    exchange.send(older, sources)
    with pytest.raises(ConfigError, match="the node runs other code"):
        exchange.receive(tmp_path / "node")
