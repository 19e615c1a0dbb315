"""Settings of `dapt operator`, and how kopf is set: each number with its reason."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import kopf

from dapt_operator.api.names import GROUP, LABEL_UID

LogFormat = Literal["json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]

DEFAULT_RELEASE: Final = "dapt"
SERVICE_ACCOUNT_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


class BadSettingError(ValueError):
    """A setting that cannot be used. problems: one sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems))


@dataclass(frozen=True)
class Settings:
    """How the operator runs."""

    namespaces: tuple[str, ...] = ()
    """Looked after; none: the whole cluster."""
    instance: str = f"default/{DEFAULT_RELEASE}"
    """Who this operator is. An adaptation belongs to the instance that took it up first; others leave it alone."""
    lease_namespace: str = "default"
    lease_name: str = DEFAULT_RELEASE
    identity: str = "dapt"
    """Of this process, in the Lease."""
    port: int = 8080
    """Of /healthz, /readyz and /metrics; 0: any free one."""
    workers: int = 8
    """Adaptations worked on at once: enough to hide the API's latency, few enough for one CPU."""
    resync_seconds: float = 60.0
    """How often everything is listed anew, in case that a watch went silent or a deletion was missed."""
    log_format: LogFormat = "json"
    log_level: LogLevel = "info"


def make_settings(
    *,
    namespaces: Sequence[str] = (),
    instance: str | None = None,
    lease_namespace: str | None = None,
    lease_name: str | None = None,
    port: int = 8080,
    workers: int = 8,
    resync_seconds: float = 60.0,
    log_format: str = "json",
    log_level: str = "info",
) -> Settings:
    """Settings from what was asked for; what was not comes from where the process runs.

    Raises:
        BadSetting: with every problem at once.
    """
    home = own_namespace()
    lease_namespace = lease_namespace or home
    instance = instance or f"{lease_namespace}/{DEFAULT_RELEASE}"
    lease_name = lease_name or instance.rpartition("/")[2]
    problems = [
        f"--namespace {name!r}: not a namespace; give the name of one, and the option again for each further one"
        for name in namespaces
        if not _LABEL.fullmatch(name)
    ]
    if not all(_NAME.fullmatch(part) for part in instance.split("/")) or len(instance) > 128:
        problems.append(f"--instance {instance!r}: write NAMESPACE/RELEASE, at most 128 characters")
    if not _LABEL.fullmatch(lease_namespace):
        problems.append(f"--lease-namespace {lease_namespace!r}: not a namespace")
    if not _NAME.fullmatch(lease_name):
        problems.append(f"--lease-name {lease_name!r}: not the name of an object")
    if not 0 <= port <= 65535:
        problems.append(f"--port {port}: a port is 1 to 65535, or 0 for any free one")
    if not 1 <= workers <= 64:
        problems.append(f"--workers {workers}: 1 to 64")
    if not 1 <= resync_seconds <= 3600:
        problems.append(f"--resync-seconds {resync_seconds:g}: 1 to 3600")
    if log_format not in ("json", "text"):
        problems.append(f"--log-format {log_format!r}: json or text")
    if log_level not in ("debug", "info", "warning", "error"):
        problems.append(f"--log-level {log_level!r}: debug, info, warning or error")
    if problems:
        raise BadSettingError(problems)
    return Settings(
        namespaces=tuple(dict.fromkeys(namespaces)),
        instance=instance,
        lease_namespace=lease_namespace,
        lease_name=lease_name,
        identity=f"{socket.gethostname()}_{os.environ.get('POD_UID') or os.getpid()}",
        port=port,
        workers=workers,
        resync_seconds=resync_seconds,
        log_format="text" if log_format == "text" else "json",
        log_level=log_level,  # type: ignore[arg-type]  # checked above
    )


def own_namespace() -> str:
    """The namespace of the pod that this process runs in; `default` outside a cluster."""
    if named := os.environ.get("POD_NAMESPACE"):
        return named
    try:
        return SERVICE_ACCOUNT_NAMESPACE.read_text().strip() or "default"
    except OSError:
        return "default"


# --- kopf ---

BOOKMARK_SECONDS = 60.0
"""The API server sends each watch a bookmark about this often, so silence for longer means a dead connection."""


class Forever:
    """Pauses between the attempts of one API request of kopf's, in seconds, without an end.

    With an end kopf would give up, and the whole operator with it, when the API server is away for longer.
    """

    _FIRST = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
    _THEN = 15.0

    def __iter__(self) -> Iterator[float]:
        yield from self._FIRST
        while True:
            yield self._THEN


class NoHistory(kopf.DiffBaseStorage):
    """Nothing is remembered of an object, and so nothing written to it: only high-level handlers would need that, and
    there are none. It also spares a deep copy of each object at each event."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        raise AssertionError("nothing of kopf's is ever written to an object")


def set_kopf(settings: kopf.OperatorSettings) -> None:
    """Set kopf to watch and to do nothing else."""
    settings.posting.enabled = False  # our Events are a fixed set of our own
    settings.peering.standalone = True  # a Lease of our own decides who acts
    settings.scanning.disabled = (
        True  # no rights on CRDs and namespaces; which kinds are there we ask ourselves
    )
    settings.persistence.diffbase_storage = NoHistory()
    # Watches, as one unit: the server ends each after about 5 minutes and it goes on where it was (no new list); a
    # connection that died is noticed by silence, or at the latest a little after the server should have ended it.
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    settings.watching.inactivity_timeout = BOOKMARK_SECONDS + 15
    settings.watching.reconnect_backoff = 0.5
    settings.watching.chunk_size = 500  # lists come in pages, so that memory does not peak with them
    for plural in (("v1", "pods"), ("batch", "v1", "jobs"), ("jobset.x-k8s.io", "v1alpha2", "jobsets")):
        settings.watching.label_selectors[plural] = LABEL_UID  # the API server sends us our own alone
    settings.networking.request_timeout = 60
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = Forever()
    settings.queueing.worker_limit = None  # a limit keeps a slot for idle_timeout after each event
    settings.queueing.idle_timeout = 1.0  # an object's last body lives that long in kopf's memory
    settings.queueing.exit_timeout = 0.5  # nothing is lost: handlers only take notes
    settings.process.ultimate_exiting_timeout = None  # the process ends by our own hand


WATCHED: Final = (
    (GROUP, "v1alpha1", "domainadaptations"),
    (GROUP, "v1alpha1", "adaptationprofiles"),
    ("batch", "v1", "jobs"),
    ("", "v1", "pods"),
)
"""Group, version and plural of what is always there."""
JOBSETS: Final = ("jobset.x-k8s.io", "v1alpha2", "jobsets")
"""Watched where the JobSet controller is installed and the operator may see them."""
