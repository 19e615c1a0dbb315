"""Objects that an older version stored, whose rules have become stricter since: nothing of them is stuck."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from dapt_operator.api.schema import crd
from support.builders import adaptation, merged
from testcluster.adaptations import ON_THE_CLUSTER, make_claim, make_profile, stays_in
from testcluster.api import ApiError
from testcluster.control_plane import ControlPlane
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.operator_process import OperatorProcess
from testcluster.waiting import eventually

pytestmark = pytest.mark.cluster

DA = "DomainAdaptation"
STRICTER = (
    "pattern",
    "enum",
    "x-kubernetes-validations",
    *(f"{end}{what}" for end in ("min", "max") for what in ("imum", "Length", "Items", "Properties")),
)
"""Keys of a schema that refuse a value of the right type."""

SOURCE = {"source": "s3://a/b"}
STORED: dict[str, dict[str, Any]] = {
    "2nd-try": {},
    "clinical.v2": {},
    "a" * 70: {},
    "source": {"corpus": {"domain": [{"source": "s3://text/../d"}]}},
    "source-of-a-task": {"evaluation": {"general": {"tasks": [{"name": "a", "source": "pvc://../x"}]}}},
    "text-field": {"corpus": {"general": [SOURCE | {"textField": "a\u202eb"}]}},
    "model": {"model": {"source": "hf://../base"}},
    "destination": {"output": {"destination": "pvc://models"}},
    "secret": {"credentials": [{"secretName": "dapt-a-0123abcd-signing", "use": "read"}]},
    "memory": {"resources": {"memory": "8Ei"}},
    "memory-of-a-stage": {"stageResources": {"prepare": {"memory": "8Ei"}}},
    "seed": {"seed": -1},
    "enum": {"corpus": {"deduplicate": "fuzzy"}},
    "two-budgets": {"pretraining": {"budget": {"epochs": 1, "steps": 2}}},
    "two-tasks": {"evaluation": {"domain": {"tasks": [{"name": "a"}, {"name": "a"}]}}},
    "no-replay": {"corpus": {"replayFraction": 0}},
    "preference-alone": {"finetuning": None, "preference": {"data": [SOURCE]}},
    "adapter": {"output": {"form": "adapter"}, "finetuning": {"method": {"full": {}}}},
    "average": {"selection": {"averageLast": 9}},
    "weights": {
        "selection": {"weights": {"domainPerplexity": 0}},
        "evaluation": {"domain": {"tasks": []}},
    },
}
"""Name of an object -> what its spec has that the rules of today refuse; of the first three it is the name."""


def without_rules(node: Any, keys: tuple[str, ...] = STRICTER) -> Any:
    """The schema with types and defaults alone."""
    if isinstance(node, list):
        return [without_rules(item, keys) for item in node]
    if not isinstance(node, dict):
        return node
    # A property may have the name of a key: those of `properties` are names.
    return {
        name: {key: without_rules(child, keys) for key, child in item.items()}
        if name == "properties"
        else without_rules(item, keys)
        for name, item in node.items()
        if name not in keys
    }


def manifest_of(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    manifest = adaptation(name, **merged(ON_THE_CLUSTER, spec))
    del manifest["metadata"]["namespace"]
    return manifest


@pytest.fixture
def stored(control_plane: ControlPlane, namespace: str) -> str:
    """A namespace with the objects, all written while the definition had no rules."""
    definition = crd.adaptation_definition()
    name, relaxed = definition["metadata"]["name"], copy.deepcopy(definition)
    (version,) = relaxed["spec"]["versions"]
    version["schema"] = without_rules(version["schema"])
    api = control_plane.api
    manifests = [manifest_of(*item) for item in STORED.items()]

    def is_stored(manifest: dict[str, Any]) -> bool:
        try:
            api.create(manifest, namespace)
        except ApiError as error:
            return error.reason == "AlreadyExists"
        return True

    def is_refused(manifest: dict[str, Any]) -> bool:
        try:
            api.request("POST", api.path(DA, namespace), manifest, dryRun="All")
        except ApiError as error:
            return error.status == 422
        return False

    try:
        api.apply(relaxed)
        # A changed definition is served some moments later.
        eventually(lambda: all(map(is_stored, manifests)), "all objects stored")
    finally:
        api.apply(definition)
    assert api.get("CustomResourceDefinition", name)["spec"] != relaxed["spec"]
    fresh = [
        {**manifest, "metadata": {"name": f"{manifest['metadata']['name']}-x"}} for manifest in manifests
    ]
    eventually(lambda: all(map(is_refused, fresh)), "the rules of today")
    return namespace


def refused(write: Callable[[str], Any]) -> dict[str, str]:
    """Names of the stored objects for which the API server refuses a write, and why."""
    found = {}
    for name in STORED:
        try:
            write(name)
        except ApiError as error:
            found[name] = str(error)
    return found


def test_an_object_older_than_a_rule_can_be_written_and_deleted(
    control_plane: ControlPlane, stored: str
) -> None:
    api = control_plane.api

    def merge(subresource: str = "", **patch: Any) -> Callable[[str], Any]:
        return lambda name: api.patch(DA, name, patch, stored, subresource=subresource)

    # What the operator writes, a block that is frozen too.
    status = {"phase": "Preparing", "frozen": {"corpus": True, "pretraining": True}}
    assert refused(merge("status", status=status)) == {}
    # Edits of people, elsewhere than at the field that is wrong.
    assert refused(merge(metadata={"labels": {"team": "health"}})) == {}
    assert refused(merge(spec={"suspend": True})) == {}
    assert refused(merge(spec={"limits": {"gpuHours": 5}, "queue": "team"})) == {}
    # A deletion that waits for a finalizer, and its end.
    assert refused(merge(metadata={"finalizers": ["tests.example/wait"]})) == {}
    assert refused(lambda name: api.delete(DA, name, stored)) == {}
    assert len(api.list(DA, stored)) == len(STORED)
    assert refused(merge(metadata={"finalizers": None})) == {}
    assert api.list(DA, stored) == []


def test_the_operator_says_what_to_edit_and_continues_then(
    control_plane: ControlPlane, stored: str, kubelet: ScriptedKubelet
) -> None:
    make_claim(control_plane, stored)
    kubelet.script = stays_in("prepare")
    profile = make_profile(control_plane)
    api = control_plane.api
    for name in STORED:
        api.patch(DA, name, {"spec": {"profile": profile}}, stored)

    def conditions(name: str) -> dict[str, dict[str, Any]]:
        status = api.get(DA, name, stored).get("status") or {}
        return {item["type"]: item for item in status.get("conditions", ())}

    def is_stalled(name: str) -> bool:
        return conditions(name).get("Stalled", {}).get("status") == "True"

    with OperatorProcess(control_plane, [stored]) as operator:
        for name in STORED:
            eventually(partial(is_stalled, name), f"{name} stalled")
        assert {conditions(name)["Stalled"]["reason"] for name in STORED} == {"InvalidSpec"}
        assert api.list("Job", stored) == []
        assert operator.lines("reconcile failed, retrying") == []
        domain = [{"source": "s3://text/d.jsonl"}]
        api.patch(DA, "source", {"spec": {"corpus": {"domain": domain}}}, stored)
        eventually(lambda: not is_stalled("source"), "the edited one continues")
