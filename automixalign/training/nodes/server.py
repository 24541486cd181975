"""The TrainJobs of a namespace, in the cluster of this process or of a kubeconfig."""

import json
import os
from pathlib import Path
from typing import Any

from automixalign.system.errors import ConfigError

_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_KIND = {"group": "trainer.kubeflow.org", "version": "v1alpha1", "plural": "trainjobs"}
_TIMEOUT_SECONDS = (10, 60)
"""For the connection, and for the answer."""
_TEMPORARY = (0, 408, 429, 500, 502, 503, 504)
_TRAINER = "it needs Kubeflow Trainer 2.3 (https://www.kubeflow.org/docs/components/trainer)"
_ADVICE = {
    400: f"check the cluster's version; {_TRAINER}",
    401: "check the service account's token, or the kubeconfig",
    403: "the pod's service account needs a Role to create, get and delete trainjobs of trainer.kubeflow.org, "
    "such as manifests/components/trainer",
    404: f"check that the namespace exists; {_TRAINER}",
}
_REFUSED = "check 'cluster', and that 'cluster.train_job.runtime' is a ClusterTrainingRuntime of this cluster"


class UnavailableError(Exception):
    """The server does not answer now; a later request may succeed."""


class RefusedError(ConfigError):
    """The server refuses a request, and will refuse it again."""


class TrainJobs:
    """The TrainJobs of this process's namespace.

    Every method raises `UnavailableError` if a later request may succeed, otherwise `RefusedError`.

    Raises:
        ConfigError: the process has neither a service account nor a kubeconfig.
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
        """Create a TrainJob; return False if its name exists already."""
        # Without "Strict", an older server drops the fields that it does not know, and starts another job.
        return self._request("create", 409, body=manifest, field_validation="Strict") is not None

    def get(self, name: str) -> dict[str, Any] | None:
        """A TrainJob; None if there is none of this name."""
        return self._request("get", 404, name=name)

    def delete(self, name: str) -> None:
        """Delete a TrainJob, if it exists. Its name is free again after its pods have ended."""
        # Deleted in the background, its pods and its status would meet the next job of the same name.
        self._request("delete", 404, name=name, propagation_policy="Foreground")

    def _request(self, verb: str, none_status: int, **options: Any) -> dict[str, Any] | None:
        """The server's answer; None if it answers with `none_status`."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        method = getattr(self._api, f"{verb}_namespaced_custom_object")
        try:
            answer: dict[str, Any] = method(
                **_KIND, namespace=self.namespace, _request_timeout=_TIMEOUT_SECONDS, **options
            )
            return answer
        except HTTPError as error:
            raise UnavailableError(f"the Kubernetes API cannot be reached: {error}") from error
        except ApiException as error:
            if error.status == none_status:
                return None
            message = _message(error)
            if error.status in _TEMPORARY:
                raise UnavailableError(f"the Kubernetes API answers {error.status}: {message}") from error
            # Trainer's own validation answers 403, too.
            refused = error.status == 422 or "denied the request" in message
            advice = _REFUSED if refused else _ADVICE.get(error.status, "ask the administrator of the cluster")
            raise RefusedError(
                f"training.nodes: the cluster does not {verb} the TrainJob in namespace {self.namespace}: "
                f"{message} ({error.status}); {advice}"
            ) from error


def _message(error: Any) -> str:
    """The message of a Status in JSON, or the plain text of the answer."""
    body = error.body or error.reason or ""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return str(body).strip()
