"""Renders the Kubernetes Events that the operator posts."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Final

from dapt_contract.sentences import shortened_to_bytes
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
        "message": shortened_to_bytes(event.message, _MAX_MESSAGE_BYTES),
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
