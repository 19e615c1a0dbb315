"""What can go wrong between us and the API server.

ApiError            an answer that is no success
├── Refused         400, 403, 413, 422: the same request is refused again, until a person changes something
└── Unavailable     no answer, or 429 and 5xx to the last retry: the same request may succeed later
NotLeader           this process may not write (any more): end quietly, another operator goes on
"""

from __future__ import annotations


class ApiError(Exception):
    """The API server did not do what was asked."""

    def __init__(self, request: str, status: int, reason: str, message: str) -> None:
        """
        Args:
            request: for example `POST /api/v1/namespaces/team/configmaps`.
            status: of HTTP; 0 when there was no answer.
            reason: Kubernetes' own word, for example `AlreadyExists`; may be empty.
            message: Kubernetes' own sentence, or what went wrong with the connection.
        """
        super().__init__(f"{request}: {status or 'no answer'} {reason}: {message}".replace("  ", " "))
        self.status = status
        self.reason = reason
        self.message = message


class RequestRefusedError(ApiError):
    """The request itself is refused: RBAC, an admission webhook, a quota of objects, a schema."""


class ApiUnavailableError(ApiError):
    """The API server is away, overloaded or broken. A retry helps."""


class NotLeaderError(Exception):
    """The Lease is not held, so nothing may be written. Another operator goes on: end quietly."""
