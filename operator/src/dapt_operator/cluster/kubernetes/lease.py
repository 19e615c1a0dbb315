"""One operator acts at a time: a Lease of coordination.k8s.io/v1."""

from __future__ import annotations

from collections.abc import Callable

import kubernetes.client


class Leadership:
    """Takes the Lease, keeps it, and knows at every moment whether it may still act on it."""

    def __init__(self, api: kubernetes.client.ApiClient, namespace: str, name: str, identity: str) -> None:
        """`identity`: the pod's name and uid: a container that starts again in its pod goes on with its Lease."""

    def start(self, on_lost: Callable[[], None], on_held: Callable[[], None] | None = None) -> None:
        """Begin to ask for the Lease, in a thread. Each callback is called at most once, from that thread."""
        raise NotImplementedError

    def is_held(self) -> bool:
        """Whether we may write now; never true in two processes at once."""
        raise NotImplementedError

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until it is held; returns whether it is."""
        raise NotImplementedError

    def stop(self) -> None:
        """Give the Lease back, so that the next operator need not wait."""
        raise NotImplementedError
