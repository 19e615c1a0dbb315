"""`dapt rejudge`: recorded numbers under the gates of a manifest."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from ruamel.yaml import YAML

from dapt_operator.cli.commands.rejudge import rejudge_run
from dapt_operator.cli.errors import UserError
from support.builders import merged
from support.worlds import World


def write(path: Path, content: Any) -> Path:
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(json.loads(json.dumps(content)), file)
    return path


@pytest.fixture
def lived(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A resource as kubectl writes it after a whole life, and its spec."""
    world = World()
    world.live()
    found = world.cluster.observe(world.key).resource
    assert found is not None
    return write(tmp_path / "lived.yaml", found), dict(found["spec"])


def manifest(folder: Path, spec: dict[str, Any], **over: Any) -> Path:
    body = {
        "apiVersion": "dapt.dev/v1alpha1",
        "kind": "DomainAdaptation",
        "metadata": {"name": "again"},
        "spec": merged(spec, over),
    }
    return write(folder / "manifest.yaml", body)


def lines(page: Any) -> list[str]:
    out = StringIO()
    Console(file=out, width=3000, color_system=None).print(page)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_the_own_gates_decide_as_they_did(lived: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, spec = lived
    told = lines(rejudge_run(str(path), manifest(tmp_path, spec), tmp_path))
    assert told[0].split() == ["candidate", "gain", "on", "A", "limit", "on", "A", "gates", "on", "B"]
    assert next(line for line in told if line.startswith("a1-s40 ")).split()[2:] == ["pass", "pass"]
    assert (
        told[-1]
        == "would be selected: a1-s40, largest gain of 4 candidates within the perplexity limit on half A;"
        " it passes the gates on half B"
    )


def test_a_narrower_gate_decides_otherwise(lived: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, spec = lived
    gates = {"maxGeneralPerplexityIncrease": 0.0001, "onBreach": "Block"}
    told = lines(rejudge_run(str(path), manifest(tmp_path, spec, gates=gates), tmp_path))
    assert told[-1].startswith(
        "would be blocked: no candidate passes the gates: general perplexity of a1-s40 on half B is "
    )


def test_rejudge_reports_why_a_file_cannot_be_judged(
    lived: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, spec = lived
    asked = manifest(tmp_path, spec)
    with pytest.raises(UserError, match="has no status; write the file with `kubectl get domainadaptation"):
        rejudge_run(str(asked), asked, tmp_path)
    early = write(tmp_path / "early.yaml", {"status": {"phase": "Preparing"}})
    with pytest.raises(UserError, match="nothing to judge yet, the base model is not measured"):
        rejudge_run(str(early), asked, tmp_path)
    torn = write(tmp_path / "torn.yaml", {"status": {"phase": 5}})
    with pytest.raises(UserError, match=r"torn\.yaml: status\.phase: "):
        rejudge_run(str(torn), asked, tmp_path)
    with pytest.raises(UserError, match="no run 'gone'; there is no run in"):
        rejudge_run("gone", asked, tmp_path / "none")
