"""Refuse an experiment that names what only this machine can see: a pod has other disks and packages."""

import re
from pathlib import Path
from urllib.parse import urlsplit

from automixalign.config.data import SYNTHETIC
from automixalign.config.experiment import Experiment
from automixalign.data.read import is_local
from automixalign.models.prepare import MLFLOW, PACKAGE
from automixalign.storage import s3
from automixalign.system.errors import ConfigError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_LOCAL_STORES = ("", "file", "sqlite")
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def check(experiment: Experiment) -> None:
    """Make sure that every source and destination is one that a pod can reach.

    Raises:
        ConfigError: naming every key that is not.
    """
    faults = _faults(experiment)
    if faults:
        raise ConfigError("this experiment cannot run on a cluster:\n" + "\n".join(faults))


def _faults(experiment: Experiment) -> list[str]:
    faults = []
    base = experiment.base_model
    if base.source.startswith(PACKAGE):
        faults.append(
            f"base_model.source: {base.source}: the image holds no such package; copy the model to s3:// or "
            "name a hub id"
        )
    elif base.tiny is None and not base.source.startswith((s3.SCHEME, MLFLOW)) and _is_local_model(base.source):
        faults.append(
            f"base_model.source: {base.source} is a path on this machine; copy it to s3:// or name a hub id"
        )
    faults += [
        f"tasks: {task.name}: {task.source} is a path on this machine; copy it to s3:// or name a hub id"
        for task in experiment.tasks
        if not task.source.startswith((SYNTHETIC, s3.SCHEME)) and is_local(task.source)
    ]
    uri = experiment.tracking.uri
    if uri and _is_local_store(uri):
        faults.append(
            f"tracking.uri: {uri} lies on this machine; name a server, or leave it to MLFLOW_TRACKING_URI there"
        )
    output = experiment.output
    if output is not None and not output.to.startswith(s3.SCHEME):
        faults.append(
            f"output: {output.to} would be a folder of a pod, which goes with it; name an s3:// prefix"
        )
    return faults


def _is_local_store(uri: str) -> bool:
    parts = urlsplit(uri)
    if uri.startswith("databricks"):  # its name alone is enough
        return False
    return parts.scheme in _LOCAL_STORES or parts.hostname in _THIS_MACHINE


def _is_local_model(source: str) -> bool:
    return source.endswith(".gguf") or not _HUB_ID.fullmatch(source) or Path(source).exists()
