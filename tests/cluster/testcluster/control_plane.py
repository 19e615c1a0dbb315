"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler as processes of the tests."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import urllib3
from ruamel.yaml import YAML

from testcluster import build, leftovers
from testcluster.api import Api, ApiError
from testcluster.audit import POLICY, AuditLog
from testcluster.certificates import Authority, KeyPair
from testcluster.processes import Process, StartError, free_port
from testcluster.waiting import eventually

ROOT = Path(__file__).parents[3]
NEEDED = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
START_SECONDS = 90.0
"""Patience with one component on a busy machine."""
SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
ISSUER = "https://kubernetes.default.svc"


class NoComponentsError(Exception):
    """There are no Kubernetes binaries here; the sentence says how to get them."""


def find_components() -> Path:
    """Folder with the four programs: KUBEBUILDER_ASSETS, else what `make cluster` built.

    Raises:
        NoComponentsError: neither. Nothing is built here: that takes minutes, and a test has not that long.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS", "")
    lacking = [name for name in NEEDED if not (Path(assets) / name).exists()] if assets else []
    if assets and not lacking:
        return Path(assets)
    found = build.built("kubernetes")
    if found is not None:
        return found
    why = (
        f"KUBEBUILDER_ASSETS={assets} lacks {', '.join(lacking)}"
        if assets
        else "KUBEBUILDER_ASSETS is not set"
    )
    remedy = "`make cluster` builds one" if build.have_go() else "`make cluster` builds one where Go 1.26 is"
    raise NoComponentsError(f"no Kubernetes control plane: {why}; {remedy}")


class ControlPlane:
    """A Kubernetes control plane of this test run alone; a context manager.

    Args:
        address: where others reach the API server; a bridge's address when pods are real. It listens on all.
        fast: controller-manager and scheduler may send 1,000 requests a second instead of 20 to 50.
        aggregator_routing: webhooks are called at the endpoints of their Service.
        node_lifecycle: run the controller that taints nodes whose lease is not renewed.
        apiserver_flags: added at the end, so that they win.
        controller_flags: the same for the controller-manager.
        components: folder with the programs; found by itself when not given.
    """

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        fast: bool = True,
        aggregator_routing: bool = True,
        node_lifecycle: bool = False,
        apiserver_flags: Sequence[str] = (),
        controller_flags: Sequence[str] = (),
        components: Path | None = None,
    ) -> None:
        self.address = address
        self.components = components or find_components()
        leftovers.sweep()
        self.folder = leftovers.new_folder()
        """Everything of this cluster; removed at the end, except with DAPT_KEEP_CLUSTER_LOGS set."""
        self.url = ""
        """Of the API server."""
        self.processes: list[Process] = []
        self._fast = fast
        self._aggregator_routing = aggregator_routing
        self._node_lifecycle = node_lifecycle
        self._apiserver_flags = apiserver_flags
        self._controller_flags = controller_flags

    def __enter__(self) -> ControlPlane:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process, the API server's clients first, and remove the folder."""
        with contextlib.suppress(AttributeError):
            self.api.close()
        for process in reversed(self.processes):
            process.kill()  # nothing in it is worth a graceful end
        self.processes.clear()
        if not os.environ.get("DAPT_KEEP_CLUSTER_LOGS"):
            leftovers.remove(self.folder)

    # --- access ---

    @property
    def authority_file(self) -> Path:
        """The certificate authority of the API server."""
        return self.authority.file

    def kubeconfig_for_user(self, user: str, groups: Sequence[str] = (), *, url: str = "") -> Path:
        """A kubeconfig with a client certificate; `url` for another address, of a proxy for example."""
        name = user.replace(":", "-").replace("/", "-")
        return self._kubeconfig(f"{name}-{len(list(self.folder.iterdir()))}", url, self._pair(user, groups))

    def token_for(self, namespace: str, service_account: str, *, seconds: int = 3600) -> str:
        """A token of a service account, as a pod gets one."""
        path = f"{self.api.path('ServiceAccount', namespace, service_account)}/token"
        return self.api.request("POST", path, {"spec": {"expirationSeconds": seconds}})["status"]["token"]

    def kubeconfig_for(self, namespace: str, service_account: str, *, url: str = "") -> Path:
        """A kubeconfig with a service account's token: all it may do is what RBAC grants it."""
        token = self.token_for(namespace, service_account)
        name = f"{namespace}-{service_account}-{len(list(self.folder.iterdir()))}"
        return self._kubeconfig(name, url, None, token, namespace)

    def api_for_user(self, user: str, groups: Sequence[str] = (), *, user_agent: str = "") -> Api:
        """A client with a certificate of its own."""
        pair = self._pair(user, groups)
        return Api(self.url, self.authority_file, pair=pair, user_agent=user_agent or user)

    # --- contents ---

    def install(self, *paths: Path) -> list[dict[str, Any]]:
        """Apply every manifest of these YAML files and folders; CRDs are Established when it returns."""
        manifests = [manifest for path in paths for manifest in load_manifests(path)]
        made = [self.api.apply(manifest) for manifest in manifests]
        for manifest in manifests:
            if manifest["kind"] == "CustomResourceDefinition":
                name = manifest["metadata"]["name"]
                eventually(functools.partial(self._is_established, name), f"CRD {name} Established")
        return made

    def install_crds(self) -> None:
        """Install crds/ of this repository."""
        self.install(ROOT / "crds")

    def make_namespace(self, name: str, labels: dict[str, str] | None = None) -> str:
        """A namespace in which pods can be made at once: its default service account is there."""
        self.api.create(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}}
        )
        eventually(lambda: self.api.find("ServiceAccount", "default", name), f"service account of {name}")
        return name

    # --- start ---

    def _start(self) -> None:
        port, etcd_port, peer_port = free_port("0.0.0.0"), free_port(), free_port()
        self.url = f"https://127.0.0.1:{port}"
        self.authority = Authority(self.folder / "pki")
        self._token_key = self.authority.signing_key("service-accounts")
        admin = self._pair("dapt-admin", ("system:masters",))
        self.api = Api(self.url, self.authority.file, pair=admin)
        """The administrator's client."""
        self.kubeconfig = self._kubeconfig("admin", "", admin)
        """The administrator's kubeconfig."""
        self.audit = AuditLog(self.folder / "audit.log")
        """Every request but watches' beginnings, at Metadata level."""
        self._start_etcd(etcd_port, peer_port)
        self._start_apiserver(port, etcd_port)
        self._start_controllers()
        eventually(
            lambda: self.api.find("ServiceAccount", "default", "default"),
            "the controller-manager's first work",
            seconds=START_SECONDS,
        )

    def _start_etcd(self, port: int, peer_port: int) -> None:
        client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
        etcd = self._run(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )
        etcd.wait_until(lambda: _answers(f"{client}/health"), START_SECONDS)

    def _start_apiserver(self, port: int, etcd_port: int) -> None:
        policy = self.folder / "audit-policy.json"
        policy.write_text(json.dumps(POLICY))
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
        names += ["kubernetes.default.svc.cluster.local", "127.0.0.1", API_SERVICE_ADDRESS, self.address]
        self.serving = self.authority.serving("apiserver", list(dict.fromkeys(names)))
        """The API server's certificate; a proxy in front of it may show it as well."""
        kubelet_client = self._pair("kube-apiserver-kubelet-client", ("system:masters",))
        is_reachable = not self.address.startswith("127.")
        flags = [
            f"--etcd-servers=http://127.0.0.1:{etcd_port}",
            f"--secure-port={port}",
            f"--advertise-address={self.address}",
            # A loopback address is no valid endpoint of the Service `kubernetes`.
            *(() if is_reachable else ("--endpoint-reconciler-type=none",)),
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            f"--tls-cert-file={self.serving.certificate}",
            f"--tls-private-key-file={self.serving.key}",
            f"--client-ca-file={self.authority.file}",
            "--authorization-mode=Node,RBAC",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={self._token_key}",
            f"--service-account-signing-key-file={self._token_key}",
            f"--kubelet-client-certificate={kubelet_client.certificate}",
            f"--kubelet-client-key={kubelet_client.key}",
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged=true",
            f"--enable-aggregator-routing={str(self._aggregator_routing).lower()}",
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self.audit.path}",
            "--profiling=false",
            *(
                ("--max-requests-inflight=2000", "--max-mutating-requests-inflight=1000")
                if self._fast
                else ()
            ),
            *self._apiserver_flags,
        ]
        apiserver = self._run("kube-apiserver", *flags)
        apiserver.wait_until(self._is_ready, START_SECONDS)

    def _start_controllers(self) -> None:
        limits = ("--kube-api-qps=1000", "--kube-api-burst=2000") if self._fast else ()
        controllers = "*" if self._node_lifecycle else "*,-node-lifecycle-controller"
        self._run(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig_for_user('system:kube-controller-manager')}",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={self._token_key}",
            f"--root-ca-file={self.authority.file}",
            f"--controllers={controllers}",
            "--leader-elect=false",
            "--secure-port=0",
            *limits,
            *self._controller_flags,
        )
        self._run(
            "kube-scheduler",
            f"--kubeconfig={self.kubeconfig_for_user('system:kube-scheduler')}",
            "--leader-elect=false",
            "--secure-port=0",
            *limits,
        )

    def _run(self, name: str, *flags: str) -> Process:
        process = Process(name, [self.components / name, *flags], self.folder / f"{name}.log")
        self.processes.append(process)
        return process

    def _pair(self, user: str, groups: Sequence[str]) -> KeyPair:
        name = user.replace(":", "-").replace("/", "-")
        return self.authority.client(name, user, groups)

    def _kubeconfig(
        self, name: str, url: str, pair: KeyPair | None, token: str = "", namespace: str = "default"
    ) -> Path:
        user = {"token": token} if pair is None else {
            "client-certificate": str(pair.certificate),
            "client-key": str(pair.key),
        }  # fmt: skip
        cluster = {"server": url or self.url, "certificate-authority": str(self.authority.file)}
        path = self.folder / f"{name}.kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": user}],
            "contexts": [
                {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}
            ],
            "current-context": "test",
        }
        path.write_text(json.dumps(content))  # JSON is YAML
        path.chmod(0o600)
        return path

    def _is_ready(self) -> bool:
        try:
            return self.api.request("GET", "/readyz", timeout_seconds=5) == "ok"
        except (ApiError, urllib3.exceptions.HTTPError):
            return False

    def _is_established(self, name: str) -> bool:
        status = self.api.get("CustomResourceDefinition", name).get("status") or {}
        conditions = {item["type"]: item for item in status.get("conditions") or []}
        refused = conditions.get("NamesAccepted", {})
        if refused.get("status") == "False":
            raise StartError(f"CRD {name}: {refused.get('message')}")
        return conditions.get("Established", {}).get("status") == "True"


def load_manifests(path: Path) -> list[dict[str, Any]]:
    """Every document of a YAML file, or of all YAML files of a folder."""
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    yaml = YAML(typ="safe", pure=False)
    return [item for file in files for item in yaml.load_all(file.read_text()) if item]


def _answers(url: str) -> bool:
    try:
        return urllib3.request("GET", url, timeout=2, retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False
