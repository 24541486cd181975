"""Validates an InferenceService of KServe (serving.kserve.io/v1beta1), whose schema has a megabyte.

A predictor is a pod with keys of KServe beside it. The pod is validated against the schema of Kubernetes. The
other keys are those of `ComponentExtensionSpec` in pkg/apis/serving/v1beta1/component.go of KServe that do not
depend on its version.
"""

from typing import Any

import jsonschema
import kubernetes_validate

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_OWN_KEYS = {
    "minReplicas": {"type": "integer", "minimum": 0},
    "maxReplicas": {"type": "integer", "minimum": 0},
    "scaleTarget": {"type": "integer"},
    "scaleMetric": {"enum": ["cpu", "memory", "concurrency", "rps"]},
    "containerConcurrency": {"type": "integer", "minimum": 0},
    "timeout": {"type": "integer"},
    "canaryTrafficPercent": {"type": "integer"},
    "labels": _TEXTS,
    "annotations": _TEXTS,
}
_SCHEMA = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "serving.kserve.io/v1beta1"},
        "kind": {"const": "InferenceService"},
        "metadata": {
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {
                "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
                "namespace": {"type": "string"},
                "labels": _TEXTS,
                "annotations": _TEXTS,
            },
        },
        "spec": {
            "type": "object",
            "required": ["predictor"],
            "additionalProperties": False,
            "properties": {
                "predictor": {"type": "object", "properties": _OWN_KEYS, "required": ["containers"]}
            },
        },
    },
}


def validate(document: dict[str, Any], kubernetes: str) -> None:
    """Validate a document.

    Raises:
        jsonschema.ValidationError: a part of KServe is wrong.
        kubernetes_validate.ValidationError: the pod is wrong, or has an unknown field.
    """
    jsonschema.validate(document, _SCHEMA)
    kubernetes_validate.validate(pod(document), kubernetes, strict=True)


def pod(document: dict[str, Any]) -> dict[str, Any]:
    """The pod of a predictor."""
    predictor = document["spec"]["predictor"]
    metadata = {"name": document["metadata"]["name"], "labels": predictor.get("labels", {})}
    spec = {key: value for key, value in predictor.items() if key not in _OWN_KEYS}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
