"""A whole node below a test control plane: kubelet, containerd, pod network and name server on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from testcluster import build, cgroups, node_files, packages
from testcluster.control_plane import ControlPlane
from testcluster.images import Image, write_archive
from testcluster.network import Bridge
from testcluster.node_init import NodePlan
from testcluster.processes import Process, free_port
from testcluster.waiting import eventually

START_SECONDS = 90.0
STORAGE = {"ephemeral-storage": "100Gi"}
"""Its kubelet does not measure the disk (`localStorageCapacityIsolation`), and then a node offers none by itself."""
FOLDER = "dapt-node-"
"""Of the folder's name; the rest is the process id of its owner. Those of dead owners are removed by the next one."""
HIDDEN = ("/var/lib/kubelet", "/var/lib/cni", "/var/log/containers", "/var/log/pods")
"""Paths that kubelet and runtime have built in: the node's own folders lie over them, for its processes alone."""
ISOLATED = (
    "unshare",
    "--mount",
    "--propagation",
    "private",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
)


def hindrance() -> str:
    """Why no node can run here, in one sentence with the next step; empty when one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "the whole node runs containers: run its tests as root on Linux"
    lacking = packages.missing()
    if lacking:
        return f"the whole node lacks {', '.join(lacking)}: `make cluster` installs them where there is apt"
    unbuilt = [name for name in ("coredns", "pause") if build.built(name) is None]
    if unbuilt and not build.have_go():
        return f"the whole node needs {' and '.join(unbuilt)}: `make cluster` builds them where there is Go"
    trial = subprocess.run([*ISOLATED, "true"], capture_output=True, text=True, check=False)
    said = trial.stderr.strip() if trial.returncode else cgroups.hindrance()
    if said:
        return f"the whole node may not run containers here ({said}): run its tests on a machine of their own"
    return ""


class WholeNode:
    """Context manager: a Ready node within it, nothing of it afterwards.

    Args:
        control_plane: with the node lifecycle controller, which takes away the taint of a new node; if its address is
            the bridge's, pods reach the API server there.
        network: where pods get their addresses from.
        images: what pods may be made of, beside the pause image; nothing is pulled.
        kubelet: changes to the kubelet's configuration.
        capacity: further resources that the node claims to have, such as `nvidia.com/gpu`.

    Raises:
        StartError, AssertionError: a program does not come up; with the end of its log.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        network: Bridge,
        *,
        images: Sequence[Image] = (),
        kubelet: Mapping[str, Any] | None = None,
        capacity: Mapping[str, str] | None = None,
    ) -> None:
        self._control_plane = control_plane
        self.network = network
        self._images = tuple(images)
        self._kubelet = kubelet or {}
        self._capacity = {**STORAGE, **(capacity or {})}
        self._stack = contextlib.ExitStack()
        self.name = f"node-{os.getpid()}"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def processes_of(self, pod_uid: str) -> tuple[int, ...]:
        """Process ids of a pod's containers, as this machine counts them; without that of its sandbox."""
        found = cgroups.processes_below(self.cgroup, f"pod{pod_uid}")
        return tuple(pid for pid in found if _program(pid) not in ("", "pause"))

    def log(self, name: str) -> str:
        """What `containerd`, `kubelet`, `coredns` or `node` wrote so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _start(self) -> None:
        for left in Path("/tmp").glob(f"{FOLDER}*"):
            if not Path("/proc", left.name.removeprefix(FOLDER)).exists():
                shutil.rmtree(left, ignore_errors=True)
        # Not below pytest's own folder: a socket's path has at most 107 characters.
        self.folder = Path(f"/tmp/{FOLDER}{os.getpid()}")
        self.folder.mkdir(mode=0o700)
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.cgroup = self._stack.enter_context(cgroups.cgroup())
        self._start_name_server()
        plan = self._plan(self.network)
        for _, hidden in plan.covered:
            self._stack.enter_context(_mount_point(Path(hidden)))
        init = Path(__file__).with_name("node_init.py")
        # -P: our folder's modules must not stand for the standard library's (`operator`).
        command: list[str | Path] = [*ISOLATED, sys.executable, "-P", init, plan.write()]
        process = Process("node", command, self.folder / "node.log")
        self._stack.callback(process.kill)
        process.wait_until((self.folder / "ready").exists, START_SECONDS)
        eventually(lambda: self._is_ready(process), "the node's readiness", seconds=START_SECONDS)
        self._add_capacity()

    def _start_name_server(self) -> None:
        port = free_port()
        config = node_files.name_server_config(
            node_files.NodeFolders(self.folder), self.network, self._control_plane.kubeconfig, port
        )
        program = build.build("coredns") / "coredns"
        process = Process("coredns", [program, "-conf", config], self.folder / "coredns.log")
        self._stack.callback(process.stop)
        process.wait_until(lambda: _answers(f"http://127.0.0.1:{port}/health"), START_SECONDS)

    def _plan(self, network: Bridge) -> NodePlan:
        folders = node_files.NodeFolders(self.folder)
        plugin_folder = packages.plugin_folder()
        assert plugin_folder is not None, hindrance()
        node_files.network_config(folders, network)
        self._health_port = free_port()
        config = node_files.kubelet_config(
            folders, network, free_port(network.address), self._health_port, self.cgroup, self._kubelet
        )
        identity = self._control_plane.kubeconfig_for_user(f"system:node:{self.name}", ["system:nodes"])
        return NodePlan(
            folder=str(self.folder),
            covered=[(str(self._folder(f"hidden{path}")), path) for path in HIDDEN],
            containerd=["containerd", "--config", str(node_files.containerd_config(folders, plugin_folder))],
            socket=str(folders.socket),
            archives=[str(path) for path in self._archives()],
            kubelet=[
                str(self._kubelet_program()),
                f"--config={config}",
                f"--kubeconfig={identity}",
                f"--root-dir={self._folder('kubelet')}",
                f"--cert-dir={self._folder('certificates')}",
                f"--hostname-override={self.name}",
                f"--node-ip={network.address}",
                "--v=1",
            ],
        )

    def _folder(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(parents=True)
        return path

    def _archives(self) -> list[Path]:
        pause = (build.build("pause") / "pause").read_bytes()
        images = [Image(node_files.PAUSE_IMAGE, files={"pause": pause}, command=("/pause",)), *self._images]
        paths = [self.folder / f"image-{number}.tar" for number in range(len(images))]
        for image, path in zip(images, paths, strict=True):
            write_archive(image, path)
        return paths

    def _kubelet_program(self) -> Path:
        beside = self._control_plane.components / "kubelet"  # not everybody's assets have one
        return beside if beside.exists() else build.build("kubernetes") / "kubelet"

    def _is_ready(self, process: Process) -> bool:
        assert process.is_alive, f"the node ended: {process.last_words()}\n{self.log('kubelet')[-2000:]}"
        node = self._control_plane.api.find("Node", self.name)
        conditions = node["status"].get("conditions", []) if node else []
        said = {item["type"]: item.get("message", "") for item in conditions}
        ready = any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
        assert ready, said or self.log("kubelet")[-500:]
        return True

    def _add_capacity(self) -> None:
        patch = {"status": {"capacity": self._capacity, "allocatable": self._capacity}}
        self._control_plane.api.patch("Node", self.name, patch, subresource="status")


@contextlib.contextmanager
def _mount_point(path: Path) -> Iterator[None]:
    """A folder to mount on; where it had to be made, it goes again."""
    made = [it for it in (path, *path.parents) if not it.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # somebody else has found a use for it
                folder.rmdir()


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
