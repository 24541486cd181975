"""What one step tells about itself."""

import hashlib
import json
import math
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from automixalign.steps.events import stage_title
from automixalign.system.flatten import flatten

RECORD_FILE = "record.json"
"""A stage of a local run writes its record beside its outputs, for later runs that reuse these."""


def new_key() -> str:
    """A name that nothing else has."""
    return uuid.uuid4().hex


class Dataset(BaseModel):
    """One input of a run: MLflow's `log_input`."""

    name: str
    digest: str
    source: str
    profile: dict[str, Any]


class Record(BaseModel):
    """A step's parameters, metrics and artifacts, complete enough to be sent later and elsewhere."""

    model_config = ConfigDict(extra="forbid")

    key: str = Field(default_factory=new_key)
    """Names the record, so that a run which was made for it is found again."""
    stage: str
    name: str = ""
    started: float = Field(default_factory=time.time)
    ended: float | None = None
    status: Literal["FINISHED", "FAILED"] = "FINISHED"
    of_pipeline: bool = False
    """Parameters, metrics and artifacts belong to the run of the whole pipeline, not to the step's own."""
    params: dict[str, str] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)
    metrics: list[tuple[str, float, int]] = Field(default_factory=list)
    """Key, value, step."""
    artifacts: list[tuple[str, str]] = Field(default_factory=list)
    """A file or folder, and its path among the run's artifacts."""
    datasets: list[Dataset] = Field(default_factory=list)
    run_id: str | None = None
    """The MLflow run that was made for it, once one was."""

    @property
    def title(self) -> str:
        return stage_title(self.stage, self.name)

    @property
    def content(self) -> str:
        """SHA-256 of what it says, whenever it says so."""
        said = self.model_dump_json(exclude={"key", "started", "ended", "run_id"})
        return hashlib.sha256(said.encode()).hexdigest()

    def add_params(self, values: Mapping[str, Any]) -> None:
        """Nested keys are joined by dots (`training.beta`), list elements by their number."""
        self.params |= {key: str(value) for key, value in flatten(dict(values))}

    def add_metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Every finite number of a nested mapping, keys joined by slashes; what is no number is passed over."""
        for key, value in flatten(dict(values), "/"):
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                self.metrics.append((key, float(value), step))

    def add_curves(self, trajectory: Path) -> None:
        """The curves of a per-step log: `excess/helpful` over the steps."""
        with trajectory.open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                self.add_metrics(row, step=row.pop("step"))

    def add_artifact(self, path: Path, place: str) -> None:
        """Keep a file or folder with the run as `place`; it must still be there when the record is sent."""
        self.artifacts.append((str(path.resolve()), place))
