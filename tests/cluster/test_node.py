"""The whole node itself: a pod with a name and a log, a device that is only claimed, and what is left behind."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest

from testcluster import cgroups, host_pods
from testcluster.control_plane import ControlPlane
from testcluster.network import bridge
from testcluster.node import HIDDEN, WholeNode, hindrance
from testcluster.waiting import eventually

# The timeout includes the wait for the node of the other worker's tests (`testcluster.network`).
pytestmark = [pytest.mark.cluster, pytest.mark.whole_node, pytest.mark.timeout(1800)]

POD_SECONDS = 120.0
NAMESPACE = "node"
LOOKS_ITSELF_UP = """
import socket, time
while True:
    try:
        print(socket.gethostbyname("it.family"), flush=True)
        break
    except OSError:
        time.sleep(0.1)
time.sleep(1000)
"""
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "family", "namespace": NAMESPACE},
    "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"family": "one"}},
}


def pod() -> dict[str, Any]:
    spec = host_pods.pod_template()["spec"]
    container = spec["containers"][0] | {
        "image": host_pods.BASE_IMAGE.reference,
        "command": ["python", "-c", LOOKS_ITSELF_UP],
        "resources": {"limits": {"nvidia.com/gpu": "8"}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "it", "namespace": NAMESPACE, "labels": {"family": "one"}},
        "spec": spec | {"containers": [container], "hostname": "it", "subdomain": "family"},
    }


def traces(node: WholeNode) -> dict[str, Any]:
    """What there is of the node on this machine."""
    mounts = Path("/proc/self/mounts").read_text()
    return {
        "mounts": str(node.folder) in mounts,
        "folder": node.folder.exists(),
        "bridge": Path("/sys/class/net", node.network.name).exists(),
        "groups": any((it / node.cgroup).exists() for it in cgroups.ROOT.iterdir()),
    }


def test_pod_runs_on_the_node_and_cleanup_leaves_nothing() -> None:
    why_not = hindrance()
    if why_not:
        pytest.skip(why_not)
    with ControlPlane(node_lifecycle=True) as plane, bridge() as network:
        hidden_before = [path for path in HIDDEN if Path(path).exists()]
        with WholeNode(
            plane, network, images=[host_pods.BASE_IMAGE], capacity={"nvidia.com/gpu": "8"}
        ) as node:
            plane.make_namespace(NAMESPACE, host_pods.PRIVILEGED)
            for manifest in (SERVICE, pod()):
                plane.api.create(manifest)
            path = plane.api.path("Pod", NAMESPACE, "it")

            def told() -> str:
                status = plane.api.request("GET", path)["status"]
                assert status["phase"] == "Running", status
                return str(plane.api.request("GET", f"{path}/log")).strip()

            address = eventually(told, "the pod's log", seconds=POD_SECONDS)
            made = plane.api.request("GET", path)
            assert address == made["status"]["podIP"]
            assert ipaddress.ip_address(address) in ipaddress.ip_network(network.subnet)
            processes = node.processes_of(made["metadata"]["uid"])
            assert len(processes) == 1
            assert traces(node)["mounts"] is False, "they are in the node's own namespace"
        # Before the bridge goes: after it, another worker's node may make the same folders.
        assert [path for path in HIDDEN if Path(path).exists()] == hidden_before
        assert not any(Path(f"/proc/{pid}").exists() for pid in processes)
    assert traces(node) == {"mounts": False, "folder": False, "bridge": False, "groups": False}
