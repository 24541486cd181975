"""List what the stages of an experiment use outside their run folder: files, networks, credentials.

A stage that is a process of this machine has access to all of it; a container gets only what is listed.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from automixalign.config.experiment import Experiment
from automixalign.config.sources import LocalSource, Source, named_sources
from automixalign.scoring.benchmarks.tasks import task_files
from automixalign.steps.tracking import spool
from automixalign.steps.tracking.store import check_no_folder, default_store, sqlite_file
from automixalign.storage import s3
from automixalign.system.errors import ConfigError

_OFFLINE = "HF_HUB_OFFLINE"
_VARIABLE_PREFIXES = {
    "s3": ("AWS_", s3.TIMEOUT),
    "mlflow": ("MLFLOW_", "AWS_"),  # an MLflow server may have its clients write artifacts to S3
    "hub": ("HF_TOKEN", "HF_ENDPOINT"),
    "judge": ("OPENAI_API_KEY",),
}
"""Prefixes of the environment variables that configure each service."""
_NETWORK_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


@dataclass
class Needs:
    """What the stages of an experiment use outside their run folder."""

    read: set[Path] = field(default_factory=set)
    """Files and folders, absolute."""
    write: set[Path] = field(default_factory=set)
    """Folders, absolute."""
    store: Path | None = None
    """The file of the MLflow store, absolute, if a stage needs it; its folder is in `write`."""
    services: dict[str, str] = field(default_factory=dict)
    """`s3`, `mlflow`, `hub`, `judge` -> the first key of the configuration that needs it."""
    variables: set[str] = field(default_factory=set)
    """Names of environment variables with addresses and credentials of the services."""
    loopback: set[str] = field(default_factory=set)
    """Keys and variables that name a server by this machine's loopback address."""


def sources_of(experiment: Experiment) -> dict[str, Source]:
    """Every source of an experiment, by its key in the configuration."""
    benchmarks = [benchmark.task for benchmark in experiment.benchmarks]
    return named_sources(experiment.base_model, experiment.tasks, experiment.decontaminate, benchmarks)


def needs_of(experiment: Experiment, environ: Mapping[str, str]) -> Needs:
    """List what the stages of an experiment use outside their run folder.

    Args:
        experiment: the checked configuration; its local sources exist.
        environ: the environment of the run.

    Raises:
        ConfigError: only a process of this machine can reach a source or store.
    """
    needs = Needs()
    _add_sources(needs, experiment)
    if experiment.output is not None:
        if s3.is_uri(experiment.output.to):
            needs.services.setdefault("s3", "output.to")
        else:  # publishing writes a sibling first, so the closest existing parent must be writable
            parents = Path(experiment.output.to).absolute().parents
            needs.write.add(next(parent for parent in parents if parent.exists()))
    if experiment.registry is not None:
        needs.services.setdefault("mlflow", "registry")
    _add_judge(needs, experiment)
    if "mlflow" in needs.services:
        _add_mlflow_store(needs, experiment.tracking.uri or environ.get(spool.URI) or default_store())
    if "hub" in needs.services and environ.get(_OFFLINE, "0").lower() in ("1", "on", "yes", "true"):
        raise ConfigError(
            f"{needs.services['hub']} is on the hub, but {_OFFLINE} is set: unset it, or name a local folder"
        )
    if needs.services:
        _add_variables(needs, environ)
    return needs


def _add_sources(needs: Needs, experiment: Experiment) -> None:
    """Give the stages access to the sources."""
    for key, source in sources_of(experiment).items():
        if fault := source.unreachable_from("container"):
            raise ConfigError(fault)
        if source.service is not None:
            needs.services.setdefault(source.service, key)
        if isinstance(source, LocalSource):
            path = source.path.absolute()
            needs.read |= {path, *_link_targets_outside(path)}
    for task in task_files(experiment.benchmarks):
        needs.read |= {path for file in task.files for path in (file, *_link_targets_outside(file))}
        if task.is_on_hub:
            needs.services.setdefault("hub", task.key)


def _link_targets_outside(folder: Path) -> Iterator[Path]:
    """Files outside a folder that links in it point to, as in the hub's cache."""
    for file in folder.rglob("*"):
        if file.is_symlink() and file.exists():
            target = Path(os.path.normpath(file.parent / file.readlink()))
            if not target.is_relative_to(folder):
                yield target


def _add_judge(needs: Needs, experiment: Experiment) -> None:
    if judge := experiment.evaluation.judge:
        needs.services["judge"] = key = "evaluation.judge.base_url"
        if is_loopback(judge.base_url):
            needs.loopback.add(key)


def _add_mlflow_store(needs: Needs, uri: str) -> None:
    """Give the stages access to the MLflow store."""
    check_no_folder(uri)
    if (file := sqlite_file(uri)) is not None:
        del needs.services["mlflow"]
        needs.store = file
        needs.write.add(file.parent)
    elif is_loopback(uri):
        needs.loopback.add(spool.URI)


def _add_variables(needs: Needs, environ: Mapping[str, str]) -> None:
    prefixes = tuple(prefix for service in needs.services for prefix in _VARIABLE_PREFIXES[service])
    for name, value in environ.items():
        if not name.startswith(prefixes) and name.upper() not in _NETWORK_VARIABLES:
            continue
        needs.variables.add(name)
        if Path(value).is_absolute() and Path(value).is_file():  # a certificate, a file of credentials
            needs.read.add(Path(value))
        if name.startswith(prefixes) and is_loopback(value):
            needs.loopback.add(name)


def is_store_in_files(uri: str) -> bool:
    """Whether an MLflow tracking URI names files rather than a server."""
    return not uri.startswith("databricks") and urlsplit(uri).scheme in ("", "file", "sqlite")


def is_loopback(uri: str) -> bool:
    """Whether a URI names a server by this machine's loopback address."""
    host = urlsplit(uri).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
