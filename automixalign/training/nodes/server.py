"""The TrainJobs of a namespace of the cluster that this process runs in, or that a kubeconfig names."""

import json
import os
from pathlib import Path
from typing import Any

from automixalign.system.errors import ConfigError

_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_KIND = {"group": "trainer.kubeflow.org", "version": "v1alpha1", "plural": "trainjobs"}
_SECONDS = (10, 60)
"""To connect, and to wait for an answer."""
_PASSING = (0, 408, 429, 500, 502, 503, 504)
_TRAINER = "it needs Kubeflow Trainer 2.3 (https://www.kubeflow.org/docs/components/trainer)"
_ADVICE = {
    400: f"check the cluster's version; {_TRAINER}",
    401: "check the service account's token, or the kubeconfig",
    403: "the pod's service account needs a Role to create, get and delete trainjobs of trainer.kubeflow.org, "
    "such as manifests/components/trainer",
    404: f"see that the namespace is there; {_TRAINER}",
}
_REFUSED = "check 'cluster', and that 'cluster.train_job.runtime' is a ClusterTrainingRuntime of this cluster"


class UnavailableError(Exception):
    """The server does not answer now, and may do so when asked again."""


class RefusedError(ConfigError):
    """The server does not do what it is asked, however often."""


class TrainJobs:
    """The TrainJobs of this process's namespace.

    Every method raises `UnavailableError` where asking again may help, and `RefusedError` where it does not.

    Raises:
        ConfigError: there is no cluster that this process could ask.
    """

    def __init__(self) -> None:
        from kubernetes import client, config

        configuration = client.Configuration()
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            file = os.environ.get("KUBECONFIG")
            try:
                config.load_kube_config(file, client_configuration=configuration)
                _, context = config.list_kube_config_contexts(file)
            except config.ConfigException as error:
                raise ConfigError(
                    f"training.nodes: there is neither a service account here nor a kubeconfig: {error}"
                ) from error
            self.namespace = context["context"].get("namespace", "default")
        else:
            self.namespace = _NAMESPACE.read_text(encoding="utf-8").strip()
        self._api = client.CustomObjectsApi(client.ApiClient(configuration))

    def create(self, manifest: dict[str, Any]) -> bool:
        """Create a TrainJob; False if there is one of its name already."""
        # An older server would drop what it does not know, and start something else.
        return self._ask("create", 409, body=manifest, field_validation="Strict") is not None

    def get(self, name: str) -> dict[str, Any] | None:
        """A TrainJob, None if there is none."""
        return self._ask("get", 404, name=name)

    def delete(self, name: str) -> None:
        """Delete a TrainJob, whose name is free again when its pods have ended; nothing happens without one."""
        # In the background, the next one of the name would meet its pods and read its status.
        self._ask("delete", 404, name=name, propagation_policy="Foreground")

    def _ask(self, verb: str, or_none: int, **options: Any) -> dict[str, Any] | None:
        """The server's answer; None for one error that says how things are."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        method = getattr(self._api, f"{verb}_namespaced_custom_object")
        try:
            answer: dict[str, Any] = method(
                **_KIND, namespace=self.namespace, _request_timeout=_SECONDS, **options
            )
            return answer
        except HTTPError as error:
            raise UnavailableError(f"the Kubernetes API cannot be reached: {error}") from error
        except ApiException as error:
            if error.status == or_none:
                return None
            message = _message(error)
            if error.status in _PASSING:
                raise UnavailableError(f"the Kubernetes API answers {error.status}: {message}") from error
            # What Trainer's own check refuses is a 403, too.
            refused = error.status == 422 or "denied the request" in message
            advice = _REFUSED if refused else _ADVICE.get(error.status, "ask who runs the cluster")
            raise RefusedError(
                f"training.nodes: the cluster does not {verb} the TrainJob in namespace {self.namespace}: "
                f"{message} ({error.status}); {advice}"
            ) from error


def _message(error: Any) -> str:
    """What the server says, which is a Status in JSON or a plain line."""
    body = error.body or error.reason or ""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return str(body).strip()
