"""Runs Helm on the chart.

Tests that need helm run with those of the cluster, whose build makes it.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from testcluster import build

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "dapt"
VALUES = Path(__file__).parent / "values"
KUBERNETES = "1.31.0"
"""The oldest that the chart admits."""
Manifest = dict[str, Any]
Helm = Callable[..., subprocess.CompletedProcess[str]]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before the marks are judged that were asked for."""
    for item in items:
        if item.path.parent == VALUES.parent and "helm" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)


def find_helm() -> str | None:
    """The one that `make cluster` builds, else the machine's."""
    if build.built("helm") or build.have_go():
        return str(build.build("helm") / "helm")
    return shutil.which("helm")


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Runs Helm with a home of its own; returns what it printed."""
    binary = find_helm()
    if binary is None:
        pytest.skip("no helm: `make cluster` builds it where Go is, or install Helm 3")
    home = tmp_path_factory.mktemp("helm")

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            f"HELM_{name}_HOME": str(home / name) for name in ("CACHE", "CONFIG", "DATA")
        }
        command = [binary, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


class Rendered(list[Manifest]):
    """The objects of one release, in the order in which Helm prints them."""

    def of(self, kind: str) -> list[Manifest]:
        return [item for item in self if item["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> Manifest:
        (found,) = [item for item in self.of(kind) if name in (None, item["metadata"]["name"])]
        return found


@pytest.fixture(scope="session")
def render(helm: Helm) -> Callable[..., Rendered]:
    """Renders a release `dapt` in `dapt-system` with one of the values files and single values over it."""

    @functools.cache
    def rendered(name: str, sets: tuple[str, ...], release: str, namespace: str) -> str:
        done = helm(
            "template", release, CHART, "--namespace", namespace, "--kube-version", KUBERNETES,
            "--values", VALUES / f"{name}.yaml", *(f"--set-json={item}" for item in sets),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    def call(
        name: str = "whole-cluster", *sets: str, release: str = "dapt", namespace: str = "dapt-system"
    ) -> Rendered:
        text = rendered(name, sets, release, namespace)
        return Rendered(item for item in yaml.safe_load_all(text) if item)

    return call
