"""What a stage reports to MLflow, complete enough that another process can send it later."""

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
    """A unique name."""
    return uuid.uuid4().hex


class Dataset(BaseModel):
    """One input of a run: MLflow's `log_input`."""

    name: str
    digest: str
    source: str
    profile: dict[str, Any]


class Record(BaseModel):
    """A stage's parameters, metrics and artifacts."""

    model_config = ConfigDict(extra="forbid")

    key: str = Field(default_factory=new_key)
    """A tag of the MLflow run. A sender that starts again finds the run by it."""
    stage: str
    name: str = ""
    started: float = Field(default_factory=time.time)
    ended: float | None = None
    status: Literal["FINISHED", "FAILED"] = "FINISHED"
    of_pipeline: bool = False
    """Parameters, metrics and artifacts belong to the run of the whole pipeline, not to the stage's own run."""
    description: str = ""
    """In Markdown."""
    params: dict[str, str] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)
    metrics: list[tuple[str, float, int]] = Field(default_factory=list)
    """Key, value, optimiser step."""
    artifacts: list[tuple[str, str]] = Field(default_factory=list)
    """A file or folder, and its path among the run's artifacts."""
    datasets: list[Dataset] = Field(default_factory=list)
    run_id: str | None = None
    """The record's MLflow run, once it exists."""

    @property
    def title(self) -> str:
        """`train_specialist [helpful]`."""
        return stage_title(self.stage, self.name)

    @property
    def content(self) -> str:
        """SHA-256 of the record without its times and keys."""
        text = self.model_dump_json(exclude={"key", "started", "ended", "run_id"})
        return hashlib.sha256(text.encode()).hexdigest()

    def add_params(self, values: Mapping[str, Any]) -> None:
        """Add parameters. Dots join nested keys (`training.beta`), also those of list elements (`tasks.0`)."""
        self.params |= {key: str(value) for key, value in flatten(dict(values))}

    def add_metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Add the finite numbers of a nested mapping. Slashes join nested keys; other values are skipped."""
        for key, value in flatten(dict(values), "/"):
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                self.metrics.append((key, float(value), step))

    def add_curves(self, trajectory: Path) -> None:
        """Add the curves of a per-step log: `excess/helpful` over the steps."""
        with trajectory.open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                self.add_metrics(row, step=row.pop("step"))

    def add_artifact(self, file: Path, path: str) -> None:
        """Add a file or folder to the run's artifacts as `path`; the sender reads it later."""
        self.artifacts.append((str(file.resolve()), path))
