"""How the steps of an experiment are placed on a cluster: what each pod asks for, and where its secrets are.

It changes where and how fast a step runs, never what it computes, so no step's settings hold it.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from automixalign.system.schema import Count, Flag, Natural, Schema

Step = Literal[
    "validate_config",
    "prepare_base_model",
    "prepare_data",
    "reference_logps",
    "train_specialist",
    "evaluate",
    "specialist_losses",
    "gather_specialists",
    "train_generalist",
    "merge_specialists",
    "compare",
    "register",
    "publish",
]
"""The steps of the DAG, by the names of their components."""

TRAINING: tuple[Step, ...] = ("train_specialist", "train_generalist")
"""The steps that `training.processes` share."""


def _as_text(value: Any) -> Any:
    """`cpu: 4` means `cpu: "4"`."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


Cpu = Annotated[
    str, BeforeValidator(_as_text), StringConstraints(pattern=r"^([1-9]\d*m?|[1-9]\d*\.\d+|0?\.\d*[1-9]\d*)$")
]
"""Cores, or thousandths of one: `2`, `0.5`, `500m`."""
Memory = Annotated[str, BeforeValidator(_as_text), StringConstraints(pattern=r"^[1-9]\d*(Mi|Gi|Ti|M|G|T)$")]
"""Bytes with a unit: `16Gi`."""
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
"""The name of a Secret or ConfigMap in the namespace that the pods run in."""
LabelKey = Annotated[
    str,
    StringConstraints(pattern=r"^([a-z0-9][-a-z0-9.]{0,252}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"),
]
LabelValue = Annotated[
    str,
    BeforeValidator(_as_text),
    StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"),
]


SECRET_KEYS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "mlflow": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "hub": ("HF_TOKEN",),
}
"""The keys of each Secret of `Secrets`, which are the environment variables, too."""
ENVIRONMENT_KEYS = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "MLFLOW_TRACKING_URI")
"""The keys of the ConfigMap `environment`."""
TRAIN_JOB = "AMA_TRAIN_JOB"
"""The environment variable with a `TrainJobRequest` as JSON."""


class Toleration(Schema):
    """Let a pod onto nodes with a taint, in Kubernetes' terms."""

    key: LabelKey | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: Natural | None = None

    @model_validator(mode="after")
    def _as_kubernetes_takes_it(self) -> Self:
        if self.key is None and self.operator != "Exists":
            raise ValueError("without 'key' the operator must be 'Exists'")
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("'value' goes with the operator 'Equal' only")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError("'toleration_seconds' goes with the effect 'NoExecute' only")
        return self


class Retries(Schema):
    """How often a failed step is tried again, and how long it waits before that."""

    times: Annotated[int, Field(strict=True, ge=0, le=10)] = 2
    wait_seconds: Natural = 30
    factor: Annotated[int, Field(strict=True, ge=1, le=10)] = 2
    """Each further wait is so many times the one before."""


class Pod(Schema):
    """What the pod of a step asks for. A key that is not set leaves the matter to the cluster."""

    cpu: Cpu | None = None
    """Cores requested."""
    cpu_limit: Cpu | None = None
    memory: Memory | None = None
    """Requested, and the limit too: a pod above its request is the first to be ended where memory runs out."""
    scratch: Memory | None = None
    """A volume of this size at /tmp, for caches and temporary files. KFP hands on no request for
    `ephemeral-storage`; the artifacts themselves lie in volumes that KFP makes."""
    shared_memory: Memory | None = None
    """A memory volume of this size at /dev/shm, which NCCL and data loaders share between processes; it counts
    towards `memory`."""
    accelerator: Annotated[str, StringConstraints(min_length=1)] = "nvidia.com/gpu"
    accelerators: Natural = 0
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)
    timeout_seconds: Count | None = None
    retries: Retries = Retries()


class Secrets(Schema):
    """Secrets whose keys (`SECRET_KEYS`) become environment variables of steps that need them; `null` for none.

    A Secret, or a key of it, that is not there is left out: a step then does without.
    """

    s3: ObjectName | None = "automixalign-s3"
    mlflow: ObjectName | None = "automixalign-mlflow"
    hub: ObjectName | None = "automixalign-hub"


class TrainJobSpec(Schema):
    """Trainings on several nodes, each a TrainJob of Kubeflow Trainer (https://www.kubeflow.org/docs/components/trainer)."""

    storage: Annotated[str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9.-]+(/.*)?$")]
    """Prefix that inputs and results of a training pass through, on the way to the nodes and back."""
    runtime: ObjectName = "torch-distributed"
    """The ClusterTrainingRuntime: one that starts PyTorch."""


class TrainJobRequest(TrainJobSpec):
    """What a training step is told, in `AMA_TRAIN_JOB`, of the job that it is to start."""

    image: str
    pod: Pod
    secrets: Secrets
    environment: ObjectName | None
    image_pull_secrets: list[ObjectName]


class ClusterSpec(Schema):
    """The part of an experiment that `ama compile` writes into the pipeline."""

    default: Pod = Pod()
    steps: dict[Step, Pod] = Field(default_factory=dict)
    """What differs from `default`, key by key, for the steps named."""
    secrets: Secrets = Secrets()
    environment: ObjectName | None = "automixalign-env"
    """A ConfigMap whose keys (`ENVIRONMENT_KEYS`) the steps see."""
    image_pull_secrets: list[ObjectName] = Field(default_factory=list)
    train_job: TrainJobSpec | None = None
    cache: Flag = True
    """Take what an earlier run computed from the same inputs, settings and code."""
    ttl_seconds: Count | None = None
    """How long the pods and the workflow of a finished run are kept; its results are not touched."""

    def pod(self, step: Step) -> Pod:
        """What a step's pod asks for: its own keys, and the default's for the others."""
        own = self.steps.get(step, Pod())
        return self.default.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})
