"""Where the stages of an experiment run on a cluster: what each pod requests, and where its secrets are.

This changes where and how fast a stage runs, never what it computes. So no stage's settings hold it.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from automixalign.system.schema import Count, Flag, Natural, Schema

Stage = Literal[
    "validate_config",
    "prepare_base_model",
    "prepare_data",
    "reference_logps",
    "train_specialist",
    "evaluate",
    "benchmark",
    "specialist_losses",
    "gather_specialists",
    "train_generalist",
    "merge_specialists",
    "gather_merges",
    "compare",
    "register",
    "publish",
]
"""The stages of the DAG, by the names of their components."""

TRAINING: tuple[Stage, ...] = ("train_specialist", "train_generalist")
"""The stages that run `training.processes`."""
SCORING: tuple[Stage, ...] = ("reference_logps", "evaluate")
"""The stages that run `evaluation.processes`."""


def _as_text(value: Any) -> Any:
    """`cpu: 4` means `cpu: "4"`."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


_AS_TEXT = BeforeValidator(_as_text, json_schema_input_type=str | float)

Cpu = Annotated[str, _AS_TEXT, StringConstraints(pattern=r"^([1-9]\d*m?|[1-9]\d*\.\d+|0?\.\d*[1-9]\d*)$")]
"""Cores, or thousandths of one: `2`, `0.5`, `500m`."""
Memory = Annotated[str, BeforeValidator(_as_text), StringConstraints(pattern=r"^[1-9]\d*(Mi|Gi|Ti|M|G|T)$")]
"""Bytes with a unit: `16Gi`."""
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
"""The name of a Secret or ConfigMap in the namespace of the pods."""
LabelKey = Annotated[
    str,
    StringConstraints(pattern=r"^([a-z0-9][-a-z0-9.]{0,252}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"),
]
LabelValue = Annotated[
    str,
    _AS_TEXT,
    StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"),
]


SECRET_KEYS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "mlflow": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "hub": ("HF_TOKEN",),
    "judge": ("OPENAI_API_KEY",),
}
"""The keys of each Secret of `Secrets`. A stage sees them as environment variables of the same names."""
ENVIRONMENT_KEYS = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "MLFLOW_TRACKING_URI")
"""The keys of the ConfigMap `environment`."""
TRAIN_JOB = "AMA_TRAIN_JOB"
"""The environment variable that holds a `TrainJobRequest` as JSON."""


class Toleration(Schema):
    """Lets a pod run on nodes with a taint, in Kubernetes' terms."""

    key: LabelKey | None = None
    """Key of the taint; without one, every taint matches."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """Whether the taint's value must equal `value`."""
    value: LabelValue | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; without one, every effect matches."""
    toleration_seconds: Natural | None = None
    """How long the pod stays on a node that gets the taint."""

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.key is None and self.operator != "Exists":
            raise ValueError("without 'key' the operator must be 'Exists'")
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("'value' goes with the operator 'Equal' only")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError("'toleration_seconds' goes with the effect 'NoExecute' only")
        return self


class Retries(Schema):
    """How often Kubeflow retries a failed stage, and how long it waits before each retry."""

    times: Annotated[int, Field(strict=True, ge=0, le=10)] = 2
    """The largest number of retries."""
    wait_seconds: Natural = 30
    """The wait before the first retry."""
    factor: Annotated[int, Field(strict=True, ge=1, le=10)] = 2
    """Each further wait is longer by this factor."""


class Pod(Schema):
    """What the pod of a stage requests. The cluster decides about a key that is not set."""

    cpu: Cpu | None = None
    """Cores requested: `2`, `0.5`, `500m`."""
    cpu_limit: Cpu | None = None
    """Limit of the cores, in the same form. The stage then has as many threads, at least one; without a limit,
    it has one for each core of the node."""
    memory: Memory | None = None
    """Request and limit of the memory: `16Gi`. They are equal, because a node without memory first ends the
    pods that use more than their request."""
    scratch: Memory | None = None
    """Size of a volume at /tmp, for caches and temporary files. KFP cannot request `ephemeral-storage`. It
    keeps artifacts in its own volumes."""
    shared_memory: Memory | None = None
    """Size of a memory volume at /dev/shm, which NCCL and data loaders share between processes. It counts
    towards `memory`."""
    accelerator: Annotated[str, StringConstraints(min_length=1)] = "nvidia.com/gpu"
    """Kubernetes' name of the accelerator."""
    accelerators: Natural = 0
    """The number of accelerators."""
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    """Labels that a node must have."""
    tolerations: list[Toleration] = Field(default_factory=list)
    """Taints that a node may have."""
    timeout_seconds: Count | None = None
    """How long the stage may run."""
    retries: Retries = Retries()


class Secrets(Schema):
    """Secrets whose keys become environment variables of the stages that need them.

    `null` names no Secret. A stage also runs where a Secret or one of its keys does not exist.
    """

    s3: ObjectName | None = "automixalign-s3"
    """Access to S3: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`."""
    mlflow: ObjectName | None = "automixalign-mlflow"
    """Access to MLflow: `MLFLOW_TRACKING_USERNAME`, `MLFLOW_TRACKING_PASSWORD`."""
    hub: ObjectName | None = "automixalign-hub"
    """Access to the hub: `HF_TOKEN`."""
    judge: ObjectName | None = "automixalign-judge"
    """The key of the judge's endpoint: `OPENAI_API_KEY`. Only an experiment with a judge needs it."""


class TrainJobSpec(Schema):
    """Trainings on several nodes; each is a TrainJob of [Kubeflow Trainer](https://www.kubeflow.org/docs/components/trainer)."""

    storage: Annotated[str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9.-]+(/.*)?$")]
    """The `s3://` prefix through which the nodes get their inputs and return their results."""
    runtime: ObjectName = "torch-distributed"
    """Name of a ClusterTrainingRuntime that starts PyTorch."""


class TrainJobRequest(TrainJobSpec):
    """What a training stage needs to start a TrainJob; `AMA_TRAIN_JOB` holds it."""

    image: str
    pod: Pod
    secrets: Secrets
    environment: ObjectName | None
    image_pull_secrets: list[ObjectName]


class ClusterSpec(Schema):
    """What the stages need of a cluster. `ama compile` and `ama submit` write it into the pipeline."""

    default: Pod = Pod()
    steps: dict[Stage, Pod] = Field(default_factory=dict)
    """Keys that differ from `default`, by the name of the stage."""
    secrets: Secrets = Secrets()
    environment: ObjectName | None = "automixalign-env"
    """A ConfigMap whose keys become environment variables of the stages: `AWS_ENDPOINT_URL`,
    `AWS_DEFAULT_REGION`, `MLFLOW_TRACKING_URI`."""
    image_pull_secrets: list[ObjectName] = Field(default_factory=list)
    """Secrets for the registry that holds the image."""
    train_job: TrainJobSpec | None = None
    cache: Flag = True
    """Reuse what an earlier run computed from the same inputs, settings and code."""
    ttl_seconds: Count | None = None
    """How long the cluster keeps the pods and the workflow of a finished run. Results stay."""

    def pod(self, stage: Stage) -> Pod:
        """What a stage's pod requests: its own keys, and the default's for the others."""
        own = self.steps.get(stage, Pod())
        return self.default.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})
