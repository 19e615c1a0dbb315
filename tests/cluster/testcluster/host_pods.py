"""Pods without an image of their own: they see this machine's interpreter, libraries and checkout, read-only.

No image can be built or pulled where the tests run, so a profile's pod template mounts what an image would hold. That
makes every such pod a test of the template's merge as well.
"""

from __future__ import annotations

import sys
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
    writable: bool = False


def interpreter_folders() -> tuple[HostFolder, ...]:
    """What Python needs: the system's libraries and compiler, the interpreter's home, the virtual environment, the
    sources."""
    system = [Path("/usr"), Path("/bin"), Path("/lib"), Path("/lib64"), Path("/etc/alternatives")]
    home = Path(sys.base_prefix)
    if not home.is_relative_to("/usr"):
        system.append(home)
        system += {home.resolve()} - {home}
    folders = [HostFolder(path, path) for path in system if path.is_dir()]
    if sys.prefix != sys.base_prefix:
        folders.append(HostFolder(Path(sys.prefix), INSIDE / "venv"))
    folders += [HostFolder(ROOT / name, INSIDE / name) for name in SOURCES]
    return tuple(folders)


def pod_template(extensions: Path, **environment: str) -> dict[str, Any]:
    """`podTemplate` of a profile.

    Args:
        extensions: a folder of this machine for what DeepSpeed compiles; writable for pods.
        environment: more variables.
    """
    folders = [*interpreter_folders(), HostFolder(extensions, INSIDE / "extensions", writable=True)]
    venv = INSIDE / "venv" if sys.prefix != sys.base_prefix else Path(sys.base_prefix)
    variables = {
        "PATH": f"{venv}/bin:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": ":".join(str(INSIDE / name) for name in SOURCES),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TORCH_EXTENSIONS_DIR": str(INSIDE / "extensions"),
        "HOME": "/scratch",
        "DS_ACCELERATOR": "cpu",
        "TOKENIZERS_PARALLELISM": "false",
    } | environment
    return {
        "spec": {
            "containers": [
                {
                    "name": "trainer",
                    "imagePullPolicy": "Never",
                    "env": [{"name": name, "value": value} for name, value in variables.items()],
                    "volumeMounts": [
                        {"name": f"host-{n}", "mountPath": str(it.target), "readOnly": not it.writable}
                        for n, it in enumerate(folders)
                    ],
                }
            ],
            "volumes": [
                {"name": f"host-{n}", "hostPath": {"path": str(it.source), "type": "Directory"}}
                for n, it in enumerate(folders)
            ],
        }
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
