"""Pods without an image of their own: they see this machine's interpreter, libraries and checkout, read-only.

No image can be built or pulled where the tests run, so a profile's pod template mounts what an image would hold. That
makes every such pod a test of the template's merge as well.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testcluster.images import Image

ROOT = Path(__file__).parents[3]
STORAGE_CLASS = "dapt-shared"
USER_ID = 1000
"""Of the launcher's default security context."""
SOURCES = ("operator/src", "trainer-image/src", "tests")
"""Folders of the checkout that a pod imports from."""
INSIDE = Path("/opt/dapt")
"""Where the checkout and the virtual environment are in a pod: the checkout's own path may lie below /work, which is
the work volume there."""
BASE_IMAGE = Image(
    "registry.example/dapt-test/base:1",
    folders=("usr", "bin", "lib", "lib64", "etc", "etc/alternatives", "opt", "opt/dapt", "proc", "sys", "dev", "tmp"),
    files={
        "etc/passwd": b"root:x:0:0::/:/bin/sh\ndapt:x:1000:1000::/scratch:/bin/sh\n",
        "etc/group": b"root:x:0:\ndapt:x:1000:\n",
    },
)  # fmt: skip
PRIVILEGED = {"pod-security.kubernetes.io/enforce": "privileged"}
"""Labels of a namespace that may have such pods: hostPath is forbidden by the standards above."""


@dataclass(frozen=True)
class HostFolder:
    """A folder of this machine and its place in the pod."""

    source: Path
    target: Path


def _system_folders() -> list[HostFolder]:
    """The system's libraries and compiler, and the interpreter's home, where the machine has them."""
    paths = [Path("/usr"), Path("/bin"), Path("/lib"), Path("/lib64"), Path("/etc/alternatives")]
    home = Path(sys.base_prefix)
    if not home.is_relative_to("/usr"):
        paths += dict.fromkeys((home, home.resolve()))
    return [HostFolder(path, path) for path in paths if path.is_dir()]


def _checkout_folders() -> list[Path]:
    """The virtual environment and what it has an editable installation of."""
    return [Path(sys.prefix), *(ROOT / name for name in SOURCES)]


def _mounts(folders: Sequence[HostFolder]) -> dict[str, list[dict[str, Any]]]:
    names = [f"host-{number}" for number in range(len(folders))]
    return {
        "volumes": [
            {"name": name, "hostPath": {"path": str(it.source), "type": "Directory"}}
            for name, it in zip(names, folders, strict=True)
        ],
        "volumeMounts": [
            {"name": name, "mountPath": str(it.target), "readOnly": True}
            for name, it in zip(names, folders, strict=True)
        ],
    }


def _environment(variables: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in variables.items()]


def pod_template(**environment: str) -> dict[str, Any]:
    """`podTemplate` of a profile; `environment` adds variables."""
    venv, *sources = (INSIDE / name for name in ("venv", *SOURCES))
    folders = [*_system_folders(), *map(HostFolder, _checkout_folders(), (venv, *sources))]
    variables = {
        "PATH": f"{venv}/bin:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": ":".join(map(str, sources)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/scratch",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    mounts = _mounts(folders)
    trainer = {
        "name": "trainer",
        "imagePullPolicy": "Never",
        "env": _environment(variables | environment),
        "volumeMounts": mounts["volumeMounts"],
    }
    return {"spec": {"containers": [trainer], "volumes": mounts["volumes"]}}


def operator_values(api_host: str, api_port: int) -> dict[str, Any]:
    """Values of the chart for an operator that runs from this machine's checkout.

    Args:
        api_host: where pods reach the API server: no proxy serves the address of its Service here.
        api_port: its port.
    """
    # `dapt` is a script whose first line names the interpreter by its path on this machine.
    mounts = _mounts([*_system_folders(), *(HostFolder(path, path) for path in _checkout_folders())])
    variables = {
        "PATH": f"{sys.prefix}/bin:/usr/bin:/bin",
        "PYTHONPATH": ":".join(str(ROOT / name) for name in SOURCES),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/tmp",
        "KUBERNETES_SERVICE_HOST": api_host,
        "KUBERNETES_SERVICE_PORT": str(api_port),
    }
    repository, _, tag = BASE_IMAGE.reference.rpartition(":")
    return {
        "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
        "operator": {
            "extraEnv": _environment(variables),
            "extraVolumes": mounts["volumes"],
            "extraVolumeMounts": mounts["volumeMounts"],
        },
    }


def open_folder(path: Path) -> Path:
    """A folder that the pods' user may write to."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o777)
    return path


def persistent_volume(name: str, path: Path, *, claim: tuple[str, str] | None = None) -> dict[str, Any]:
    """A folder of this machine as a volume that many pods mount.

    Args:
        name: of the PersistentVolume.
        path: the folder.
        claim: (namespace, name) of the only claim that may have it; absent: the first of the class.
    """
    spec: dict[str, Any] = {
        "capacity": {"storage": "100Gi"},
        "accessModes": ["ReadWriteMany"],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": STORAGE_CLASS,
        "hostPath": {"path": str(path), "type": "Directory"},
    }
    if claim is not None:
        spec["claimRef"] = {"namespace": claim[0], "name": claim[1]}
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}


def volume_claim(namespace: str, name: str, volume: str = "") -> dict[str, Any]:
    """A claim of that class; `volume` names the one to take."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": claim_spec() | ({"volumeName": volume} if volume else {}),
    }


def claim_spec() -> dict[str, Any]:
    """Spec of a claim, for a profile's `claimTemplate` as well."""
    return {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": STORAGE_CLASS,
        "resources": {"requests": {"storage": "1Gi"}},
    }
