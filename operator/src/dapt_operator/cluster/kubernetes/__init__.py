"""The cluster port on Kubernetes: watches and own writes fill one memory, the five verbs read and write."""

from dapt_operator.cluster.kubernetes.cache.store import Store
from dapt_operator.cluster.kubernetes.cluster import KubernetesCluster
from dapt_operator.cluster.kubernetes.errors import (
    ApiError,
    ApiUnavailableError,
    NotLeaderError,
    RequestRefusedError,
)
from dapt_operator.cluster.kubernetes.lease import Leadership

__all__ = [
    "ApiError",
    "ApiUnavailableError",
    "KubernetesCluster",
    "Leadership",
    "NotLeaderError",
    "RequestRefusedError",
    "Store",
]
