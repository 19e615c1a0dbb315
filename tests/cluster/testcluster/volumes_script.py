"""A provisioner without disks: every claim of its class, the default one, is bound at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLASS = "scripted"
STORAGE_CLASS = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {
        "name": CLASS,
        "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
    },
    "provisioner": "dapt.dev/scripted",
    "allowVolumeExpansion": True,
}


def wants_volume(claim: Mapping[str, Any]) -> bool:
    """Whether it waits for a volume of this class."""
    spec = claim["spec"]
    waits = claim.get("status", {}).get("phase") == "Pending" and not spec.get("volumeName")
    return waits and spec.get("storageClassName") == CLASS


def volume_name(claim: Mapping[str, Any]) -> str:
    """Name of the volume that a claim gets."""
    return f"scripted-{claim['metadata']['uid']}"


def volume_for(claim: Mapping[str, Any]) -> dict[str, Any]:
    """A volume that only this claim may bind."""
    metadata = claim["metadata"]
    reference = {name: metadata[name] for name in ("namespace", "name", "uid")}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": volume_name(claim)},
        "spec": {
            "storageClassName": CLASS,
            "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
            "accessModes": claim["spec"]["accessModes"],
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **reference},
            "hostPath": {"path": "/nonexistent"},
        },
    }
