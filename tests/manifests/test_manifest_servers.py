"""The servers of the manifests start with exactly what their pods get, and serve a stage of a run."""

import copy
import os
import secrets
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.dag.placement import ENVIRONMENT_KEYS, SECRET_KEYS
from tests.manifests import manifest_client, pod_sandbox
from tests.manifests.rendered_manifests import (
    Document,
    name_of,
    named,
    needs_kubectl,
    of_kind,
    pods,
    render,
    settings,
)

REFUSAL = pod_sandbox.refusal()
POSTGRES = next((path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))), None)
"""Debian's folder with the programs of a PostgreSQL server, if one is installed."""

pytestmark = [
    needs_kubectl,
    pytest.mark.skipif(
        REFUSAL is not None,
        reason=f"THE SERVERS OF THE MANIFESTS WERE NOT STARTED: no namespaces for users here: {REFUSAL}",
    ),
]

Values = dict[str, dict[str, str]]


def made_up_secrets() -> Values:
    """Secret -> key -> value, as a user would fill in the examples."""
    return {
        "automixalign-s3": {key: secrets.token_hex(16) for key in SECRET_KEYS["s3"]},
        "automixalign-mlflow-database": {"PGPASSWORD": secrets.token_urlsafe(16)},
    }


def server(documents: list[Document], name: str, values: Values, folder: Path) -> dict[str, Any]:
    """A workload's container for the sandbox, with variables and volumes resolved as a kubelet does.

    Args:
        name: the workload's name.
        values: the values of the Secrets.
        folder: holds the volumes.
    """
    (container,) = copy.deepcopy(dict(pods(documents))[name]["spec"]["containers"])
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.defpath}"}  # an image sets it
    configs = {name_of(config): config["data"] for config in of_kind(documents, "ConfigMap")}
    for source in container.get("envFrom", []):
        environment |= configs[source["configMapRef"]["name"]]
    for variable in container["env"]:
        environment[variable["name"]] = _value(variable, {**configs, **values})
    mounts = {}
    for mount in container["volumeMounts"]:
        volume = folder / name / mount["name"]
        volume.mkdir(parents=True, exist_ok=True)
        mounts[mount["mountPath"]] = str(volume)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = [container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]
    for probe in probes:
        if "httpGet" in probe:
            probe["httpGet"]["port"] = ports[probe["httpGet"]["port"]]
    return {
        "name": name,
        "command": [*container.get("command", []), *container.get("args", [])],
        "environment": environment,
        "folder": container.get("workingDir", "/"),
        "mounts": mounts,
        "probes": probes,
    }


def _value(variable: dict[str, Any], values: Values) -> str:
    if "value" in variable:
        return str(variable["value"])
    (reference,) = variable["valueFrom"].values()
    return values[reference["name"]][reference["key"]]


def replace_image(postgres: dict[str, Any], folder: Path) -> None:
    """Give a container the command of the PostgreSQL image: make the database at the first start, then serve.

    Args:
        postgres: the container for the sandbox.
        folder: for a file that names the container's user, as the image does by libnss_wrapper.
    """
    assert POSTGRES is not None
    password_file = folder / "passwd"
    user = dict(pods(render("local with postgres")))["automixalign-postgres"]["spec"]["securityContext"]
    password_file.write_text(f"postgres:x:{user['runAsUser']}:{user['runAsGroup']}::/tmp:/bin/false\n")
    postgres["mounts"]["/etc/passwd"] = str(password_file)
    postgres["environment"]["PATH"] = f"{POSTGRES}:{os.defpath}"
    script = """
        set -eu
        if ! [ -s "$PGDATA/PG_VERSION" ]; then
            printf '%s\\n' "$POSTGRES_PASSWORD" > /tmp/password
            initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --auth=scram-sha-256 > /tmp/initdb.log
            pg_ctl start --wait --options="-c listen_addresses=" --log=/tmp/first.log
            PGPASSWORD="$POSTGRES_PASSWORD" createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
            pg_ctl stop --wait --mode=fast
        fi
        exec postgres -c listen_addresses='*'
    """
    postgres["command"] = ["sh", "-c", script]


def serve(
    documents: list[Document], servers: list[dict[str, Any]], task: str, values: Values, folder: Path
) -> None:
    """Start servers in order, and a client in the environment of a stage beside them."""
    context = dict(pods(documents))["automixalign-mlflow"]["spec"]["securityContext"]
    namespace = named(documents, "RoleBinding", "automixalign")["metadata"]["namespace"]
    services = [name_of(service) for service in of_kind(documents, "Service")]
    environment = {key: settings(documents, "automixalign-env")[key] for key in ENVIRONMENT_KEYS}
    environment |= {**values["automixalign-s3"], "PATH": os.defpath, "HOME": str(folder)}
    folder.mkdir()
    spec = {
        "user": context["runAsUser"],
        "group": context["runAsGroup"],
        "hosts": [*services, *(f"{name}.{namespace}.svc" for name in services)],
        "containers": servers,
        "client": {
            "command": [sys.executable, str(manifest_client.__file__), task],
            "environment": {**environment, "MLFLOW_DISABLE_TELEMETRY": "true"},
        },
    }
    assert pod_sandbox.run(spec, folder).endswith("all of it worked\n")


@pytest.mark.slow
def test_the_local_servers_keep_the_data_of_a_stage_when_they_are_killed(tmp_path: Path) -> None:
    """The second start uses the volumes of the first."""
    documents, values = render("local"), made_up_secrets()
    names = ("automixalign-seaweedfs", "automixalign-mlflow")
    for task in ("log", "read"):
        servers = [server(documents, name, values, tmp_path) for name in names]
        serve(documents, servers, task, values, tmp_path / task)
        for name in names:
            shutil.rmtree(tmp_path / name / "tmp")  # this volume ends with its pod


@pytest.mark.skipif(
    POSTGRES is None, reason="MLFLOW WAS NOT STARTED ON POSTGRESQL: no /usr/lib/postgresql/*/bin here"
)
@pytest.mark.slow
def test_mlflow_keeps_its_records_in_postgresql(tmp_path: Path) -> None:
    """The password is in no URI."""
    documents, values = render("local with postgres"), made_up_secrets()
    names = ("automixalign-seaweedfs", "automixalign-postgres", "automixalign-mlflow")
    servers = [server(documents, name, values, tmp_path) for name in names]
    replace_image(servers[1], tmp_path)
    serve(documents, servers, "log", values, tmp_path / "log")
    assert not (tmp_path / "automixalign-mlflow" / "data").exists()
