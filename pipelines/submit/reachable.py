"""Refuse an experiment that names what only this machine can see: a pod has other disks and packages."""

from automixalign.config.experiment import Experiment
from automixalign.storage import s3
from automixalign.system.errors import ConfigError
from pipelines.local.needs import is_loopback, is_store_in_files, sources_of


def check_reachable(experiment: Experiment) -> None:
    """Check that a pod can reach every source and destination.

    Raises:
        ConfigError: naming every key that it cannot reach.
    """
    sources = sources_of(experiment)
    faults = [fault for source in sources.values() if (fault := source.unreachable_from("pod"))]
    uri, output = experiment.tracking.uri, experiment.output
    if uri and (is_store_in_files(uri) or is_loopback(uri)):
        faults.append(
            f"tracking.uri: {uri} is on this machine; name a server, or remove the key: the pods then use "
            "their MLFLOW_TRACKING_URI"
        )
    if output is not None and not s3.is_uri(output.to):
        faults.append(f"output: {output.to} would be a folder of a pod, deleted with it; name an s3:// prefix")
    if faults:
        raise ConfigError("this experiment cannot run on a cluster:\n" + "\n".join(faults))
