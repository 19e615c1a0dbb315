"""Implements the cluster port on Kubernetes.

Watches and own writes fill one cache (`cache/`), `observe` reads it, the other verbs send requests (`client.py`), and
`polls/` asks for what no watch reports.
"""

from dapt_operator.cluster.kubernetes.cache.entry import Summary
from dapt_operator.cluster.kubernetes.cache.store import Store
from dapt_operator.cluster.kubernetes.cluster import KubernetesCluster
from dapt_operator.cluster.kubernetes.connection import Connection
from dapt_operator.cluster.kubernetes.errors import (
    ApiError,
    ApiUnavailableError,
    NoConnectionError,
    NotLeaderError,
    RequestRefusedError,
)
from dapt_operator.cluster.kubernetes.lease import Leadership

__all__ = [
    "ApiError",
    "ApiUnavailableError",
    "Connection",
    "KubernetesCluster",
    "Leadership",
    "NoConnectionError",
    "NotLeaderError",
    "RequestRefusedError",
    "Store",
    "Summary",
]
