"""Kubeconfigs of test clusters."""

from __future__ import annotations

from pathlib import Path

from ruamel.yaml import YAML


def write_kubeconfig(path: Path, server: str, namespace: str, other_namespace: str = "elsewhere") -> Path:
    """Write a kubeconfig with the contexts `here`, the current one, and `there`; return its path."""
    kubeconfig = {
        "current-context": "here",
        "contexts": [
            {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": namespace}},
            {"name": "there", "context": {"cluster": "c", "user": "u", "namespace": other_namespace}},
        ],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    }
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(kubeconfig, file)
    return path
