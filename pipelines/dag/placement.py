"""Where the steps run: on this machine as they are, or on a cluster as an experiment's `cluster` says."""

from collections.abc import Callable, Sequence
from typing import Any, cast

from kfp import kubernetes
from kfp.dsl import PipelineConfig, PipelineTask

from automixalign.config.cluster import (
    ENVIRONMENT_KEYS,
    SECRET_KEYS,
    TRAIN_JOB,
    TRAINING,
    Pod,
    Step,
    TrainJobRequest,
)
from automixalign.config.experiment import Experiment
from automixalign.storage import s3
from automixalign.training import checkpoints
from components.image import IMAGE

_READS_SOURCES: tuple[Step, ...] = ("validate_config", "prepare_base_model", "prepare_data")
_USES: dict[str, tuple[Step, ...]] = {
    "s3": (*_READS_SOURCES, "register", "publish"),
    "hub": _READS_SOURCES,
}
"""The steps that see a Secret. Every step tells MLflow what it did; those with checkpoints see S3's, too."""
_NEVER_CACHED: tuple[Step, ...] = ("validate_config", "register", "publish")
"""They look at or change what lies outside the DAG: the sources' content, the registry, the output."""


_LONG = 10 * 365 * 24 * 3600
"""Of a step and all its retries, in seconds. Argo counts its limit from the first start (see `backend.md`), so
that it would end a long training's second try; a step's own limit is `timeout_seconds`."""


class Placement:
    """Makes the tasks of a pipeline."""

    pipeline_config: PipelineConfig | None = None
    cache = True

    def __call__(self, component: Callable[..., PipelineTask], **inputs: Any) -> PipelineTask:
        """The task of a component with these inputs."""
        task = component(**inputs)
        return task.set_caching_options(self.cache and step_of(component) not in _NEVER_CACHED)


class OnThisMachine(Placement):
    """Makes the tasks of a pipeline for kfp's local runner.

    Args:
        retries: how often a failed step is tried again.
    """

    def __init__(self, retries: int = 0) -> None:
        self.retries = retries

    def __call__(self, component: Callable[..., PipelineTask], **inputs: Any) -> PipelineTask:
        task = super().__call__(component, **inputs)
        return task.set_retry(self.retries, "1s", 1) if self.retries else task


def step_of(component: Callable[..., PipelineTask]) -> Step:
    """The step that a component is."""
    return cast(Step, component.name.replace("-", "_"))  # type: ignore[attr-defined]


ON_THIS_MACHINE = OnThisMachine()


class OnCluster(Placement):
    """Makes the tasks of a pipeline, each with what its pod asks for.

    Args:
        experiment: its `cluster` says what, and `training.nodes` on how many pods a training runs.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.cluster, self.nodes = experiment.cluster, experiment.training.nodes
        self.checkpoints = _checkpoints_of(experiment)
        self.cache = self.cluster.cache
        self.pipeline_config = PipelineConfig(ttl_seconds_after_finished=self.cluster.ttl_seconds)

    def __call__(self, component: Callable[..., PipelineTask], **inputs: Any) -> PipelineTask:
        task = super().__call__(component, **inputs)
        task.set_display_name(task.name.replace("-", " ").capitalize())
        step = step_of(component)
        pod = self.cluster.pod(step)
        hands_over = self.nodes > 1 and step in TRAINING
        if hands_over:
            # The nodes get what the training asks for; this pod starts the job and waits for it.
            task.set_env_variable(TRAIN_JOB, self._train_job(pod).model_dump_json())
            pod = self.cluster.default
        elif step in self.checkpoints:
            task.set_env_variable(checkpoints.PLACE, self.checkpoints[step])
        _give_resources(task, pod)
        _choose_nodes(task, pod)
        _limit_time(task, pod)
        self._give_environment(task, step, hands_over)
        return task

    def _train_job(self, pod: Pod) -> TrainJobRequest:
        assert self.cluster.train_job is not None  # noqa: S101  the schema requires it
        return TrainJobRequest(
            **self.cluster.train_job.model_dump(),
            image=IMAGE,
            pod=pod,
            secrets=self.cluster.secrets,
            environment=self.cluster.environment,
            image_pull_secrets=self.cluster.image_pull_secrets,
        )

    def _give_environment(self, task: PipelineTask, step: Step, hands_over: bool) -> None:
        for kind, keys in SECRET_KEYS.items():
            name = getattr(self.cluster.secrets, kind)
            uses = step in _USES.get(kind, (step,)) or (
                kind == "s3" and (hands_over or step in self.checkpoints)
            )
            if name and uses:
                kubernetes.use_secret_as_env(task, name, _as_themselves(keys), optional=True)
        if self.cluster.environment:
            kubernetes.use_config_map_as_env(
                task, self.cluster.environment, _as_themselves(ENVIRONMENT_KEYS), optional=True
            )
        if self.cluster.image_pull_secrets:
            kubernetes.set_image_pull_secrets(task, self.cluster.image_pull_secrets)
        kubernetes.set_security_context(task, run_as_non_root=True)


def _checkpoints_of(experiment: Experiment) -> dict[Step, str]:
    """Where each step that trains keeps its checkpoints: below the run's output, hidden from its readers."""
    if experiment.output is None or not experiment.output.to.startswith(s3.SCHEME):
        return {}
    steps = (*TRAINING, "specialist_losses") if experiment.specialist_losses.cross_fit else TRAINING
    return dict.fromkeys(steps, f"{experiment.output.to.rstrip('/')}/.checkpoints")


def _as_themselves(keys: Sequence[str]) -> dict[str, str]:
    return {key: key for key in keys}


def _give_resources(task: PipelineTask, pod: Pod) -> None:
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


def _choose_nodes(task: PipelineTask, pod: Pod) -> None:
    for key, value in sorted(pod.node_selector.items()):
        kubernetes.add_node_selector(task, key, value)
    for toleration in pod.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))


def _limit_time(task: PipelineTask, pod: Pod) -> None:
    if pod.timeout_seconds:
        kubernetes.set_timeout(task, pod.timeout_seconds)
    if pod.retries.times:
        task.set_retry(pod.retries.times, f"{pod.retries.wait_seconds}s", pod.retries.factor, f"{_LONG}s")
