"""What the steps of an experiment reach for outside of their run folder: files, networks, credentials.

A step that is a process of this machine simply has all of it; one in a container gets this and no more.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from automixalign.config.data import SYNTHETIC
from automixalign.config.experiment import Experiment
from automixalign.models import prepare as base_model
from automixalign.steps.tracking import spool
from automixalign.storage import s3
from automixalign.system.errors import ConfigError

_OFFLINE = "HF_HUB_OFFLINE"
_ENVIRONMENT = {
    "s3": ("AWS_", s3.TIMEOUT),
    "mlflow": ("MLFLOW_", "AWS_"),  # a server may leave its artifacts to S3, and the transfer to its clients
    "hub": ("HF_TOKEN", "HF_ENDPOINT"),
}
"""How the environment variables begin that each kind of service is told by."""
_ANY_NETWORK = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


@dataclass
class Needs:
    """What an experiment's steps reach for."""

    read: set[Path] = field(default_factory=set)
    """Files and folders, absolute."""
    write: set[Path] = field(default_factory=set)
    """Folders, absolute."""
    services: dict[str, str] = field(default_factory=dict)
    """`s3`, `mlflow`, `hub` -> the first key of the configuration that asks for it."""
    variables: set[str] = field(default_factory=set)
    """Names of environment variables: addresses and credentials of the services."""
    loopback: set[str] = field(default_factory=set)
    """Keys and variables that name a server by this machine's loopback address."""


def needs_of(experiment: Experiment, environ: Mapping[str, str]) -> Needs:
    """What the steps of an experiment reach for.

    Args:
        experiment: the checked configuration; its local sources are there.
        environ: the environment of the run.

    Raises:
        ConfigError: a source or store is of a kind that only a process of this machine can reach.
    """
    needs = Needs()
    _add_base_model(needs, experiment.base_model.source)
    for number, task in enumerate(experiment.tasks):
        if not task.source.startswith(SYNTHETIC):
            _add_source(needs, f"tasks.{number}.source", task.source)
    if experiment.output is not None:
        if experiment.output.to.startswith(s3.SCHEME):
            needs.services.setdefault("s3", "output.to")
        else:  # it is written beside its place, in the first folder above that there is
            place = Path(experiment.output.to).absolute()
            needs.write.add(next(above for above in place.parents if above.exists()))
    if experiment.registry is not None:
        needs.services.setdefault("mlflow", "registry")
    if "mlflow" in needs.services:
        _add_store(needs, experiment.tracking.uri or environ.get(spool.URI))
    if "hub" in needs.services and environ.get(_OFFLINE, "0").lower() in ("1", "on", "yes", "true"):
        raise ConfigError(
            f"{needs.services['hub']} is on the hub, but {_OFFLINE} is set: unset it, or name a local folder"
        )
    _add_variables(needs, environ)
    return needs


def _add_base_model(needs: Needs, source: str) -> None:
    key = "base_model.source"
    if source == "tiny":
        return
    if source.startswith(base_model.PACKAGE):
        raise ConfigError(
            f"{key}: {source} is in a package of this environment, not of the image: name the file itself, or "
            "run without --runner docker"
        )
    if source.startswith(base_model.MLFLOW):
        needs.services.setdefault("mlflow", key)
    else:
        _add_source(needs, key, source)


def _add_source(needs: Needs, key: str, source: str) -> None:
    if source.startswith(s3.SCHEME):
        needs.services.setdefault("s3", key)
    elif Path(source).exists():
        needs.read |= {Path(source).absolute(), *_behind_links(Path(source).absolute())}
    else:
        needs.services.setdefault("hub", key)


def _behind_links(folder: Path) -> Iterator[Path]:
    """Files outside of a folder that links in it stand for, as in the hub's own cache."""
    for file in folder.rglob("*"):
        if file.is_symlink() and file.exists():
            target = Path(os.path.normpath(file.parent / file.readlink()))
            if not target.is_relative_to(folder):
                yield target


def _add_store(needs: Needs, uri: str | None) -> None:
    """The store that steps open themselves; by default it lies in the run folder."""
    scheme = urlsplit(uri or "").scheme
    if uri is None:
        del needs.services["mlflow"]
    elif scheme in ("file", "sqlite") or not (scheme or uri.startswith("databricks")):
        raise ConfigError(
            f"{needs.services['mlflow']}: the MLflow store {uri} is in files that containers do not see: name "
            f"a server, unset {spool.URI} for a store in the run folder, or run without --runner docker"
        )
    elif _is_loopback(uri):
        needs.loopback.add(spool.URI)


def _add_variables(needs: Needs, environ: Mapping[str, str]) -> None:
    if not needs.services:
        return
    beginnings = tuple(start for kind in needs.services for start in _ENVIRONMENT[kind])
    for name, value in environ.items():
        if not (name.startswith(beginnings) or name.upper() in _ANY_NETWORK):
            continue
        needs.variables.add(name)
        if Path(value).is_absolute() and Path(value).is_file():  # a certificate, a file of credentials
            needs.read.add(Path(value))
        if name.startswith(beginnings) and _is_loopback(value):
            needs.loopback.add(name)


def _is_loopback(uri: str) -> bool:
    host = urlsplit(uri).hostname or ""
    return host == "localhost" or host.startswith("127.") or host == "::1"
