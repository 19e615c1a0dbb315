"""Translates a pod's manifest to a process on this machine: command, environment, files.

Mount paths become folders wherever a whole argument or value names one, the declared ports become free ones in
variables whose name ends in PORT, host names of the gang become the loopback address, `python` becomes this
interpreter. The image, probes, security context and resources have no meaning here.
"""

from __future__ import annotations

import base64
import os
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dapt_contract.pod.credentials import without_secrets
from dapt_contract.pod.environment import NODES, PROCESSES_PER_NODE, TERMINATION_PATH
from dapt_operator.cluster.local.errors import LocalRunError
from dapt_operator.cluster.local.object_files import ObjectFiles
from dapt_operator.stage_run import Manifest

RUN_MARKER: Final = "DAPT_LOCAL_RUN"
"""Variable in the environment of every process of a run folder: the folder."""
POD_MARKER: Final = "DAPT_LOCAL_POD"
"""Variable in the environment of every process of a pod: its folder."""
_LOOPBACK: Final = "127.0.0.1"
_KEPT_FROM_USER: Final = ("XDG_CACHE_HOME", "HOME")
"""Variables that keep the user's values: the caches of this machine are better than empty ones."""
_TORCHRUN_VARIABLES: Final = re.compile(
    r"MASTER_(ADDR|PORT)|((LOCAL|GROUP|NODE|ROLE)_)?(RANK|WORLD_SIZE)|(PET|TORCHELASTIC)_.*"
)
"""Variables that torchrun sets. A pod that inherits them from a process under torchrun would join that gang."""
_ANNOTATION: Final = re.compile(r"metadata\.(annotations|labels)\['([^']+)'\]")


@dataclass(frozen=True)
class Launch:
    """The process to start for one pod."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    termination_log: Path
    progress_port: int | None
    """Port on which rank 0 serves its readings; None when the pod declares none."""


def prepare_launch(pod: Manifest, store: ObjectFiles, run_folder: Path, ports: Mapping[int, int]) -> Launch:
    """Create a pod's folders and files, and return the process to start.

    Args:
        pod: the Pod, with its completion index.
        store: holds ConfigMaps and Secrets.
        run_folder: folder of the run; `work` in it is the work volume.
        ports: free port for each declared port.

    Raises:
        LocalRunError: a volume has no meaning in a local run, or a ConfigMap or Secret is missing.
    """
    folder = pod_folder(run_folder, str(pod["metadata"]["name"]))
    container = pod["spec"]["containers"][0]
    paths = _mount_paths(pod, container, store, run_folder, folder)
    termination_log = folder / "termination-log"
    # The folder of an earlier process of this pod may be left, and its message is not this one's.
    termination_log.unlink(missing_ok=True)
    paths[container.get("terminationMessagePath", TERMINATION_PATH)] = termination_log
    hosts = re.compile(rf"{re.escape(pod['metadata']['labels']['job-name'])}-\d+(\.[a-z0-9.-]+)?")

    def translated(text: str) -> str:
        # The longest mount path first: one may lie inside another.
        for mount in sorted(paths, key=len, reverse=True):
            if text == mount or text.startswith(mount + "/"):
                return str(paths[mount]) + text[len(mount) :]
        return _LOOPBACK if hosts.fullmatch(text) else text

    inherited = _inherited_variables()
    # In this order, as in a container: variables of the pod win over those of a Secret, and both over the user's.
    environment = inherited | without_secrets(_secret_variables(container, store))
    for item in container.get("env") or []:
        name = str(item["name"])
        value = _value(item, pod, store)
        if value is None:
            continue
        # All pods share this machine's ports: each declared port stands for one that is free here.
        if name.endswith("PORT") and value.isdigit():
            value = str(ports.get(int(value), int(value)))
        if name not in _KEPT_FROM_USER:
            environment[name] = translated(value)
    declared = {str(item["name"]) for item in container.get("env") or []}
    if "OMP_NUM_THREADS" not in declared | set(os.environ):
        environment["OMP_NUM_THREADS"] = str(_threads_per_process(environment))
    # As in the image, the tools of this interpreter's environment come first: ninja compiles DeepSpeed's op.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    environment |= {
        RUN_MARKER: str(run_folder.resolve()),
        POD_MARKER: str(folder.resolve()),
        "DAPT_PROGRESS_HOST": _LOOPBACK,
    }
    command = [
        translated(str(part)) for part in [*(container.get("command") or []), *(container.get("args") or [])]
    ]
    if command[0] in ("python", "python3"):
        command[0] = sys.executable
    declared_ports = {item.get("name"): int(item["containerPort"]) for item in container.get("ports") or []}
    progress = ports.get(declared_ports.get("progress", -1))
    return Launch(tuple(command), environment, termination_log, progress)


def pod_folder(run_folder: Path, pod_name: str) -> Path:
    """Return the folder of a pod's volumes and termination message."""
    return run_folder / "pods" / pod_name


def _mount_paths(
    pod: Manifest, container: Manifest, store: ObjectFiles, run_folder: Path, folder: Path
) -> dict[str, Path]:
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or []}
    paths: dict[str, Path] = {}
    for mount in container.get("volumeMounts") or []:
        name = mount["name"]
        volume = volumes[name]
        if mount["mountPath"] == "/dev/shm":
            continue  # the process uses that of this machine
        if "persistentVolumeClaim" in volume:
            target = run_folder / "work" if name == "work" else run_folder / "claims" / name
        elif "emptyDir" in volume:
            target = folder / name
        elif "hostPath" in volume:
            target = Path(volume["hostPath"]["path"])
        elif "configMap" in volume:
            target = _with_files(folder / name, _data(store, "ConfigMap", volume["configMap"]["name"]))
        elif "secret" in volume:
            target = _with_files(folder / name, _data(store, "Secret", volume["secret"]["secretName"]))
        else:
            kind = next((key for key in volume if key != "name"), "nothing")
            raise LocalRunError(
                f"volume {name} of kind {kind} has no meaning in a local run: use hostPath or emptyDir"
            )
        target.mkdir(parents=True, exist_ok=True)
        paths[mount["mountPath"]] = target.resolve()
    return paths


def _data(store: ObjectFiles, kind: str, name: str) -> dict[str, bytes]:
    """Return the entries of a ConfigMap or Secret."""
    stored = store.get(kind, name)
    if stored is None:
        raise LocalRunError(f"{kind} {name} does not exist; it should have been created before the Job")
    decode = base64.b64decode if kind == "Secret" else str.encode
    data = {key: decode(str(value)) for key, value in (stored.get("data") or {}).items()}
    return data | {key: str(value).encode() for key, value in (stored.get("stringData") or {}).items()}


def _with_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    # For this user alone: Secrets are written here too.
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def _secret_variables(container: Manifest, store: ObjectFiles) -> dict[str, str]:
    """Return the variables from Secrets; those of a missing Secret come from the user's own environment."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        name = (source.get("secretRef") or {}).get("name")
        if name and store.get("Secret", name):
            prefix = str(source.get("prefix") or "")
            data = _data(store, "Secret", name)
            variables |= {prefix + key: value.decode(errors="replace") for key, value in data.items()}
    return variables


def _inherited_variables() -> dict[str, str]:
    """Return the user's own variables, without those that would lead into another gang or into the working folder."""
    variables = {name: value for name, value in os.environ.items() if not _TORCHRUN_VARIABLES.fullmatch(name)}
    if "PYTHONPATH" in variables:
        # An empty or relative entry is a folder of the process's own, which may be part of a run that somebody sent.
        entries = variables.pop("PYTHONPATH").split(os.pathsep)
        if absolute := [entry for entry in entries if os.path.isabs(entry)]:
            variables["PYTHONPATH"] = os.pathsep.join(absolute)
    return variables


def _value(item: Manifest, pod: Manifest, store: ObjectFiles) -> str | None:
    """Return a variable's value; None for the entry of a Secret that is not there: then the user's own stays."""
    if "valueFrom" not in item:
        return str(item.get("value", ""))
    reference = item["valueFrom"].get("secretKeyRef")
    if reference is None:
        return _field_value(item["valueFrom"], pod)
    if store.get("Secret", reference["name"]) is not None:
        content = _data(store, "Secret", reference["name"]).get(reference["key"])
        if content is not None:
            return content.decode(errors="replace")
    return None


def _field_value(source: Manifest, pod: Manifest) -> str:
    path = str((source.get("fieldRef") or {}).get("fieldPath", ""))
    match = _ANNOTATION.fullmatch(path)
    if match:
        return str((pod["metadata"].get(match[1]) or {}).get(match[2], ""))
    if path in ("metadata.name", "metadata.namespace", "metadata.uid"):
        return str(pod["metadata"].get(path.partition(".")[2], ""))
    if path == "spec.nodeName":
        return socket.gethostname()
    if path in ("status.podIP", "status.hostIP"):
        return _LOOPBACK
    raise LocalRunError(f"environment from {dict(source)} has no meaning in a local run")


def _threads_per_process(environment: Mapping[str, str]) -> int:
    """Return the share of this machine's cores for each process of the gang, all of which run here."""
    nodes, per_node = environment.get(NODES, "1"), environment.get(PROCESSES_PER_NODE, "1")
    return max(1, (os.cpu_count() or 1) // max(1, int(nodes) * int(per_node)))
