"""Finds what a pod template breaks of the restricted Pod Security standard.

Every pod that is made without a template keeps it, and a test proves that for all that launchers render. A platform
team may widen it, `IPC_LOCK` for a fabric for example; the namespace must then allow it, so the plan warns beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

_VOLUMES: Final = (
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
)
_HOST: Final = ("hostNetwork", "hostPID", "hostIPC")
_SELINUX_TYPES: Final = ("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
_SYSCTLS: Final = (
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
)
_CONTAINERS: Final = ("initContainers", "containers", "ephemeralContainers")


def breaches(pod: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a PodSpec has that the restricted standard forbids, each with its path; empty when it keeps it.

    Never raises: a value of a wrong shape counts as absent, and Kubernetes refuses it.
    """
    return tuple(_pod(pod))


def _pod(pod: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{name} is true" for name in _HOST if pod.get(name))
    for volume in _blocks(pod, "volumes"):
        for kind in volume:
            if kind != "name" and kind not in _VOLUMES:
                yield f"volume {volume.get('name')} is of kind {kind}"
    context = _block(pod, "securityContext")
    yield from _context_breaches(context, "securityContext")
    for sysctl in _blocks(context, "sysctls"):
        if sysctl.get("name") not in _SYSCTLS:
            yield f"securityContext.sysctls sets {sysctl.get('name')}"
    for kind in _CONTAINERS:
        for container in _blocks(pod, kind):
            yield from _container(container, context, f"{kind}[{container.get('name')}]")


def _container(
    container: Mapping[str, Any], pod_context: Mapping[str, Any], container_path: str
) -> Iterator[str]:
    context = _block(container, "securityContext")
    path = f"{container_path}.securityContext"
    yield from _context_breaches(context, path)
    if context.get("privileged"):
        yield f"{path}.privileged is true"
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{path}.allowPrivilegeEscalation is not false"
    if not context.get("runAsNonRoot", pod_context.get("runAsNonRoot")):
        yield f"{path}.runAsNonRoot is not true"
    seccomp = (_block(context, "seccompProfile") or _block(pod_context, "seccompProfile")).get("type")
    if seccomp not in ("RuntimeDefault", "Localhost"):
        yield f"{path}.seccompProfile is {seccomp or 'absent'}"
    capabilities = _block(context, "capabilities")
    if "ALL" not in _list(capabilities, "drop"):
        yield f"{path}.capabilities.drop lacks ALL"
    added = [name for name in _list(capabilities, "add") if name != "NET_BIND_SERVICE"]
    if added:
        yield f"{path}.capabilities.add has {', '.join(map(str, added))}"
    if (context.get("procMount") or "Default") != "Default":
        yield f"{path}.procMount is {context['procMount']}"
    yield from (
        f"{container_path} uses port {port['hostPort']} of its host"
        for port in _blocks(container, "ports")
        if port.get("hostPort")
    )


def _context_breaches(context: Mapping[str, Any], path: str) -> Iterator[str]:
    """Yield breaches by the fields that the security contexts of pods and of containers share."""
    if context.get("runAsUser") == 0:
        yield f"{path}.runAsUser is 0"
    if context.get("runAsNonRoot") is False:
        yield f"{path}.runAsNonRoot is false"
    if _block(context, "seccompProfile").get("type") == "Unconfined":
        yield f"{path}.seccompProfile is Unconfined"
    if _block(context, "appArmorProfile").get("type") == "Unconfined":
        yield f"{path}.appArmorProfile is Unconfined"
    selinux = _block(context, "seLinuxOptions")
    if selinux.get("user") or selinux.get("role") or (selinux.get("type") or "") not in _SELINUX_TYPES:
        yield f"{path}.seLinuxOptions sets user, role or a type of its own"
    if _block(context, "windowsOptions").get("hostProcess"):
        yield f"{path}.windowsOptions.hostProcess is true"


def _block(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, Mapping) else {}


def _list(parent: Mapping[str, Any], name: str) -> Sequence[Any]:
    value = parent.get(name)
    return value if isinstance(value, list | tuple) else ()


def _blocks(parent: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], ...]:
    return tuple(item for item in _list(parent, name) if isinstance(item, Mapping))
