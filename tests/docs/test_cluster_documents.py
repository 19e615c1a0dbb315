"""The manifests, health check and image commands on the pages about clusters work.

Their commands for helm and kubectl are run by tests/cluster/test_chart.py.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import lupa
import pytest
import yaml

from dapt_contract.version import PRODUCT_VERSION
from dapt_operator.cli.commands.lint import lint
from dapt_operator.cli.commands.plan import plan
from dapt_operator.cli.inputs.manifests import read_request

ROOT = Path(__file__).parents[2]
INSTALLING = (ROOT / "docs" / "installing.md").read_text()


def named_blocks(text: str) -> dict[str, str]:
    """YAML blocks whose first line is a comment with their file's name."""
    return {
        name: f"# {name}\n{content}"
        for name, content in re.findall(r"```yaml\n# (\S+\.yaml)\n(.*?)```", text, flags=re.DOTALL)
    }


FILES = named_blocks(INSTALLING)


@pytest.mark.parametrize("name", ["profile.yaml", "first.yaml"])
def test_manifests_of_the_page_are_valid_on_a_cluster(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(FILES[name])
    problems, good = lint([path], cluster=True)
    assert problems == []
    assert len(good) == 1


def test_the_first_adaptation_fits_the_first_profile(tmp_path: Path) -> None:
    for name in ("profile.yaml", "first.yaml"):
        (tmp_path / name).write_text(FILES[name])
    page = plan(read_request(tmp_path / "first.yaml", str(tmp_path / "profile.yaml")))
    assert page.problems == ()
    assert "Memory of one process: " in "\n".join(page.lines)


def test_the_commands_for_images_name_dockerfiles_and_the_version() -> None:
    built = [shlex.split(line) for line in re.findall(r"^docker build .*$", INSTALLING, flags=re.MULTILINE)]
    assert [command[3] for command in built] == ["operator/Dockerfile", "trainer-image/Dockerfile"]
    for command in built:
        assert (ROOT / command[3]).is_file()
        assert command[5].endswith(f":{PRODUCT_VERSION}")
        assert command[-1] == "."
        assert f"docker push {command[5]}" in INSTALLING
        assert f"docker build --file {command[3]} --tag {command[5]} ." in (ROOT / command[3]).read_text()


def condition(type_: str, message: str = "because") -> dict[str, str]:
    return {"type": type_, "status": "True", "message": message}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (None, ("Progressing", "not reconciled yet")),
        (
            {"observedGeneration": 1, "conditions": [condition("Ready")]},
            ("Progressing", "not reconciled yet"),
        ),
        ({"observedGeneration": 2, "conditions": [condition("Reconciling")]}, ("Progressing", "because")),
        ({"observedGeneration": 2, "conditions": [condition("Stalled")]}, ("Degraded", "because")),
        (
            {"observedGeneration": 2, "conditions": [condition("Finished", "it failed")]},
            ("Degraded", "it failed"),
        ),
        (
            {"observedGeneration": 2, "conditions": [condition("Ready", "it is out"), condition("Finished")]},
            ("Healthy", "it is out"),
        ),
        ({"observedGeneration": 2, "conditions": [condition("Suspended")]}, ("Suspended", "because")),
    ],
    ids=["new", "old", "working", "stalled", "failed", "published", "suspended"],
)
def test_argo_health_check_reports_each_state(status: Any, expected: tuple[str, str]) -> None:
    script = yaml.safe_load(FILES["argocd-cm.yaml"])["data"][
        "resource.customizations.health.dapt.dev_DomainAdaptation"
    ]
    lua = lupa.LuaRuntime()
    resource = {"metadata": {"generation": 2}, **({"status": status} if status else {})}
    found = lua.eval(f"function(obj) {script} end")(lua.table_from(resource, recursive=True))
    assert (found.status, found.message) == expected
