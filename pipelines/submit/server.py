"""The Kubeflow Pipelines server: who we are to it, the calls of a submission, and what its errors mean."""

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
import kfp_server_api as api
import urllib3
from kfp.client import ServiceAccountTokenVolumeCredentials

from automixalign.config.release import holds_credentials
from automixalign.system.errors import AutoMixAlignError, ConfigError

TOKEN = "AMA_KFP_TOKEN"  # noqa: S105  the name of an environment variable
"""Environment variable with a token that stays the same for as long as the run is followed."""
NOWHERE = "no server: give --host, or run this in a pod of the cluster or with a kubeconfig"
_TIMEOUT = (10, 60)
"""Seconds to connect, and to wait for an answer."""
_PASSING = (0, 401, 408, 425, 429)
"""Statuses that may be another one in a minute, beside the server's own errors; 0 is the network. A token is
read anew from its file for every call."""


class ServerError(AutoMixAlignError):
    """The server cannot be reached, or refuses; the message names it and says what to do."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.may_pass = status in _PASSING or status >= 500


@dataclass(frozen=True)
class Access:
    """Where the server is, and what proves who we are. Without a host kfp's client looks for a pod's service
    account, then for a kubeconfig.

    Raises:
        ConfigError: they do not go together.
    """

    host: str | None = None
    namespace: str | None = None
    """The user's namespace, where the server has several."""
    token_file: Path | None = None
    """Read for every call, so that it may change."""
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
            raise ConfigError("--kube-context names a server, and so does --host; give one of them")

    @property
    def url(self) -> str | None:
        """The host as a URL, over TLS unless it says otherwise."""
        if not self.host:
            return None
        return (self.host if "://" in self.host else f"https://{self.host}").rstrip("/")

    @property
    def fixed_token(self) -> str | None:
        """The token of the environment, unless a file is named."""
        return None if self.token_file else os.environ.get(TOKEN)

    def facts(self) -> dict[str, str]:
        """For people, without any secret."""
        proofs = [
            self.token_file and f"token in {self.token_file}",
            self.fixed_token and f"token in {TOKEN}",
            self.client_cert and f"certificate {self.client_cert}",
        ]
        return {
            "to": self.url or "the server of the pod's cluster, else of the kubeconfig",
            "namespace": self.namespace or "the server's default",
            "proof": ", ".join(proof for proof in proofs if proof)
            or "what the pod or the kubeconfig has, or none",
        }


class _Client(kfp.Client):  # type: ignore[misc]  # kfp ships no types
    """kfp's client; it also takes a client certificate, and says at once when the server is not there."""

    def __init__(self, access: Access) -> None:
        self._access = access
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")  # which servers it works with; deprecated things of its own
            super().__init__(
                host=access.url,
                existing_token=access.fixed_token,
                credentials=access.token_file and ServiceAccountTokenVolumeCredentials(str(access.token_file)),
                ssl_ca_cert=_text(access.ssl_ca_cert),
                kube_context=access.kube_context,
            )

    def _load_config(self, *arguments: Any) -> api.Configuration:
        config = super()._load_config(*arguments)
        if config.host == api.Configuration().host and not self._access.url:
            raise ConfigError(NOWHERE)
        if self._access.client_cert:
            config.cert_file = str(self._access.client_cert)
            config.key_file = _text(self._access.client_key)
        self.config = config
        return config

    def get_kfp_healthz(self, sleep_duration: int = 0) -> api.V2beta1GetHealthzResponse:
        return self._healthz_api.healthz_service_get_healthz(_request_timeout=_TIMEOUT)

    def last_content_type(self) -> str:
        """What the last answer said it is."""
        return str(self._run_api.api_client.last_response.getheader("content-type"))

    def url(self) -> str:
        """Where the user interface is."""
        return str(self._get_url_prefix()).rstrip("/")


class Server:
    """A server that answers.

    Args:
        access: where it is, and who we are.

    Raises:
        ConfigError: no server is named, and none can be found.
        ServerError: it cannot be reached, does not let us in, or is no Kubeflow Pipelines.
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
        """Where a browser shows a run."""
        return f"{self._client.url()}/#/runs/details/{run_id}"

    def experiment_id(self, name: str) -> str:
        """The experiment of this name, made if there is none."""
        service = self._client.experiments
        found = self._named(name, service.experiment_service_list_experiments, namespace=self.namespace)
        experiment = _one(found.experiments, f"experiments {name!r}", "--experiment") or self._call(
            service.experiment_service_create_experiment,
            api.V2beta1Experiment(display_name=name, namespace=self.namespace),
        )
        return str(experiment.experiment_id)

    def pipeline_id(self, name: str) -> str:
        """The pipeline of this name, made without a version if there is none."""
        service = self._client.pipelines
        found = self._named(name, service.pipeline_service_list_pipelines, namespace=self.namespace)
        pipeline = _one(found.pipelines, f"pipelines {name!r}", "--pipeline-name") or self._call(
            service.pipeline_service_create_pipeline,
            api.V2beta1Pipeline(display_name=name, namespace=self.namespace),
        )
        return str(pipeline.pipeline_id)

    def version_id(self, pipeline_id: str, name: str, package: Path) -> tuple[str, bool]:
        """The pipeline's version of this name, uploaded if there is none.

        Returns:
            Its id, and whether it was uploaded.
        """
        list_versions = self._client.pipelines.pipeline_service_list_pipeline_versions
        upload = self._client.pipeline_uploads.upload_pipeline_version
        found = self._named(name, list_versions, pipeline_id=pipeline_id).pipeline_versions
        there = _one(found, f"versions {name!r}", "--pipeline-name")
        version = there or self._call(upload, str(package), name=name, pipelineid=pipeline_id)
        return str(version.pipeline_version_id), there is None

    def start(self, run: api.V2beta1Run) -> str:
        """Create a run, which starts it.

        Returns:
            Its id.
        """
        return str(self._call(self._client.runs.run_service_create_run, run).run_id)

    def run(self, run_id: str) -> api.V2beta1Run:
        """A run as it is now, with its tasks."""
        return self._call(self._client.runs.run_service_get_run, run_id)

    def _named(self, name: str, list_method: Any, **arguments: Any) -> Any:
        predicate = api.V2beta1Predicate(
            operation=api.V2beta1PredicateOperation.EQUALS, key="display_name", string_value=name
        )
        wanted = api.ApiClient().sanitize_for_serialization(api.V2beta1Filter(predicates=[predicate]))
        return self._call(list_method, filter=json.dumps(wanted), **arguments)

    def _call(self, method: Any, *arguments: Any, **named: Any) -> Any:
        with self._errors_explained():
            answer = method(*arguments, **named, _request_timeout=_TIMEOUT)
            kind = self._client.last_content_type()
        if "json" not in kind:
            raise ServerError(
                f"{self.host} answers with a page ({kind}), not as Kubeflow Pipelines does: check --host "
                "(behind Kubeflow's dashboard it ends in /pipeline); if a login stands before it, give "
                "--token-file",
                status=404,
            )
        return answer

    @contextlib.contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except api.ApiException as error:
            raise ServerError(self._without_token(_refusal(self.host, error)), error.status or 0) from error
        except urllib3.exceptions.HTTPError as error:
            raise ServerError(self._without_token(_no_connection(self.host, error))) from error
        except OSError as error:  # the token's file, a certificate
            what = error.filename or self.host
            raise ServerError(f"{what} cannot be read: {error.strerror or error}") from error
        except (ValueError, LookupError) as error:  # an answer that cannot be decoded
            message = f"{self.host} does not answer as Kubeflow Pipelines does ({error}): check --host"
            raise ServerError(self._without_token(message), status=404) from error

    def _without_token(self, message: str) -> str:
        """A server, or a proxy before it, may say what it was sent."""
        token, file = self._access.fixed_token, self._access.token_file
        if file and file.exists():
            token = file.read_text(encoding="utf-8").strip()
        return message.replace(token, "[token]") if token else message


def _one(found: list[Any] | None, what: str, option: str) -> Any:
    if found and len(found) > 1:
        raise ServerError(f"the server has {len(found)} {what}; name another with {option}", 409)
    return found[0] if found else None


def _refusal(host: str, error: api.ApiException) -> str:
    said = _said(error)
    if not error.status:
        return f"{host} does not answer as Kubeflow Pipelines does: {said}"
    if error.status == 401:
        return (
            f"{host} does not know who this is ({said}): give a valid token with --token-file or {TOKEN}, or a "
            "--client-cert"
        )
    if error.status == 403:
        return f"{host} does not allow it ({said}): check --namespace, and what this account may do there"
    if error.status == 404 and not _document(error):
        return f"{host} has no Kubeflow Pipelines API ({said}): check --host"
    return f"{host} {'refuses' if error.status < 500 else 'has a fault of its own'}: {said}"


def _said(error: api.ApiException) -> str:
    document = _document(error)
    words = [str(document[key]) for key in ("message", "error_message", "error") if document.get(key)]
    text = " ".join(words[0].split())[:500] if words else error.reason
    return f"{error.status} {text}" if error.status else str(text)


def _document(error: api.ApiException) -> dict[str, Any]:
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
            "--ssl-ca-cert, and your own with --client-cert if the server asks for one"
        )
    cause = str(reason).partition("): ")[2] or reason  # without urllib3's name of its own object
    return f"{host} cannot be reached ({cause}): check --host and the network"


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _text(path: Path | None) -> str | None:
    return str(path) if path else None
