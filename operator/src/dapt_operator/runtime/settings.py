"""Checks the options of `dapt operator` and completes them to its settings."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from dapt_operator.runtime.errors import BadSettingError

LogFormat = Literal["json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]
LOG_FORMATS: Final[tuple[LogFormat, ...]] = ("json", "text")
LOG_LEVELS: Final[tuple[LogLevel, ...]] = ("debug", "info", "warning", "error")

DEFAULT_RELEASE: Final = "dapt"
SERVICE_ACCOUNT_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True)
class Settings:
    """Settings of one operator process."""

    namespaces: tuple[str, ...] = ()
    """Namespaces whose adaptations are reconciled; none: the whole cluster."""
    instance: str = f"default/{DEFAULT_RELEASE}"
    """Name of this installation. An adaptation belongs to the instance that reconciled it first; others leave it
    alone."""
    lease_namespace: str = "default"
    lease_name: str = DEFAULT_RELEASE
    identity: str = "dapt"
    """Name of this process in the Lease."""
    port: int = 8080
    """Port of /healthz, /readyz and /metrics; 0: any free one."""
    workers: int = 8
    """Adaptations that are reconciled concurrently: enough to hide the API's latency, few enough for one CPU."""
    resync_seconds: float = 600.0
    """Interval at which everything is listed again, in case a watch has missed something, and at which adaptations that
    have not ended are reconciled without a change."""
    log_format: LogFormat = "json"
    log_level: LogLevel = "info"

    @property
    def lease_title(self) -> str:
        """Namespace and name of the Lease, for the log."""
        return f"{self.lease_namespace}/{self.lease_name}"


@dataclass(frozen=True)
class Options:
    """Options of `dapt operator` as given, unchecked; None: derived from where the process runs."""

    namespaces: Sequence[str] = Settings.namespaces
    instance: str | None = None
    lease_namespace: str | None = None
    lease_name: str | None = None
    port: int = Settings.port
    workers: int = Settings.workers
    resync_seconds: float = Settings.resync_seconds
    log_format: str = Settings.log_format
    log_level: str = Settings.log_level


def make_settings(options: Options) -> Settings:
    """Return the settings that follow from the options.

    Raises:
        BadSettingError: with every problem at once.
    """
    lease_namespace = options.lease_namespace or own_namespace()
    instance = options.instance or f"{lease_namespace}/{DEFAULT_RELEASE}"
    lease_name = options.lease_name or instance.rpartition("/")[2]
    log_format = next((name for name in LOG_FORMATS if name == options.log_format), None)
    log_level = next((name for name in LOG_LEVELS if name == options.log_level), None)
    problems = [
        f"--namespace {name!r}: not a namespace; give the name of one, and the option again for each further one"
        for name in options.namespaces
        if not _LABEL.fullmatch(name)
    ]
    if not all(_NAME.fullmatch(part) for part in instance.split("/")) or len(instance) > 128:
        problems.append(f"--instance {instance!r}: write NAMESPACE/RELEASE, at most 128 characters")
    if not _LABEL.fullmatch(lease_namespace):
        problems.append(f"--lease-namespace {lease_namespace!r}: not a namespace")
    if not _NAME.fullmatch(lease_name):
        problems.append(f"--lease-name {lease_name!r}: not the name of an object")
    if not 0 <= options.port <= 65535:
        problems.append(f"--port {options.port}: a port is 1 to 65535, or 0 for any free one")
    if not 1 <= options.workers <= 64:
        problems.append(f"--workers {options.workers}: give a number from 1 to 64")
    if not 1 <= options.resync_seconds <= 3600:
        problems.append(f"--resync-seconds {options.resync_seconds:g}: give a number from 1 to 3600")
    if log_format is None:
        problems.append(f"--log-format {options.log_format!r}: give json or text")
    if log_level is None:
        problems.append(f"--log-level {options.log_level!r}: give debug, info, warning or error")
    if problems or log_format is None or log_level is None:
        raise BadSettingError(problems)
    return Settings(
        # Named twice, a namespace would be listed and watched twice.
        namespaces=tuple(dict.fromkeys(options.namespaces)),
        instance=instance,
        lease_namespace=lease_namespace,
        lease_name=lease_name,
        # With the pod's uid, so that a container that restarts in its pod has its Lease at once.
        identity=f"{socket.gethostname()}_{os.environ.get('POD_UID') or os.getpid()}",
        port=options.port,
        workers=options.workers,
        resync_seconds=options.resync_seconds,
        log_format=log_format,
        log_level=log_level,
    )


def own_namespace() -> str:
    """Return the namespace of the pod that this process runs in; `default` outside a cluster."""
    if namespace := os.environ.get("POD_NAMESPACE"):
        return namespace
    try:
        return SERVICE_ACCOUNT_NAMESPACE.read_text().strip() or "default"
    except OSError:
        return "default"
