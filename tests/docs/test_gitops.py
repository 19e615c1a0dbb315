"""The trees in examples/gitops and examples/self-service: every tool reads every state of an adaptation rightly."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import celpy
import lupa
import pytest
import yaml
from ruamel.yaml import YAML

from dapt_operator.api.v1alpha1.conditions import PHASES
from dapt_operator.cli.commands.lint import lint
from dapt_operator.cli.commands.plan import plan
from dapt_operator.cli.inputs.manifests import read_request
from support.builders import merged
from support.worlds import World

ROOT = Path(__file__).parents[2]
GITOPS = ROOT / "examples" / "gitops"
SELF_SERVICE = ROOT / "examples" / "self-service"
TEAMS = sorted((SELF_SERVICE / "teams").iterdir())
HEALTH = "resource.customizations.health.dapt.dev_DomainAdaptation"
NEW = {"observedGeneration": -1, "conditions": [], "stages": [], "candidates": [], "attempts": []}
"""Status of an adaptation that no operator has reconciled, as the API server gives it."""

Resource = dict[str, Any]


# --- how the tools judge ---


def kstatus(resource: Resource) -> str:
    """The rules of kstatus for a resource that it does not know, by which Flux, `kpt` and others wait."""
    status = resource.get("status") or {}
    if (
        status.get("observedGeneration", resource["metadata"]["generation"])
        != resource["metadata"]["generation"]
    ):
        return "InProgress"
    conditions = {item["type"]: item["status"] for item in status.get("conditions", ())}
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    return "InProgress" if conditions.get("Ready", "True") != "True" else "Current"


def argo() -> Callable[[Resource], str]:
    script = yaml.safe_load((GITOPS / "argocd" / "argocd-cm.yaml").read_text())["data"][HEALTH]
    lua = lupa.LuaRuntime()
    judge = lua.eval(f"function(obj) {script} end")

    def call(resource: Resource) -> str:
        found = judge(lua.table_from(resource, recursive=True))
        assert found.message
        return str(found.status)

    return call


def flux() -> Callable[[Resource], str]:
    """The three expressions in the order in which Flux asks them; an error is no answer."""
    documents = yaml.safe_load_all((GITOPS / "flux" / "dapt.yaml").read_text())
    (expressions,) = (item for document in documents for item in document["spec"].get("healthCheckExprs", ()))
    environment = celpy.Environment()
    programs = {
        answer: environment.program(environment.compile(expressions[name]))
        for name, answer in (("inProgress", "InProgress"), ("failed", "Failed"), ("current", "Current"))
    }

    def call(resource: Resource) -> str:
        values = {name: celpy.json_to_cel(value) for name, value in resource.items()}
        return next(
            (answer for answer, program in programs.items() if program.evaluate(values)), "InProgress"
        )

    return call


# --- every state ---


def resource_of(world: World) -> Resource:
    resource = world.cluster.observe(world.key).resource
    assert resource is not None
    return dict(json.loads(json.dumps(resource)))


@pytest.fixture(scope="module")
def states() -> dict[str, Resource]:
    """An adaptation in every phase, under the phase's name, and before and after its generation is observed."""
    found: dict[str, Resource] = {}

    def note(world: World) -> bool:
        found.setdefault(world.status["phase"], resource_of(world))
        return False

    world = World({"preference": {"data": [{"source": "file:///data/pairs.jsonl"}]}})
    new = resource_of(world)
    world.live(until=note)
    note(world)
    found["new"] = new | {"status": NEW}
    found["edited"] = found["Pretraining"] | {
        "metadata": found["Pretraining"]["metadata"] | {"generation": 9}
    }
    world = World()
    world.live_until("pretrain")
    world.edit(suspend=True)
    world.settle()
    note(world)
    world = World()
    world.edit(profile="absent")
    world.settle()
    note(world)
    world = World({"limits": {"gpuHours": 0.001}})
    world.live()
    note(world)
    return found


EXPECTED = {
    "Published": ("Current", "Healthy"),
    "Stalled": ("Failed", "Degraded"),
    "BudgetExhausted": ("Failed", "Degraded"),
    "Suspended": ("InProgress", "Suspended"),
}


def test_argo_flux_and_kstatus_agree_in_every_state(states: dict[str, Resource]) -> None:
    # Candidates are judged between two writes.
    assert set(PHASES) - set(states) <= {"Selecting"}
    assert {"new", "edited"} <= set(states)
    argo_health, flux_health = argo(), flux()
    judged = {name: (kstatus(it), flux_health(it), argo_health(it)) for name, it in states.items()}
    wanted = {name: EXPECTED.get(name, ("InProgress", "Progressing")) for name in states}
    assert judged == {name: (waits, waits, health) for name, (waits, health) in wanted.items()}


# --- the trees ---


def documents(folder: Path) -> list[Resource]:
    loader = YAML(typ="safe")
    return [item for path in sorted(folder.rglob("*.yaml")) for item in loader.load_all(path)]


def test_the_health_check_of_the_page_is_that_of_the_example() -> None:
    page = (ROOT / "docs" / "installing.md").read_text()
    (block,) = re.findall(r"```yaml\n# argocd-cm.yaml\n(.*?)```", page, flags=re.DOTALL)
    example = yaml.safe_load((GITOPS / "argocd" / "argocd-cm.yaml").read_text())
    assert yaml.safe_load(block)["data"] == example["data"]


def test_waves_and_dependencies_give_one_order() -> None:
    waves = {
        document["kind"]: int(document["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"])
        for part in ("platform", "adaptations", "serving")
        for document in documents(GITOPS / part)
        if document["kind"] != "Kustomization"
    }
    assert sorted(waves, key=waves.__getitem__) == ["AdaptationProfile", "DomainAdaptation", "ConfigMap"]
    parts = list(yaml.safe_load_all((GITOPS / "flux" / "dapt.yaml").read_text()))
    before = [[item["name"] for item in part["spec"].get("dependsOn", ())] for part in parts]
    assert before == [[], [parts[0]["metadata"]["name"]], [parts[1]["metadata"]["name"]]]
    for part in parts:
        assert (ROOT / part["spec"]["path"] / "kustomization.yaml").is_file()
    application = yaml.safe_load((GITOPS / "argocd" / "application.yaml").read_text())
    assert (ROOT / application["spec"]["source"]["path"] / "kustomization.yaml").is_file()


def test_no_tool_deletes_an_adaptation_that_was_paid_for() -> None:
    (adaptation,) = (item for item in documents(GITOPS / "adaptations") if item["kind"] == "DomainAdaptation")
    annotations = adaptation["metadata"]["annotations"]
    assert annotations["argocd.argoproj.io/sync-options"] == "Prune=false,Delete=false"
    assert annotations["kustomize.toolkit.fluxcd.io/prune"] == "disabled"


def test_the_adaptation_of_the_tree_is_planned_within_its_profile() -> None:
    path = GITOPS / "adaptations" / "clinical.yaml"
    assert lint([path], cluster=True)[0] == []
    assert plan(read_request(path, str(GITOPS / "platform" / "profile.yaml"))).problems == ()


@pytest.mark.parametrize("team", TEAMS, ids=lambda path: path.name)
def test_a_teams_adaptation_is_planned_within_the_offer(team: Path, tmp_path: Path) -> None:
    loader = YAML(typ="safe")
    base = loader.load(SELF_SERVICE / "base" / "adaptation.yaml")
    patch = loader.load(team / "adaptation.yaml")
    overlay = loader.load(team / "kustomization.yaml")
    resource = merged(base, patch)
    resource["metadata"] = {"name": f"adaptation{overlay['nameSuffix']}", "namespace": overlay["namespace"]}
    path = tmp_path / "adaptation.yaml"
    path.write_text(json.dumps(resource))
    assert "TEAM" not in path.read_text()
    assert lint([path], cluster=True)[0] == []
    assert plan(read_request(path, str(SELF_SERVICE / "platform" / "profile.yaml"))).problems == ()


@pytest.mark.cluster
@pytest.mark.parametrize(
    "folder",
    [GITOPS, *(GITOPS / name for name in ("argocd", "flux")), SELF_SERVICE / "platform", *TEAMS,
     ROOT / "deploy" / "kustomize" / "base"],
    ids=lambda path: path.name,
)  # fmt: skip
def test_kustomize_builds_the_tree(folder: Path) -> None:
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(
        item["kind"] != "Kustomization" or "flux" in str(folder) for item in yaml.safe_load_all(done.stdout)
    )
