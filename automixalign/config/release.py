"""MLflow, the model registry and the published copy: their sections of an experiment."""

from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import StringConstraints, model_validator

from automixalign.config.settings import Settings
from automixalign.system.schema import Flag, Fraction, NonNegative, Number, Schema, Text


def holds_credentials(uri: str) -> bool:
    """Whether a URI names a user, as in `https://user:password@host`."""
    return "@" in urlsplit(uri).netloc


class TrackingSpec(Schema):
    """MLflow, which records the run's parameters, curves, leaderboard and plots.

    On a cluster the environment replaces this section: MLFLOW_TRACKING_URI, and MLFLOW_RUN_ID of a run to join.
    """

    uri: Text | None = None
    """A server or a store; by default MLflow's own default, the SQLite store `mlflow.db` in the working
    directory. Credentials belong in the environment
    (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_TOKEN)."""
    experiment: Text = "automixalign"
    """MLflow's experiment, which groups runs."""

    @model_validator(mode="after")
    def _check_no_credentials(self) -> Self:
        if self.uri and holds_credentials(self.uri):
            raise ValueError("'uri' holds a user or password; name them in the environment instead")
        return self


class OutputSpec(Schema):
    """Where to copy the final models, the leaderboard and the report after a successful run."""

    to: Text
    """`s3://bucket/prefix` or a folder, for this run alone. Access comes from boto3's credential chain."""
    replace: Flag = False
    """Replace what another run published there."""


class RegistrySpec(Schema):
    """MLflow's model registry, and the gate that a new champion must pass."""

    name: Annotated[str, StringConstraints(pattern=r"^[^/:@\s]{1,200}$")]
    """The registered model. The generalist or merge with the smallest gap on its worst task of the validation
    split becomes its next version."""
    max_worst_gap: Number | None = None
    """The gate, like all of its limits on the validation split: the largest worst-task gap."""
    max_worst_excess: NonNegative | None = None
    """The gate: the largest worst-task excess."""
    min_accuracy: Fraction | None = None
    """The gate: the smallest reward accuracy, as the mean over the tasks."""
    beat_champion: Flag = True
    """The gate: the worst-task gap must not exceed the champion's, measured on the same data."""


class PublicationSettings(Settings):
    """Of `publish`."""

    output: OutputSpec
    run: str
    """Names the run in the manifest: `Experiment.identity`."""
