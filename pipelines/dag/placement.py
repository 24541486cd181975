"""Where the stages run: as processes of this machine, or in pods as the experiment's `cluster` key says."""

from collections.abc import Callable
from typing import Any, cast

from kfp import kubernetes
from kfp.dsl import PipelineConfig, PipelineTask

from automixalign.config.cluster import (
    ENVIRONMENT_KEYS,
    SECRET_KEYS,
    TRAIN_JOB,
    TRAINING,
    Pod,
    Stage,
    TrainJobRequest,
    TrainJobSpec,
)
from automixalign.config.experiment import Experiment
from automixalign.storage import s3
from automixalign.training.checkpoints.folder import CHECKPOINTS_VARIABLE
from components.image import IMAGE

_READS_SOURCES: tuple[Stage, ...] = ("validate_config", "prepare_base_model", "prepare_data")
_SECRET_USERS: dict[str, tuple[Stage, ...]] = {
    "s3": (*_READS_SOURCES, "register", "publish"),
    "hub": (*_READS_SOURCES, "benchmark"),
    "judge": ("validate_config", "evaluate"),
}
"""The stages that get a Secret. Every stage gets MLflow's; stages with checkpoints in S3 also get S3's. Without
a judge, no stage gets the judge's."""
_NEVER_CACHED: tuple[Stage, ...] = ("validate_config", "register", "publish")
"""These stages read or change what is outside the DAG: the sources' content, the registry, the output."""
_RETRY_SECONDS = 10 * 365 * 24 * 3600
"""Limit for a stage and all its retries. Argo counts it from the first start (see `backend.md`), so a low limit
would end the second try of a long training. A stage's own limit is `timeout_seconds`."""


class Placement:
    """Makes the tasks of a pipeline."""

    pipeline_config: PipelineConfig | None = None
    cache = True

    def __call__(self, component: Callable[..., PipelineTask], **inputs: Any) -> PipelineTask:
        """Return the task of a component with these inputs."""
        task = component(**inputs)
        return task.set_caching_options(self.cache and _stage_of(component) not in _NEVER_CACHED)

    def fail_early(self, task: PipelineTask, before: PipelineTask) -> None:
        """Run a task that may fail before another one that does not need it, where tasks run one at a time."""


class LocalPlacement(Placement):
    """Makes tasks for kfp's local runner.

    Args:
        retries: how many times to retry a failed stage.
    """

    def __init__(self, retries: int = 0) -> None:
        self.retries = retries

    def __call__(self, component: Callable[..., PipelineTask], **inputs: Any) -> PipelineTask:
        task = super().__call__(component, **inputs)
        return task.set_retry(self.retries, "1s", 1) if self.retries else task

    def fail_early(self, task: PipelineTask, before: PipelineTask) -> None:
        before.after(task)


class ClusterPlacement(Placement):
    """Makes tasks for a cluster, each with the resources, nodes and Secrets of its pod.

    Args:
        experiment: the checked configuration.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.cluster = experiment.cluster
        self.train_job = self.cluster.train_job if experiment.training.nodes > 1 else None
        self.checkpoints = _checkpoint_folders(experiment)
        self.judged = experiment.evaluation.judge is not None
        self.cache = self.cluster.cache
        self.pipeline_config = PipelineConfig(ttl_seconds_after_finished=self.cluster.ttl_seconds)

    def __call__(self, component: Callable[..., PipelineTask], **inputs: Any) -> PipelineTask:
        task = super().__call__(component, **inputs)
        task.set_display_name(task.name.replace("-", " ").capitalize())
        stage = _stage_of(component)
        pod = self.cluster.pod(stage)
        uses_s3 = stage in _SECRET_USERS["s3"]
        if self.train_job and stage in TRAINING:
            # The job's nodes get the training's resources. This pod starts the job and waits for it.
            task.set_env_variable(TRAIN_JOB, self._train_job_request(self.train_job, pod).model_dump_json())
            pod, uses_s3 = self.cluster.default, True
        elif stage in self.checkpoints:
            task.set_env_variable(CHECKPOINTS_VARIABLE, self.checkpoints[stage])
            uses_s3 = True
        _set_resources(task, pod)
        _set_nodes(task, pod)
        _set_time_limits(task, pod)
        uses = {service: stage in stages for service, stages in _SECRET_USERS.items()}
        uses |= {"s3": uses_s3, "mlflow": True, "judge": self.judged and uses["judge"]}
        self._set_environment(task, uses)
        return task

    def _train_job_request(self, train_job: TrainJobSpec, pod: Pod) -> TrainJobRequest:
        return TrainJobRequest(
            **train_job.model_dump(),
            image=IMAGE,
            pod=pod,
            secrets=self.cluster.secrets,
            environment=self.cluster.environment,
            image_pull_secrets=self.cluster.image_pull_secrets,
        )

    def _set_environment(self, task: PipelineTask, uses: dict[str, bool]) -> None:
        for service, keys in SECRET_KEYS.items():
            secret = getattr(self.cluster.secrets, service)
            if secret and uses[service]:
                kubernetes.use_secret_as_env(task, secret, {key: key for key in keys}, optional=True)
        if self.cluster.environment:
            variables = {key: key for key in ENVIRONMENT_KEYS}
            kubernetes.use_config_map_as_env(task, self.cluster.environment, variables, optional=True)
        if self.cluster.image_pull_secrets:
            kubernetes.set_image_pull_secrets(task, self.cluster.image_pull_secrets)
        kubernetes.set_security_context(task, run_as_non_root=True)


def _stage_of(component: Callable[..., PipelineTask]) -> Stage:
    return cast(Stage, component.name.replace("-", "_"))  # type: ignore[attr-defined]


def _checkpoint_folders(experiment: Experiment) -> dict[Stage, str]:
    """Stage -> the S3 prefix of its checkpoints; none unless the run's output is in S3."""
    if experiment.output is None or not s3.is_uri(experiment.output.to):
        return {}
    stages = (*TRAINING, "specialist_losses") if experiment.specialist_losses.cross_fit else TRAINING
    return dict.fromkeys(stages, f"{experiment.output.to.rstrip('/')}/.checkpoints")


def _set_resources(task: PipelineTask, pod: Pod) -> None:
    if pod.cpu:
        task.set_cpu_request(pod.cpu)
    if pod.cpu_limit:
        task.set_cpu_limit(pod.cpu_limit)
    if pod.memory:
        task.set_memory_request(pod.memory).set_memory_limit(pod.memory)
    if pod.accelerators:
        task.set_accelerator_type(pod.accelerator).set_accelerator_limit(pod.accelerators)
    if pod.scratch:
        kubernetes.empty_dir_mount(task, "scratch", "/tmp", size_limit=pod.scratch)  # noqa: S108  a pod's own
    if pod.shared_memory:
        kubernetes.empty_dir_mount(
            task,
            "shared-memory",
            "/dev/shm",  # noqa: S108
            medium="Memory",
            size_limit=pod.shared_memory,
        )


def _set_nodes(task: PipelineTask, pod: Pod) -> None:
    for key, value in sorted(pod.node_selector.items()):
        kubernetes.add_node_selector(task, key, value)
    for toleration in pod.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))


def _set_time_limits(task: PipelineTask, pod: Pod) -> None:
    if pod.timeout_seconds:
        kubernetes.set_timeout(task, pod.timeout_seconds)
    if pod.retries.times:
        task.set_retry(
            pod.retries.times, f"{pod.retries.wait_seconds}s", pod.retries.factor, f"{_RETRY_SECONDS}s"
        )
