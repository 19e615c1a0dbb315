"""The toy adaptation as a cluster takes it: the same manifest, its files on claims instead of in a folder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from testcluster import host_pods

DATA_CLAIM = "toy-data"
MODELS_CLAIM = "toy-models"
DESTINATION = f"pvc://{MODELS_CLAIM}/published"


def cluster_manifests(manifest: Path, namespace: str) -> str:
    """Profile and adaptation of a local manifest for the cluster, as YAML.

    Args:
        manifest: of `make_toy`; its `file://` places become places on the claim `toy-data`.
        namespace: where the adaptation goes.
    """
    text = manifest.read_text(encoding="utf-8")
    text = text.replace("file://out", DESTINATION).replace("file://", f"pvc://{DATA_CLAIM}/")
    yaml = YAML(typ="safe", pure=True)
    profile, adaptation = yaml.load_all(text)
    profile["spec"] |= {
        "trainerImage": host_pods.BASE_IMAGE.reference,
        "storage": {"claimTemplate": host_pods.claim_spec()},
        "podTemplate": host_pods.pod_template(),
        "terminationGracePeriodSeconds": 10,
    }
    adaptation["metadata"]["namespace"] = namespace
    adaptation["spec"]["cleanup"] = {"finishedRuns": "Retain"}  # the tests look at the pods of ended runs
    out = io.StringIO()
    yaml.dump_all([profile, adaptation], out)
    return out.getvalue()


def volumes(namespace: str, data: Path, models: Path, work: Path) -> list[dict[str, Any]]:
    """The two claims with their volumes, and a volume for whichever claim the adaptation makes."""
    return [
        host_pods.persistent_volume(f"{namespace}-data", data, claim=(namespace, DATA_CLAIM)),
        host_pods.volume_claim(namespace, DATA_CLAIM, f"{namespace}-data"),
        host_pods.persistent_volume(f"{namespace}-models", models, claim=(namespace, MODELS_CLAIM)),
        host_pods.volume_claim(namespace, MODELS_CLAIM, f"{namespace}-models"),
        host_pods.persistent_volume(f"{namespace}-work", work),
    ]
