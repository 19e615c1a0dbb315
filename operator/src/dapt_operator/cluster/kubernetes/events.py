"""Kubernetes Events of ours."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from dapt_operator.api.names import API_VERSION
from dapt_operator.cluster.port import Event, Key

COMPONENT = "dapt"
_MAX_MESSAGE_BYTES = 1024
"""The API server refuses a longer one."""


def event_manifest(key: Key, identity: tuple[str, str] | None, event: Event) -> dict[str, Any]:
    """An Event about an adaptation. Its name is made here, so that sending it twice posts it once.

    Args:
        key: of the adaptation.
        identity: its uid and resource version, if it is known.
        event: what happened.
    """
    uid, version = identity or ("", "")
    now = datetime.now(UTC)
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{key.name}.{uuid.uuid4().hex[:16]}", "namespace": key.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": "DomainAdaptation",
            "namespace": key.namespace,
            "name": key.name,
            "uid": uid,
            "resourceVersion": version,
        },
        "type": event.type,
        "reason": event.reason,
        "message": _cut(event.message),
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }


def _cut(message: str) -> str:
    """At most 1,024 bytes, with an ellipsis where something is missing."""
    encoded = message.encode(errors="replace")
    if len(encoded) <= _MAX_MESSAGE_BYTES:
        return message
    return encoded[: _MAX_MESSAGE_BYTES - 3].decode(errors="ignore") + "…"
