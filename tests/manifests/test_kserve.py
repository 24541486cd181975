"""The champion as an InferenceService: valid, closed, and served as docs/serving.md serves it."""

import copy
import re
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from automixalign import __version__
from tests.manifests.inference_service import pod, validate
from tests.manifests.rendered_manifests import MANIFESTS, named, needs_kubectl, render

pytestmark = needs_kubectl


@pytest.fixture
def champion() -> dict[str, Any]:
    document = named(render("cluster with kserve"), "InferenceService", "automixalign-champion")
    return copy.deepcopy(document)


def test_validation_finds_unknown_fields_and_wrong_values(champion: dict[str, Any]) -> None:
    kubernetes = kubernetes_validate.latest_version()
    validate(champion, kubernetes)
    predictor = champion["spec"]["predictor"]
    predictor["minReplica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="minReplica"):
        validate(champion, kubernetes)
    del predictor["minReplica"]
    predictor["containers"][0]["port"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="port"):
        validate(champion, kubernetes)
    predictor["timeout"] = "600s"
    with pytest.raises(jsonschema.ValidationError, match="600s"):
        validate(champion, kubernetes)


def test_the_server_runs_without_rights_and_reaches_mlflow(champion: dict[str, Any]) -> None:
    documents, spec = render("cluster with kserve"), pod(champion)["spec"]
    (container,) = spec["containers"]
    mlflow = named(documents, "Deployment", "automixalign-mlflow")["spec"]["template"]["spec"]
    assert container["securityContext"] == mlflow["containers"][0]["securityContext"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["automountServiceAccountToken"] is False
    account = named(documents, "ServiceAccount", spec["serviceAccountName"])
    assert account["automountServiceAccountToken"] is False
    policy = named(documents, "NetworkPolicy", "automixalign-champion")["spec"]
    labels = champion["spec"]["predictor"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    peers = named(documents, "NetworkPolicy", "automixalign-mlflow")["spec"]["ingress"][0]["from"]
    assert {"podSelector": {"matchLabels": {"automixalign/mlflow-client": "true"}}} in peers
    assert labels["automixalign/mlflow-client"] == "true"
    variables = {each["name"]: each for each in container["env"]}
    assert variables["MLFLOW_TRACKING_URI"]["valueFrom"]["configMapKeyRef"]["name"] == "automixalign-env"


def test_the_server_is_that_of_the_page_in_the_image_of_the_stages(champion: dict[str, Any]) -> None:
    (container,) = champion["spec"]["predictor"]["containers"]
    assert container["name"] == "kserve-container", "KServe looks for this name"
    assert container["image"] == f"automixalign:{__version__}"
    page = (MANIFESTS.parent / "docs" / "serving.md").read_text(encoding="utf-8")
    (options,) = re.findall(r"^mlflow models serve (.*)$", page, re.MULTILINE)
    command = " ".join([*container["command"], *container["args"]])
    assert command.startswith("mlflow models serve --model-uri=models:/assistant@champion --env-manager=local")
    assert options.startswith("-m models:/assistant@champion --env-manager local")
    (port,) = container["ports"]
    assert f"--port={port['containerPort']} " in command
    assert {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe")} == {"/ping"}
