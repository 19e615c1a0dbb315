"""Tests where the components of the test cluster come from, and the error when there are none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from testcluster import build, control_plane
from testcluster.control_plane import NoComponentsError, find_components

ROOT = Path(__file__).parents[2]
NEEDED = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


@pytest.fixture
def nothing_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and a machine without Go."""
    monkeypatch.setenv("DAPT_COMPONENTS", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return tmp_path


def test_a_component_is_found_again_by_its_content_and_not_after_a_change(
    nothing_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = nothing_built / "modules" / "pause"
    module.mkdir(parents=True)
    (module / "main.go").write_text("package main\n")
    monkeypatch.setattr(build, "MODULES", module.parent)
    assert build.built("pause") is None
    place = build.folder_of(build.COMPONENTS["pause"])
    place.mkdir(parents=True)
    assert build.built("pause") == place
    (module / "main.go").write_text("package main // changed\n")
    assert build.built("pause") is None


def test_without_go_and_without_a_cache_nothing_can_be_built(nothing_built: Path) -> None:
    with pytest.raises(build.BuildError, match="component pause is not built and there is no `go` in PATH"):
        build.build("pause")


def test_an_unknown_component_is_named_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["kubernets"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("testcluster: no component 'kubernets'; there are coredns, ")
    assert said.count("\n") == 1


def test_the_folder_of_the_ecosystems_variable_comes_first(
    nothing_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = nothing_built / "assets"
    assets.mkdir()
    for name in NEEDED:
        (assets / name).touch()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    assert find_components() == assets


def test_assets_folder_without_a_controller_manager_is_skipped_and_reported(
    nothing_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = nothing_built / "assets"
    assets.mkdir()
    for name in NEEDED[:2]:
        (assets / name).touch()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    with pytest.raises(NoComponentsError) as refusal:
        find_components()
    assert str(refusal.value) == (
        f"no Kubernetes control plane: KUBEBUILDER_ASSETS={assets} lacks kube-controller-manager, kube-scheduler;"
        " `make cluster` builds one where Go 1.26 is"
    )
    built = nothing_built / "built"
    monkeypatch.setattr(control_plane.build, "built", lambda _: built)
    assert find_components() == built


@pytest.mark.parametrize(("required", "status", "outcome"), [("", 0, "SKIPPED"), ("1", 1, "FAILED")])
def test_without_a_cluster_its_tests_are_skipped_in_one_line_or_fail_where_all_must_run(
    tmp_path: Path, required: str, status: int, outcome: str
) -> None:
    environment = os.environ | {"DAPT_COMPONENTS": str(tmp_path), "DAPT_REQUIRE_ALL_TESTS": required}
    environment.pop("KUBEBUILDER_ASSETS", None)
    chosen = "columns_of_kubectl or together_with_the_spec"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
    done = subprocess.run(
        [*command, "tests/cluster/test_admission.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout
    said = [line for line in done.stdout.splitlines() if line.startswith(outcome)]
    if outcome == "SKIPPED":
        assert len(said) == 1
        assert said[0].startswith("SKIPPED [2] ")
    assert (
        "no Kubernetes control plane: KUBEBUILDER_ASSETS is not set; `make cluster` builds one" in done.stdout
    )
