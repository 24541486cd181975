"""The request for a run: pipeline version, parameters and names."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kfp_server_api import V2beta1PipelineVersionReference, V2beta1Run, V2beta1RuntimeConfig

from automixalign import __version__
from automixalign.config.experiment import Experiment
from components import image
from pipelines.submit.server import Server


class StartedRun(NamedTuple):
    """The result of a submission."""

    run_id: str
    uploaded: bool
    """False if the server already had this version of the pipeline."""


@dataclass(frozen=True)
class Submission:
    """One run to start."""

    experiment: Experiment
    run_name: str
    kfp_experiment: str
    """The group of runs on the server."""
    pipeline_name: str
    service_account: str | None
    package: Path
    """The compiled pipeline."""

    @property
    def version(self) -> str:
        """The name of the pipeline's version. It holds a digest, so equal pipelines are uploaded once."""
        return f"{__version__}-{hashlib.sha256(self.package.read_bytes()).hexdigest()[:12]}"

    @property
    def parameters(self) -> dict[str, str]:
        """The pipeline's parameters."""
        return {"config": self.experiment.model_dump_json()}

    def send(self, server: Server) -> StartedRun:
        """Upload the pipeline version unless the server has it, and start the run.

        Raises:
            ServerError: the server refuses, or cannot be reached.
        """
        pipeline_id = server.pipeline_id(self.pipeline_name)
        version_id, uploaded = server.version_id(pipeline_id, self.version, self.package)
        version = V2beta1PipelineVersionReference(pipeline_id=pipeline_id, pipeline_version_id=version_id)
        run = V2beta1Run(
            display_name=self.run_name,
            experiment_id=server.experiment_id(self.kfp_experiment),
            pipeline_version_reference=version,
            runtime_config=V2beta1RuntimeConfig(parameters=self.parameters),
            service_account=self.service_account,
        )
        return StartedRun(server.start(run), uploaded)

    def facts(self) -> dict[str, str]:
        """The request as text for people. Secrets appear by name; this machine does not know their values."""
        cluster = self.experiment.cluster
        secrets = [cluster.secrets.s3, cluster.secrets.mlflow, cluster.secrets.hub]
        secrets += [cluster.secrets.judge] if self.experiment.evaluation.judge else []
        secrets += cluster.image_pull_secrets
        return {
            "run": self.run_name,
            "experiment": self.kfp_experiment,
            "pipeline": f"{self.pipeline_name}, version {self.version}",
            "package": f"{self.package.stat().st_size / 1000:.0f} kB of YAML",
            "image": image.IMAGE,
            "account": self.service_account or "the server's default",
            "secrets": ", ".join(name for name in secrets if name) or "none",
            "environment": f"ConfigMap {cluster.environment}" if cluster.environment else "none",
            "cache": "on" if cluster.cache else "off",
        }
