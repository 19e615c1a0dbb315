"""A profile in the manifest's own file, which somebody else may have written, changes no process of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dapt_operator.cli import main
from support.builders import adaptation, profile

TRAINER: dict[str, Any] = {"name": "trainer"}


def run(*arguments: str | Path) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["run", *map(str, arguments)])


def write(folder: Path, **spec: Any) -> Path:
    """A manifest whose model is missing, so that no run begins, with a profile whose pods have this spec."""
    path = folder / "sent.yaml"
    offered = profile(podTemplate={"spec": spec})
    path.write_text(yaml.safe_dump_all([adaptation(profile=offered["metadata"]["name"]), offered]))
    return path


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (
            {"containers": [TRAINER | {"env": [{"name": "PYTHONPATH", "value": "/x"}]}]},
            "env of its container trainer",
        ),
        (
            {"containers": [TRAINER | {"envFrom": [{"secretRef": {"name": "x"}}]}]},
            "envFrom of its container trainer",
        ),
        (
            {"containers": [TRAINER | {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}]},
            "volumeMounts of its container trainer",
        ),
        ({"volumes": [{"name": "v", "hostPath": {"path": "/home"}}]}, "podTemplate.spec.volumes"),
        ({"containers": [{"name": "beside", "image": "evil.example/x"}]}, "the container beside"),
        ({"initContainers": [{"name": "first", "image": "x"}]}, "podTemplate.spec.initContainers"),
    ],
)
def test_a_profile_in_the_manifests_own_file_sets_no_environment_mounts_or_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: dict[str, Any], field: str
) -> None:
    path = write(tmp_path, **spec)
    run(path, "--runs-dir", tmp_path / "runs")
    name = profile()["metadata"]["name"]
    assert capsys.readouterr().err.splitlines() == [
        f"dapt: {path}: the profile {name} in this file sets {field}, which processes of this machine would get; give"
        f" it by `-p {path}` if you trust it, or use `-p local` for this machine's own"
    ]
    assert not (tmp_path / "runs").exists()
    # Given by hand it is used: only the missing model is left.
    run(path, "-p", path, "--runs-dir", tmp_path / "runs")
    assert "the profile" not in capsys.readouterr().err


def test_placement_and_labels_of_such_a_profile_are_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, nodeSelector={"gpu": "h100"}, containers=[TRAINER])
    run(path, "--runs-dir", tmp_path / "runs")
    assert "which processes of this machine would get" not in capsys.readouterr().err
