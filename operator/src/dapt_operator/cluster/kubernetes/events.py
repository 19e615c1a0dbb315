"""Renders the Kubernetes Events that the operator posts."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Final

from dapt_operator.api.names import API_VERSION
from dapt_operator.api.v1alpha1.conditions import timestamp
from dapt_operator.cluster.port import Event, Key
from dapt_operator.stage_run import JsonObject

COMPONENT: Final = "dapt"
_MAX_MESSAGE_BYTES: Final = 1024
"""The API server refuses an Event with a longer message."""


def event_manifest(key: Key, identity: tuple[str, str] | None, event: Event) -> JsonObject:
    """Return an Event about an adaptation. The name is chosen here, so that sending the Event twice posts it once.

    Args:
        key: of the adaptation.
        identity: its uid and resource version, if they are known.
        event: what happened.
    """
    uid, version = identity or ("", "")
    now = timestamp(datetime.now(UTC))
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
        "message": _shortened(event.message),
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def _shortened(message: str) -> str:
    """Return at most 1,024 bytes of the message, with an ellipsis at the end if it was cut."""
    encoded = message.encode(errors="replace")
    if len(encoded) <= _MAX_MESSAGE_BYTES:
        return message
    # The ellipsis takes three bytes. The cut may lie inside a character, whose first bytes are dropped.
    return encoded[: _MAX_MESSAGE_BYTES - 3].decode(errors="ignore") + "…"
