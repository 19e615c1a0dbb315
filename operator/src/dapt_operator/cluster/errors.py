"""Defines what the verbs of a cluster raise. One tree; each class says whether a retry helps.

ClusterError
├── ConflictError             someone else wrote the resource: observe again, then retry at once
├── NameTakenError            another object has the name: take the next run number if it is ours, else user action
├── CannotCreateError         the cluster refuses the object: user action
├── LocalRunError             `local`: the run folder or the spec forbids the run: user action
├── NotLeaderError            `kubernetes`: the Lease is not held: retry once it is, without a report
├── NoConnectionError         `kubernetes`: neither a service account nor a kubeconfig that can be used: user action
└── ApiError                  `kubernetes`: an answer that is no success
    ├── RequestRefusedError   400, 403, 405, 413, 422: the same request is refused again: user action
    └── ApiUnavailableError   no answer, or 429 and 5xx up to the last attempt: retry later

The adapters' own branches are in `local/errors.py` and `kubernetes/errors.py`.
"""

from __future__ import annotations


class ClusterError(Exception):
    """Base of all errors that a verb of the port raises on purpose."""


class ConflictError(ClusterError):
    """Someone wrote the resource since it was observed. Observe again; a retry helps."""


class NameTakenError(ClusterError):
    """An object of ours cannot be created because another object has its name. A user must move that one away."""

    def __init__(self, kind: str, name: str, why: str, *, is_ours: bool = False) -> None:
        """
        Args:
            kind: of the object.
            name: of the object.
            why: whose object it is, for example `it has no owner`.
            is_ours: whether it belongs to this adaptation and has other content: it was left by a run that never
                started, or was changed since. The next run number then gives a free name.
        """
        problem = "has other content than it should" if is_ours else "is not this adaptation's"
        super().__init__(f"{kind} {name} exists already and {problem}: {why}")
        self.kind = kind
        self.name = name
        self.why = why
        self.is_ours = is_ours


class CannotCreateError(ClusterError):
    """The cluster refuses an object of ours, and will refuse it again until a user changes something."""

    def __init__(self, kind: str, name: str, why: str) -> None:
        """
        Args:
            kind: of the object.
            name: of the object.
            why: message of the cluster.
        """
        super().__init__(f"the cluster refuses {kind} {name}: {why}")
