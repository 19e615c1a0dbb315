"""Writes states as JSON for scripts: Kubernetes' own shape, without the operator's ledger, which is no interface."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dapt_operator.api.names import API_VERSION

KIND = "DomainAdaptation"


def state_json(resource: Mapping[str, Any]) -> str:
    """Return one adaptation with its status as JSON text."""
    return _text(_state(resource))


def states_json(resources: Sequence[Mapping[str, Any]]) -> str:
    """Return several adaptations with their status as JSON text: a list under `items`."""
    return _text({"apiVersion": API_VERSION, "kind": f"{KIND}List", "items": [*map(_state, resources)]})


def _state(resource: Mapping[str, Any]) -> dict[str, Any]:
    metadata = resource.get("metadata") or {}
    kept = ("name", "namespace", "uid", "generation", "creationTimestamp")
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {name: metadata[name] for name in kept if name in metadata},
        "status": {name: value for name, value in (resource.get("status") or {}).items() if name != "ledger"},
    }


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, default=str)
