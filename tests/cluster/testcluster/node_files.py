"""Configuration files of a node: container runtime, network, kubelet, name server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testcluster.network import Bridge

PAUSE_IMAGE = "registry.example/dapt-test/pause:1"


@dataclass(frozen=True)
class NodeFolders:
    """Where things of one node lie, below a folder with a short path (a socket's has at most 107 characters)."""

    base: Path

    @property
    def socket(self) -> Path:
        """Of containerd."""
        return self.base / "c" / "containerd.sock"

    def written(self, name: str, text: str) -> Path:
        """A file with this text."""
        path = self.base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path


def containerd_config(folders: NodeFolders, plugin_folder: Path) -> Path:
    """Everything below the node's folder; images are tiny, so that copying them beats asking for overlayfs."""
    base = folders.base
    return folders.written(
        "containerd.toml",
        f"""\
version = 2
root = "{base}/c/root"
state = "{base}/c/state"
oom_score = 0

[grpc]
  address = "{folders.socket}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  enable_unprivileged_ports = false

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugin_folder}"
    conf_dir = "{base}/cni"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    snapshotter = "native"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
""",
    )


def network_config(folders: NodeFolders, bridge: Bridge) -> Path:
    """Pods reach each other and the machine, and nothing else."""
    plugin = {
        "type": "bridge",
        "bridge": bridge.name,
        "isGateway": True,
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": bridge.subnet, "gateway": bridge.address}]],
            "dataDir": str(folders.base / "addresses"),
        },
    }
    config = {"cniVersion": "1.0.0", "name": "dapt", "plugins": [plugin]}
    return folders.written("cni/10-dapt.conflist", json.dumps(config))


def kubelet_config(
    folders: NodeFolders, bridge: Bridge, port: int, health_port: int, cgroup: str, changes: Mapping[str, Any]
) -> Path:
    """A kubelet that takes the whole machine, evicts nothing and lets the API server in."""
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": bridge.address,
        "port": port,
        "readOnlyPort": 0,
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": health_port,
        # Reachable from this machine and its pods alone, as long as the tests run.
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": f"unix://{folders.socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [bridge.address],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "localStorageCapacityIsolation": False,
        "evictionHard": {
            "memory.available": "1Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
            "imagefs.inodesFree": "0%",
        },
        "imageGCHighThresholdPercent": 100,  # never: what was imported cannot be pulled
        "nodeStatusUpdateFrequency": "5s",
        "podLogsDir": str(folders.base / "logs"),
        "volumePluginDir": str(folders.base / "plugins"),
        "oomScoreAdj": 0,
    }
    return folders.written("kubelet.yaml", json.dumps(config | dict(changes)))


def name_server_config(folders: NodeFolders, bridge: Bridge, kubeconfig: Path, health_port: int) -> Path:
    """Answers for the cluster's names as soon as their endpoints are there."""
    return folders.written(
        "Corefile",
        f"""\
.:53 {{
  bind {bridge.address}
  errors
  health 127.0.0.1:{health_port}
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {kubeconfig}
    ttl 0
  }}
}}
""",
    )
