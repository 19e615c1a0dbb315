"""Published controllers (JobSet, Kueue) as processes of this machine beside a test's control plane.

Their manifests are those of their own release, less the Deployment. Their webhooks are called at a loopback address
of this machine by `url`: no Service leads anywhere without a kube-proxy.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import urllib3
from ruamel.yaml import YAML

from testcluster import build
from testcluster.certificates import Authority, KeyPair
from testcluster.control_plane import ControlPlane
from testcluster.processes import Process, free_port
from testcluster.waiting import eventually

START_SECONDS = 60.0
WEBHOOKS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
ADMISSION = "admissionregistration.k8s.io/v1"
NOT_INSTALLED = frozenset({"Deployment", "APIService", "ConfigMap", "Service"})
"""What its pods would need: here it is a process, and gets its configuration as a file."""
WRITTEN_AT_ONCE = 8


@dataclass(frozen=True)
class Published:
    """A controller as its project publishes it."""

    component: str
    """Name in build.py; also of its namespace (`NAME-system`) and the beginning of its objects' names."""
    configuration: Mapping[str, Any]
    """What its configuration file says beside ports and certificates."""
    flags: tuple[str, ...] = ()
    fills_secret: bool = False
    """Whether it manages its certificates in a Secret, and so must find ours there."""

    @property
    def namespace(self) -> str:
        """Where its objects lie."""
        return f"{self.component}-system"


@dataclass(frozen=True)
class _Serving:
    """Where its webhooks answer, and by which certificate."""

    port: int
    authority: Authority
    pair: KeyPair

    @property
    def bundle(self) -> str:
        return base64.b64encode(self.authority.file.read_bytes()).decode()


@contextlib.contextmanager
def running(published: Published, plane: ControlPlane) -> Iterator[Process]:
    """The controller at work on this control plane; at the end its webhooks are gone with it.

    Raises:
        BuildError: it is not built and cannot be.
        StartError: it does not come up; with the end of its log.
    """
    home = build.build(published.component)
    folder = plane.folder / published.component
    serving = _certificates(published, folder)
    manifests = [_wired(item, serving) for item in _rendered(home / "config" / "default")]
    _install(plane, [item for item in manifests if item["kind"] not in NOT_INSTALLED])
    if published.fills_secret:
        _fill_secret(plane, published, serving)
    health = free_port()
    configuration = folder / "configuration.json"
    configuration.write_text(json.dumps(_configuration(published, folder, serving.port, health)))
    process = Process(
        published.component,
        [home / published.component, f"--config={configuration}", *published.flags],
        plane.folder / f"{published.component}.log",
        {"KUBECONFIG": str(plane.kubeconfig)},
    )
    try:
        process.wait_until(lambda: _is_ready(health), START_SECONDS)
        yield process
    finally:
        for kind in WEBHOOKS:  # first: they would block every object that they guard
            name = f"{published.component}-{kind.removesuffix('WebhookConfiguration').lower()}-webhook-configuration"
            plane.api.delete(kind, name, api_version=ADMISSION)
        process.stop()


def _certificates(published: Published, folder: Path) -> _Serving:
    folder.mkdir()
    # Kueue takes an authority for its own if it bears this name.
    authority = Authority(folder, names=[f"{published.component}-ca"])
    service = f"{published.component}-webhook-service.{published.namespace}.svc"
    return _Serving(free_port(), authority, authority.serving("tls", ["127.0.0.1", service]))


def _rendered(kustomization: Path) -> list[dict[str, Any]]:
    done = subprocess.run(["kubectl", "kustomize", kustomization], check=True, capture_output=True, text=True)
    return list(YAML(typ="safe", pure=False).load_all(done.stdout))


def _wired(manifest: dict[str, Any], serving: _Serving) -> dict[str, Any]:
    for webhook in manifest.get("webhooks") or []:
        path = webhook["clientConfig"]["service"]["path"]
        webhook["clientConfig"] = {
            "url": f"https://127.0.0.1:{serving.port}{path}",
            "caBundle": serving.bundle,
        }
    if manifest["kind"] == "CustomResourceDefinition":
        manifest["spec"].pop("conversion", None)  # each has one version
    return manifest


def _install(plane: ControlPlane, manifests: list[dict[str, Any]]) -> None:
    """Apply them, kind by kind in the order in which they depend on each other."""
    first = [item for item in manifests if item["kind"] in ("Namespace", "CustomResourceDefinition")]
    webhooks = [item for item in manifests if item["kind"] in WEBHOOKS]
    others = [item for item in manifests if item not in first and item not in webhooks]
    with ThreadPoolExecutor(WRITTEN_AT_ONCE) as pool:
        for group in (first, others, webhooks):
            list(pool.map(plane.api.apply, group))
    for item in first:
        if item["kind"] == "CustomResourceDefinition":
            eventually(partial(_is_established, plane, item["metadata"]["name"]), "CRD Established")


def _is_established(plane: ControlPlane, name: str) -> bool:
    status = plane.api.get("CustomResourceDefinition", name).get("status") or {}
    return any(
        it["type"] == "Established" and it["status"] == "True" for it in status.get("conditions") or []
    )


def _fill_secret(plane: ControlPlane, published: Published, serving: _Serving) -> None:
    files = {
        "ca.crt": serving.authority.file,
        "ca.key": serving.authority.key_file,
        "tls.crt": serving.pair.certificate,
        "tls.key": serving.pair.key,
    }
    data = {name: base64.b64encode(path.read_bytes()).decode() for name, path in files.items()}
    name = f"{published.component}-webhook-server-cert"
    plane.api.patch("Secret", name, {"data": data}, published.namespace)


def _configuration(published: Published, folder: Path, port: int, health: int) -> dict[str, Any]:
    return {
        "kind": "Configuration",
        "webhook": {"host": "127.0.0.1", "port": port, "certDir": str(folder)},
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "metrics": {"bindAddress": "0"},
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"qps": 500, "burst": 500},
        **published.configuration,
    }


def _is_ready(port: int) -> bool:
    try:
        return (
            urllib3.request("GET", f"http://127.0.0.1:{port}/readyz", timeout=2, retries=False).status == 200
        )
    except urllib3.exceptions.HTTPError:
        return False


def lacking(*components: str) -> str:
    """Why these cannot run here, in a sentence; empty if they can. Nothing is built in the middle of tests."""
    if shutil.which("kubectl") is None:
        return "no kubectl here: it renders the manifests of JobSet and Kueue"
    missing = [name for name in components if build.built(name) is None]
    return (
        f"{' and '.join(missing)} not built: `make cluster-extras` builds them where Go is" if missing else ""
    )
