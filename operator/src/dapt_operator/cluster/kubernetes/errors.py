"""Defines what can go wrong between the operator and the API server; `cluster/errors.py` draws the whole tree."""

from __future__ import annotations

from dapt_operator.cluster.errors import ClusterError


class ApiError(ClusterError):
    """The API server did not do what was requested."""

    def __init__(self, request: str, status: int, reason: str, message: str) -> None:
        """
        Args:
            request: for example `POST /api/v1/namespaces/team/configmaps`.
            status: HTTP status; 0 when there was no answer.
            reason: Kubernetes' reason, for example `AlreadyExists`; may be empty.
            message: Kubernetes' message, or what went wrong with the connection.
        """
        super().__init__(f"{request}: {status or 'no answer'} {reason}: {message}".replace("  ", " "))
        self.status = status
        self.reason = reason
        self.message = message


class RequestRefusedError(ApiError):
    """The request itself is refused: RBAC, an admission webhook, a quota of objects, a schema. User action required."""


class ApiUnavailableError(ApiError):
    """The API server is unreachable, overloaded or broken. A retry helps."""


class NotLeaderError(ClusterError):
    """This process does not hold the Lease now, so it may not write. A retry helps once it holds it again; when another
    process has taken the Lease, this one ends."""


class NoConnectionError(ClusterError):
    """Nothing says how to reach the API server, or what says so cannot be used. User action required."""
