"""The Kubeflow Pipelines server: signing in, the API calls of a submission, and explanations of its errors."""

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kfp
import urllib3
from kfp.client import ServiceAccountTokenVolumeCredentials
from kfp_server_api import (
    ApiClient,
    ApiException,
    Configuration,
    V2beta1Experiment,
    V2beta1Filter,
    V2beta1GetHealthzResponse,
    V2beta1Pipeline,
    V2beta1Predicate,
    V2beta1PredicateOperation,
    V2beta1Run,
)

from automixalign.config.release import holds_credentials
from automixalign.system.errors import AutoMixAlignError, ConfigError

TOKEN = "AMA_KFP_TOKEN"  # noqa: S105  the name of an environment variable
"""Environment variable with a token that does not change while the run is followed."""
_NO_SERVER = "no server: give --host, or run this in a pod of the cluster or with a kubeconfig"
_TIMEOUT_SECONDS = (10, 60)
"""To connect, and to wait for an answer."""
_TEMPORARY = (0, 401, 408, 425, 429)
"""Statuses that can change within a minute, as 500 and above can. 0 is the network. 401 is included because
every call reads the token file again."""


class ServerError(AutoMixAlignError):
    """The server cannot be reached, or refuses. The message names it and says what to do."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.is_temporary = status in _TEMPORARY or status >= 500


@dataclass(frozen=True)
class Access:
    """Address of the server and credentials.

    Without a host, kfp's client tries the service account of a pod, then the kubeconfig.

    Raises:
        ConfigError: the options contradict each other.
    """

    host: str | None = None
    namespace: str | None = None
    """The user's namespace, if the server has several users."""
    token_file: Path | None = None
    """Read again for every call."""
    ssl_ca_cert: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    kube_context: str | None = None

    def __post_init__(self) -> None:
        if self.url and not _is_web_address(self.url):
            raise ConfigError(
                f"--host {self.host}: must be a web address, as in https://kubeflow.example/pipeline"
            )
        if self.url and holds_credentials(self.url):
            raise ConfigError("--host holds a user or password; use --token-file or --client-cert instead")
        if self.client_key and not self.client_cert:
            raise ConfigError("--client-key goes with --client-cert")
        if self.url and self.kube_context:
            raise ConfigError("--kube-context and --host both name a server; give one of them")

    @property
    def url(self) -> str | None:
        """The host as a URL; https is the default."""
        if not self.host:
            return None
        return (self.host if "://" in self.host else f"https://{self.host}").rstrip("/")

    @property
    def fixed_token(self) -> str | None:
        """The token of the environment, unless there is a token file."""
        return None if self.token_file else os.environ.get(TOKEN)

    def facts(self) -> dict[str, str]:
        """The access as text for people, without any secret."""
        credentials = [
            self.token_file and f"token in {self.token_file}",
            self.fixed_token and f"token in {TOKEN}",
            self.client_cert and f"certificate {self.client_cert}",
        ]
        return {
            "to": self.url or "the server of the pod's cluster, else of the kubeconfig",
            "namespace": self.namespace or "the server's default",
            "credentials": ", ".join(each for each in credentials if each)
            or "those of the pod or the kubeconfig, or none",
        }


class _Client(kfp.Client):  # type: ignore[misc]  # kfp ships no types
    """kfp's client, with client certificates, and without its long wait for a server that does not answer."""

    def __init__(self, access: Access) -> None:
        self._access = access
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")  # about its compatibility and its own deprecations
            super().__init__(
                host=access.url,
                existing_token=access.fixed_token,
                credentials=access.token_file and ServiceAccountTokenVolumeCredentials(str(access.token_file)),
                ssl_ca_cert=_text(access.ssl_ca_cert),
                kube_context=access.kube_context,
            )

    def _load_config(self, *arguments: Any) -> Configuration:
        config = super()._load_config(*arguments)
        if config.host == Configuration().host and not self._access.url:
            raise ConfigError(_NO_SERVER)
        if self._access.client_cert:
            config.cert_file = str(self._access.client_cert)
            config.key_file = _text(self._access.client_key)
        self.config = config
        return config

    def get_kfp_healthz(self, sleep_duration: int = 0) -> V2beta1GetHealthzResponse:
        return self._healthz_api.healthz_service_get_healthz(_request_timeout=_TIMEOUT_SECONDS)

    def last_content_type(self) -> str:
        """The content type of the last answer."""
        return str(self._run_api.api_client.last_response.getheader("content-type"))

    def url(self) -> str:
        """The address of the user interface."""
        return str(self._get_url_prefix()).rstrip("/")


class Server:
    """A server that has answered once.

    Args:
        access: address and credentials.

    Raises:
        ConfigError: no server is named, and none was found.
        ServerError: it cannot be reached, refuses the credentials, or is not Kubeflow Pipelines.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self.host = access.url or "the cluster's Kubeflow Pipelines"
        with self._errors_explained():
            self._client = _Client(access)
        self.host = self._client.config.host
        self.namespace = access.namespace or self._client.get_user_namespace() or None
        self._call(self._client.healthzs.healthz_service_get_healthz)

    def link(self, run_id: str) -> str:
        """The address of a run in the user interface."""
        return f"{self._client.url()}/#/runs/details/{run_id}"

    def experiment_id(self, name: str) -> str:
        """The id of the experiment with this name; creates it if it does not exist."""
        service = self._client.experiments
        answer = self._list(name, service.experiment_service_list_experiments, namespace=self.namespace)
        experiment = _only(answer.experiments, f"experiments {name!r}", "--experiment") or self._call(
            service.experiment_service_create_experiment,
            V2beta1Experiment(display_name=name, namespace=self.namespace),
        )
        return str(experiment.experiment_id)

    def pipeline_id(self, name: str) -> str:
        """The id of the pipeline with this name; creates it, without a version, if it does not exist."""
        service = self._client.pipelines
        answer = self._list(name, service.pipeline_service_list_pipelines, namespace=self.namespace)
        pipeline = _only(answer.pipelines, f"pipelines {name!r}", "--pipeline-name") or self._call(
            service.pipeline_service_create_pipeline,
            V2beta1Pipeline(display_name=name, namespace=self.namespace),
        )
        return str(pipeline.pipeline_id)

    def version_id(self, pipeline_id: str, name: str, package: Path) -> tuple[str, bool]:
        """Find the pipeline's version with this name; upload it if it does not exist.

        Returns:
            Its id, and whether it was uploaded.
        """
        list_versions = self._client.pipelines.pipeline_service_list_pipeline_versions
        upload = self._client.pipeline_uploads.upload_pipeline_version
        answer = self._list(name, list_versions, pipeline_id=pipeline_id)
        existing = _only(answer.pipeline_versions, f"versions {name!r}", "--pipeline-name")
        version = existing or self._call(upload, str(package), name=name, pipelineid=pipeline_id)
        return str(version.pipeline_version_id), existing is None

    def start(self, run: V2beta1Run) -> str:
        """Create a run; the server then starts it.

        Returns:
            Its id.
        """
        return str(self._call(self._client.runs.run_service_create_run, run).run_id)

    def run(self, run_id: str) -> V2beta1Run:
        """The current state of a run and its tasks."""
        return self._call(self._client.runs.run_service_get_run, run_id)

    def _list(self, name: str, method: Any, **arguments: Any) -> Any:
        """List the objects with this name."""
        predicate = V2beta1Predicate(
            operation=V2beta1PredicateOperation.EQUALS, key="display_name", string_value=name
        )
        name_filter = ApiClient().sanitize_for_serialization(V2beta1Filter(predicates=[predicate]))
        return self._call(method, filter=json.dumps(name_filter), **arguments)

    def _call(self, method: Any, *arguments: Any, **keywords: Any) -> Any:
        with self._errors_explained():
            answer = method(*arguments, **keywords, _request_timeout=_TIMEOUT_SECONDS)
            content_type = self._client.last_content_type()
        if "json" not in content_type:
            raise ServerError(
                f"{self.host} answers with a page ({content_type}), unlike Kubeflow Pipelines: check --host "
                "(behind Kubeflow's dashboard it ends in /pipeline); if the server has a login page, give "
                "--token-file",
                status=404,
            )
        return answer

    @contextlib.contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except ApiException as error:
            raise ServerError(self._without_token(_refusal(self.host, error)), error.status or 0) from error
        except urllib3.exceptions.HTTPError as error:
            raise ServerError(self._without_token(_no_connection(self.host, error))) from error
        except OSError as error:  # the token file or a certificate
            path = error.filename or self.host
            raise ServerError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, LookupError) as error:  # an answer that cannot be decoded
            message = f"{self.host} does not answer as Kubeflow Pipelines does ({error}): check --host"
            raise ServerError(self._without_token(message), status=404) from error

    def _without_token(self, message: str) -> str:
        """Remove the token; an error of a server or proxy can quote the request."""
        token, file = self._access.fixed_token, self._access.token_file
        if file and file.exists():
            token = file.read_text(encoding="utf-8").strip()
        return message.replace(token, "[token]") if token else message


def _only(objects: list[Any] | None, title: str, option: str) -> Any:
    if objects and len(objects) > 1:
        raise ServerError(f"the server has {len(objects)} {title}; choose another name with {option}", 409)
    return objects[0] if objects else None


def _refusal(host: str, error: ApiException) -> str:
    reason = _reason(error)
    if not error.status:
        return f"{host} does not answer as Kubeflow Pipelines does: {reason}"
    if error.status == 401:
        return (
            f"{host} refuses the credentials ({reason}): give a token (--token-file, {TOKEN}) or --client-cert"
        )
    if error.status == 403:
        return f"{host} does not allow this ({reason}): check --namespace and the permissions of this account"
    if error.status == 404 and not _document(error):
        return f"{host} has no Kubeflow Pipelines API ({reason}): check --host"
    return f"{host} {'refuses' if error.status < 500 else 'has an internal error'}: {reason}"


def _reason(error: ApiException) -> str:
    document = _document(error)
    messages = [str(document[key]) for key in ("message", "error_message", "error") if document.get(key)]
    text = " ".join(messages[0].split())[:500] if messages else error.reason
    return f"{error.status} {text}" if error.status else str(text)


def _document(error: ApiException) -> dict[str, Any]:
    try:
        document = json.loads(error.body or "")
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _no_connection(host: str, error: urllib3.exceptions.HTTPError) -> str:
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, urllib3.exceptions.SSLError):
        return (
            f"no trusted connection to {host} ({reason}): give the certificate of the server's authority with "
            "--ssl-ca-cert; if the server asks for a client certificate, give --client-cert"
        )
    cause = str(reason).partition("): ")[2] or reason  # without the name of urllib3's object
    return f"{host} cannot be reached ({cause}): check --host and the network"


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _text(path: Path | None) -> str | None:
    return str(path) if path else None
