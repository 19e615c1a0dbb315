"""Tests admission: the API server refuses fifty wrong manifests with their field, and frozen blocks stay.

Nothing of ours runs here but the CRDs, as on a cluster whose operator is down.
"""

from __future__ import annotations

import copy
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dapt_operator.api.schema.immutable import FROZEN_BLOCKS, message
from support.builders import adaptation, merged, profile
from support.hostile_manifests import HARMLESS, HOSTILE, with_value
from testcluster.adaptations import ON_THE_CLUSTER, make_profile
from testcluster.api import ApiError
from testcluster.control_plane import ControlPlane
from testcluster.waiting import eventually

pytestmark = pytest.mark.cluster

REMOVED = object()
DA, PROFILE = "DomainAdaptation", "AdaptationProfile"
SOURCE = {"source": "s3://corpora/a.jsonl"}
TASK = {"name": "codes"}
NOT_OBSERVED = {"observedGeneration": -1, "conditions": [], "stages": [], "candidates": [], "attempts": []}
LORA_AND_FULL = {"lora": {"rank": 8}, "full": {}}

# Kind, place, what is written there, the field that the refusal names, and what it says about it.
WRONG: list[tuple[str, str, Any, str, str]] = [
    # what is missing
    (DA, "spec", REMOVED, "spec", "Required value"),
    (DA, "spec.model", REMOVED, "spec.model", "Required value"),
    (DA, "spec.model.source", REMOVED, "spec.model.source", "Required value"),
    (DA, "spec.corpus.domain", REMOVED, "spec.corpus.domain", "Required value"),
    (DA, "spec.corpus.general", REMOVED, "spec.corpus.general", "Required value"),
    (DA, "spec.output", REMOVED, "spec.output", "Required value"),
    (DA, "spec.output.destination", REMOVED, "spec.output.destination", "Required value"),
    (DA, "spec.resources", REMOVED, "spec.resources", "Required value"),
    (DA, "spec.finetuning.data", REMOVED, "spec.finetuning.data", "Required value"),
    # what nobody knows
    (DA, "spec.corpus.replayFracton", 0.1, "spec.corpus.replayFracton", "unknown field"),
    (DA, "spec.pretraining.learningRate", 1e-4, "spec.pretraining.learningRate", "unknown field"),
    (DA, "spec.podTemplate", {"spec": {}}, "spec.podTemplate", "unknown field"),
    (DA, "spec.serviceAccountName", "admin", "spec.serviceAccountName", "unknown field"),
    # names and addresses
    (DA, "metadata.name", "a" * 64, "metadata.name", "must not be longer than 63 characters"),
    (DA, "metadata.name", "2nd-try", "metadata.name", "a letter first and no dots"),
    (DA, "metadata.name", "clinical.v2", "metadata.name", "a letter first and no dots"),
    (DA, "spec.profile", "H100", "spec.profile", "should match"),
    (DA, "spec.queue", "team health", "spec.queue", "should match"),
    (DA, "spec.model.source", "meta-llama/Llama-3.1-8B", "spec.model.source", "should match"),
    (DA, "spec.corpus.domain.0.source", "https://text.example/a", "spec.corpus.domain[0].source", "should match"),
    (DA, "spec.output.destination", "s3:/models/a", "spec.output.destination", "should match"),
    (DA, "spec.corpus.domain.0.source", f"s3://{'a' * 1024}", "spec.corpus.domain[0].source", "Too long"),
    (DA, "spec.credentials", [{"secretName": "Hub", "use": "read"}], "spec.credentials[0].secretName", "match"),
    # types
    (DA, "spec.suspend", "yes", "spec.suspend", "must be of type boolean"),
    (DA, "spec.seed", 1.5, "spec.seed", "must be of type integer"),
    (DA, "spec.resources.memory", 64, "spec.resources.memory", "must be of type string"),
    (DA, "spec.resources.cpu", 1.5, "spec.resources.cpu", "must be of type integer,string"),
    (DA, "spec.resources.cpu", -8, "spec.resources.cpu", "greater than or equal to 0"),
    (DA, "spec.resources.cpu", "8 cores", "spec.resources.cpu", "should match"),
    (DA, "spec.resources.cpu", 2**60, "spec.resources.cpu", "more CPUs than any node has"),
    (DA, "spec.corpus.domain", "s3://a/b", "spec.corpus.domain", "must be of type array"),
    (DA, "spec.pretraining.optimizer.learningRate", "2e-5", "spec.pretraining.optimizer.learningRate", "number"),
    # ranges
    (DA, "spec.corpus.replayFraction", 0.95, "spec.corpus.replayFraction", "less than or equal to 0.9"),
    (DA, "spec.corpus.heldOut", {"fraction": 0}, "spec.corpus.heldOut.fraction", "greater than 0"),
    (DA, "spec.corpus.sequenceLength", 4, "spec.corpus.sequenceLength", "greater than or equal to 8"),
    (DA, "spec.corpus.general", [], "spec.corpus.general", "at least 1 items"),
    (DA, "spec.corpus.domain", [SOURCE] * 11, "spec.corpus.domain", "at most 10 items"),
    (DA, "spec.pretraining.globalBatchSize", 0, "spec.pretraining.globalBatchSize", "or equal to 1"),
    (DA, "spec.pretraining.checkpoints.count", 51, "spec.pretraining.checkpoints.count", "less than or equal to 50"),
    (DA, "spec.evaluation.fewShot", -1, "spec.evaluation.fewShot", "greater than or equal to 0"),
    (DA, "spec.resources.nodes", 0, "spec.resources.nodes", "greater than or equal to 1"),
    (DA, "spec.resources.memory", "64 GB", "spec.resources.memory", "should match"),
    (DA, "spec.limits", {"gpuHours": 0}, "spec.limits.gpuHours", "greater than 0"),
    # words
    (DA, "spec.corpus.deduplicate", "fuzzy", "spec.corpus.deduplicate", '"exact", "near", "none"'),
    (DA, "spec.gates", {"onBreach": "Ignore"}, "spec.gates.onBreach", '"Rollback", "Block", "Warn"'),
    (DA, "spec.credentials", [{"secretName": "dapt-a", "use": "all"}], "spec.credentials[0].use", '"read", "write"'),
    (DA, "spec.cleanup", {"volume": "Remove"}, "spec.cleanup.volume", '"Retain", "Delete"'),
    # rules between fields
    (DA, "spec.pretraining.method", LORA_AND_FULL, "spec.pretraining.method", "exactly one of full and lora"),
    (DA, "spec.pretraining.budget", {"epochs": 1, "steps": 9}, "spec.pretraining.budget", "exactly one of epochs"),
    (DA, "spec.finetuning.budget", {}, "spec.finetuning.budget", "exactly one of epochs and steps"),
    (DA, "spec.corpus.replayFraction", 0, "spec.corpus.replayFraction", "trains on no general text"),
    (DA, "spec.evaluation.general.tasks", [TASK], "spec.evaluation", "names of tasks must be unique"),
    (DA, "spec.gates", {"hardStopFactor": 1}, "spec.gates.hardStopFactor", "must be above 1"),
    (DA, "spec.gates", {"minDomainPerplexityDecrease": 15}, "spec.gates.minDomainPerplexityDecrease", "write 0.15"),
    (DA, "spec.pretraining.optimizer", {"betas": [0.99, 0.9]}, "spec.pretraining.optimizer.betas", "first beta"),
    (DA, "spec.selection", {"averageLast": 5}, "spec.selection.averageLast", "there are not that many"),
    (DA, "spec.selection", {"pin": "best"}, "spec.selection.pin", "should match"),
    (DA, "spec.output.form", "adapter", "spec.output.form", "needs method.lora in pretraining, finetuning"),
    (PROFILE, "spec.trainerImage", "", "spec.trainerImage", "at least 1 chars long"),
    (PROFILE, "spec.accelerator.memoryGiB", REMOVED, "spec.accelerator.memoryGiB", "Required value"),
    (PROFILE, "spec.accelerator.kind", "tpu", "spec.accelerator.kind", '"gpu", "cpu"'),
    (PROFILE, "spec.launcher", "Deployment", "spec.launcher", '"IndexedJob", "JobSet"'),
    (PROFILE, "spec.storage", {}, "spec.storage", "exactly one of claimTemplate and existingClaim"),
    (PROFILE, "spec.ports", {"progress": 29500}, "spec.ports.progress", "must be two different ports"),
]  # fmt: skip


def valid(kind: str) -> dict[str, Any]:
    """A manifest that is accepted; `form: adapter` alone needs more than this one has."""
    if kind == PROFILE:
        return profile()
    manifest = adaptation(**merged(ON_THE_CLUSTER, {"finetuning": {"method": {"full": {}}}}))
    del manifest["metadata"]["namespace"]
    return manifest


def with_change(manifest: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy with something else at one place; a number is an index of a list."""
    changed = copy.deepcopy(manifest)
    *path, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    block: Any = changed
    for part in path:
        block = block.setdefault(part, {}) if isinstance(part, str) else block[part]
    if value is REMOVED:
        del block[last]
    else:
        block[last] = value
    return changed


def create_dry(control_plane: ControlPlane, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """What `kubectl apply` sends for a new object, judged and not stored."""
    path = control_plane.api.path(manifest["kind"], namespace)
    return control_plane.api.request("POST", path, manifest, dryRun="All", fieldValidation="Strict")


def kubectl(control_plane: ControlPlane, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """kubectl as the administrator."""
    command = ["kubectl", "--kubeconfig", str(control_plane.kubeconfig), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def own_namespace(control_plane: ControlPlane) -> str:
    """One for all that is judged and not stored."""
    return control_plane.make_namespace("admission")


@pytest.mark.parametrize("kind", [DA, PROFILE])
def test_the_manifest_that_the_wrong_ones_start_from_is_accepted(
    control_plane: ControlPlane, own_namespace: str, kind: str
) -> None:
    assert create_dry(control_plane, own_namespace, valid(kind))["kind"] == kind


@pytest.mark.parametrize(
    ("kind", "place", "value", "field", "says"),
    WRONG,
    ids=lambda value: "removed" if value is REMOVED else str(value)[:40] or "empty",
)
def test_a_wrong_manifest_is_refused_and_its_field_is_named(
    control_plane: ControlPlane,
    own_namespace: str,
    kind: str,
    place: str,
    value: Any,
    field: str,
    says: str,
) -> None:
    with pytest.raises(ApiError) as refusal:
        create_dry(control_plane, own_namespace, with_change(valid(kind), place, value))
    assert refusal.value.status in (400, 422)
    named = re.findall(
        r'(?:unknown field "|(?:is invalid: |, |\[))((?:spec|metadata)[\w.\[\]]*)', str(refusal.value)
    )
    assert field in named, str(refusal.value)
    assert says in str(refusal.value)


def test_hostile_manifests_are_refused_and_harmless_ones_are_not(
    control_plane: ControlPlane, own_namespace: str
) -> None:
    def is_refused(place: str, value: Any) -> bool:
        try:
            create_dry(control_plane, own_namespace, with_value(place, value))
        except ApiError as refusal:
            return refusal.status in (400, 422)
        return False

    assert [(place, value) for place, value in HOSTILE if not is_refused(place, value)] == []
    assert [(place, value) for place, value in HARMLESS if is_refused(place, value)] == []


def test_there_are_at_least_fifty_of_them() -> None:
    assert len({(kind, place, str(value)) for kind, place, value, _, _ in WRONG}) >= 50


def test_kubectl_shows_the_sentence_and_stores_nothing(
    control_plane: ControlPlane, own_namespace: str, tmp_path: Path
) -> None:
    manifest = tmp_path / "wrong.yaml"
    manifest.write_text(
        "apiVersion: dapt.dev/v1alpha1\n"
        "kind: DomainAdaptation\n"
        "metadata: {name: wrong}\n"
        "spec:\n"
        "  model: {source: hf://a/b}\n"
        "  corpus: {domain: [{source: s3://a/b}], general: [{source: s3://a/c}], replayFraction: 0}\n"
        "  output: {destination: s3://a/d}\n"
        "  resources: {}\n"
    )
    done = kubectl(control_plane, "apply", "-n", own_namespace, "-f", manifest)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        'The DomainAdaptation "wrong" is invalid: spec.corpus.replayFraction: Invalid value: replayFraction 0'
        " with generalUse: train trains on no general text; write generalUse: measure to switch replay off on purpose,"
        " or leave replayFraction out for the measured default"
    ]
    assert control_plane.api.find(DA, "wrong", own_namespace) is None


def test_numbers_may_be_written_as_people_write_them(
    control_plane: ControlPlane, own_namespace: str, tmp_path: Path
) -> None:
    manifest = tmp_path / "numbers.yaml"
    manifest.write_text(
        "apiVersion: dapt.dev/v1alpha1\n"
        "kind: DomainAdaptation\n"
        "metadata: {name: numbers}\n"
        "spec:\n"
        "  model: {source: hf://a/b}\n"
        "  corpus: {domain: [{source: s3://a/b, maxTokens: 100_000_000}], general: [{source: s3://a/c, weight: 2}]}\n"
        "  pretraining: {budget: {tokens: 2e9}, optimizer: {learningRate: 2e-5}}\n"
        "  output: {destination: s3://a/d}\n"
        "  resources: {}\n"
    )
    done = kubectl(control_plane, "apply", "-n", own_namespace, "-f", manifest)
    assert done.returncode == 0, done.stderr
    spec = control_plane.api.get(DA, "numbers", own_namespace)["spec"]
    assert spec["corpus"]["domain"][0]["maxTokens"] == 100_000_000
    assert spec["pretraining"]["budget"] == {"tokens": 2_000_000_000}
    assert spec["pretraining"]["optimizer"]["learningRate"] == 2e-5


# --- edits ---

CHANGES: dict[str, tuple[str, Any]] = {
    "model": ("spec.model.source", "s3://models/other"),
    "corpus": ("spec.corpus.replayFraction", 0.1),
    "evaluation": ("spec.evaluation.fewShot", 0),
    "profile": ("spec.profile", "other"),
    "pretraining": ("spec.pretraining.globalBatchSize", 16),
    "finetuning": ("spec.finetuning.budget", {"epochs": 1}),
    "preference": ("spec.preference", {"data": [SOURCE]}),
    "output": ("spec.output.destination", "s3://models/other"),
    "seed": ("spec.seed", 7),
}
REMAINS_FREE = {
    "suspend": True,
    "queue": "team-health",
    "limits": {"gpuHours": 5},
    "gates": {"patience": 4},
    "selection": {"weights": {"domainTasks": 2.0}},
    "resources": {"nodes": 3},
    "credentials": [{"secretName": "dapt-s3", "use": "read"}],
    "cleanup": {"afterSeconds": 60},
}


@pytest.fixture
def stored(control_plane: ControlPlane, namespace: str) -> str:
    """Name of a stored adaptation of which no stage has started."""
    return control_plane.api.create(valid(DA), namespace)["metadata"]["name"]


def freeze(control_plane: ControlPlane, namespace: str, name: str, *blocks: str) -> None:
    """Write the status as the operator does when the stages that need these blocks have started."""
    status = {"frozen": dict.fromkeys(blocks, True)}
    control_plane.api.patch(DA, name, {"status": status}, namespace, subresource="status")


def change(control_plane: ControlPlane, namespace: str, name: str, block: str) -> dict[str, Any]:
    """Edit one block by a merge patch."""
    place, value = CHANGES[block]
    patch = with_change({}, place, value)
    return control_plane.api.patch(DA, name, patch, namespace)


@pytest.mark.parametrize("block", FROZEN_BLOCKS)
def test_a_block_may_change_until_its_stage_has_started(
    control_plane: ControlPlane, namespace: str, stored: str, block: str
) -> None:
    freeze(control_plane, namespace, stored, *(other for other in FROZEN_BLOCKS if other != block))
    assert change(control_plane, namespace, stored, block)["metadata"]["generation"] == 2


@pytest.mark.parametrize("block", FROZEN_BLOCKS)
def test_a_frozen_block_is_refused_with_our_message_while_labels_change(
    control_plane: ControlPlane, namespace: str, stored: str, block: str
) -> None:
    freeze(control_plane, namespace, stored, block)
    with pytest.raises(ApiError) as refusal:
        change(control_plane, namespace, stored, block)
    assert refusal.value.status == 422
    assert f"spec.{block}: " in str(refusal.value)
    assert message(block) in str(refusal.value)
    labelled = control_plane.api.patch(DA, stored, {"metadata": {"labels": {"team": "health"}}}, namespace)
    assert labelled["metadata"]["labels"] == {"team": "health"}
    assert labelled["metadata"]["generation"] == 1


@pytest.mark.parametrize("block", ["profile", "finetuning", "evaluation"])
def test_a_frozen_block_cannot_be_removed_either(
    control_plane: ControlPlane, namespace: str, stored: str, block: str
) -> None:
    freeze(control_plane, namespace, stored, block)
    with pytest.raises(ApiError, match=re.escape(message(block))):
        control_plane.api.patch(DA, stored, {"spec": {block: None}}, namespace)


def test_what_reaches_the_next_run_may_change_when_everything_is_frozen(
    control_plane: ControlPlane, namespace: str, stored: str
) -> None:
    freeze(control_plane, namespace, stored, *FROZEN_BLOCKS)
    for number, (block, value) in enumerate(REMAINS_FREE.items(), start=2):
        edited = control_plane.api.patch(DA, stored, {"spec": {block: value}}, namespace)
        assert edited["metadata"]["generation"] == number, block


def test_the_status_cannot_be_written_together_with_the_spec(
    control_plane: ControlPlane, namespace: str, stored: str
) -> None:
    patch = {"spec": {"suspend": True}, "status": {"phase": "Published"}}
    assert control_plane.api.patch(DA, stored, patch, namespace)["status"] == NOT_OBSERVED


def test_a_new_adaptation_says_that_nobody_has_observed_it(
    control_plane: ControlPlane, namespace: str, stored: str
) -> None:
    api = control_plane.api
    assert api.get(DA, stored, namespace)["status"] == NOT_OBSERVED
    (listed,) = api.list(DA, namespace)
    assert listed["status"] == NOT_OBSERVED
    # kubectl compares it too: a condition counts once it is about the spec of now.
    waiting = ("wait", f"da/{stored}", "-n", namespace, "--for=jsonpath={.status.observedGeneration}=1")
    assert "timed out" in kubectl(control_plane, *waiting, "--timeout=1s").stderr
    api.patch(DA, stored, {"status": {"observedGeneration": 1}}, namespace, subresource="status")
    assert "condition met" in kubectl(control_plane, *waiting, "--timeout=20s").stdout
    # What the operator writes stays as it is, also where it has no generation.
    api.patch(DA, stored, {"status": {"observedGeneration": None}}, namespace, subresource="status")
    assert "observedGeneration" not in api.get(DA, stored, namespace)["status"]


def test_one_version_is_stored(control_plane: ControlPlane) -> None:
    for name in ("domainadaptations.dapt.dev", "adaptationprofiles.dapt.dev"):
        definition = control_plane.api.get("CustomResourceDefinition", name)
        assert definition["status"]["storedVersions"] == ["v1alpha1"]


def test_the_columns_of_kubectl_get(control_plane: ControlPlane, namespace: str, stored: str) -> None:
    condition = {"lastTransitionTime": "2026-01-31T12:00:00Z", "message": "pretraining runs"}
    status = {
        "phase": "Pretraining",
        "conditions": [
            condition | {"type": "Ready", "status": "False", "reason": "Progressing"},
            condition | {"type": "Reconciling", "status": "True", "reason": "Running"},
        ],
        "stages": [
            {"name": name, "kind": name, "attempt": 1, "try": 1, "state": "Running"}
            for name in ("prepare", "pretrain")
        ],
        "progress": {"fraction": 0.41, "etaSeconds": 8220},
        "forgetting": 0.021,
        "gain": 0.18,
        "attempt": 1,
        "usage": {"gpuHours": 38.2},
        "selected": {"id": "a1-s40", "reason": "largest gain"},
        "resolved": {"profile": "h100"},
    }
    new = eventually(lambda: kubectl(control_plane, "get", "da", "-n", namespace).stdout)
    assert new.splitlines()[1].split()[0] == "clinical"
    control_plane.api.patch(DA, stored, {"status": status}, namespace, subresource="status")

    def table(*flags: str) -> list[tuple[str, str]]:
        shown = kubectl(control_plane, "get", "da", "-n", namespace, *flags).stdout
        head, row = (re.split(r" {2,}", line.strip()) for line in shown.splitlines())
        return list(zip(head, row, strict=True))

    usual = [
        ("NAME", "clinical"),
        ("READY", "False"),
        ("PHASE", "Pretraining"),
        ("REASON", "Running"),
        ("STAGE", "pretrain"),
        ("PROGRESS", "0.41"),
        ("ETA", "8220"),
        ("FORGETTING", "0.021"),
        ("GAIN", "0.18"),
    ]
    assert table()[:-1] == usual
    wide = [
        ("ATTEMPT", "1"),
        ("GPU-HOURS", "38.2"),
        ("SELECTED", "a1-s40"),
        ("PROFILE", "h100"),
        ("MESSAGE", "pretraining runs"),
    ]
    assert table("-o", "wide")[:-1] == usual + wide


def test_the_columns_of_profiles(control_plane: ControlPlane) -> None:
    name = make_profile(control_plane, default=True, limits={"nodes": 4, "gpuHours": 100})
    shown = kubectl(control_plane, "get", "ap", name).stdout
    control_plane.api.delete(PROFILE, name)
    head, row = (line.split() for line in shown.splitlines())
    assert head == [
        "NAME", "KIND", "PER-NODE", "GIB", "LAUNCHER", "MAX-NODES", "MAX-GPU-HOURS", "DEFAULT", "AGE",
    ]  # fmt: skip
    assert (row[0], row[-4:-1]) == (name, ["4", "100", "true"])
