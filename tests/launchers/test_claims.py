"""Claims of pvc:// on their whole way: judged in the manifest, mounted by the launcher, found by the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dapt_contract.pod import environment as contract
from dapt_operator.api.validation.validate import check
from dapt_operator.api.validation.yaml_source import load
from dapt_operator.launchers import LAUNCHERS
from dapt_operator.stage_run import StageRun, plain
from dapt_trainer.data.reading.sources import CLAIMS_FOLDER, filesystem_of
from dapt_trainer.errors import InputError
from dapt_trainer.publishing.destinations import open_destination
from support.launch_builders import owner, profile, stage_run

MANIFEST = """
apiVersion: dapt.dev/v1alpha1
kind: DomainAdaptation
metadata: {{name: clinical}}
spec:
  model: {{source: "{model}"}}
  corpus: {{domain: [{{source: "{text}"}}], general: [{{source: "s3://c/g.jsonl"}}]}}
  output: {{destination: "{destination}"}}
  resources: {{nodes: 1}}
"""
FINE = {
    "model": "pvc://models/llama",
    "text": "pvc://texts/*.jsonl",
    "destination": "pvc://models.new/clinical",
}
SOURCE = "write pvc://CLAIM/FILES: the name of a claim in this namespace and a path on it, without '..'"
FOLDER = "write pvc://CLAIM/FOLDER: the name of a claim in this namespace and a folder on it, without '..'"


def said(**places: str) -> list[str]:
    (document,) = load(MANIFEST.format(**FINE | places))
    _, found = check(document, local=False)
    return [str(problem) for problem in found if problem.is_supported]


def trainer_of(run: StageRun, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mounts by path, volumes by name."""
    (*_, job) = LAUNCHERS["IndexedJob"].render(run, profile(**changes), owner())
    spec = plain(job["spec"]["template"]["spec"])
    mounts = {item["mountPath"]: item for item in spec["containers"][0]["volumeMounts"]}
    return mounts, {item["name"]: item for item in spec["volumes"]}


def prepare(*claims: str) -> StageRun:
    base = stage_run(claims=claims)
    return StageRun(
        identity=base.identity, kind="prepare", config=base.config, resources=base.resources, claims=claims
    )


def test_places_on_claims_are_accepted() -> None:
    assert said() == []
    assert said(text="pvc://texts") == []  # a folder stands for the files below it


@pytest.mark.parametrize("place", ["pvc://Texts/a.jsonl", "pvc://../a.jsonl", "pvc://texts/../b", "pvc:///a"])
def test_source_that_names_no_claim_is_refused(place: str) -> None:
    assert said(text=place) == [f"spec.corpus.domain[0].source (line 7): {place!r} is not accepted; {SOURCE}"]
    assert said(model=place) == [f"spec.model.source (line 6): {place!r} is not accepted; {SOURCE}"]


@pytest.mark.parametrize("place", ["pvc://models", "pvc://models/", "pvc://models/../x", "pvc://-/x"])
def test_invalid_destination_is_refused_in_the_manifest(place: str) -> None:
    assert said(destination=place) == [
        f"spec.output.destination (line 8): {place!r} is not accepted; {FOLDER}"
    ]


def test_sources_are_mounted_read_only_where_the_trainer_looks() -> None:
    mounts, volumes = trainer_of(prepare("texts", "models.new"))
    assert mounts[f"{contract.CLAIMS_MOUNT}/texts"]["readOnly"] is True
    assert mounts[f"{contract.CLAIMS_MOUNT}/models.new"]["name"] == "claim-1"
    assert volumes["claim-0"]["persistentVolumeClaim"] == {"claimName": "texts", "readOnly": True}
    assert volumes["claim-1"]["persistentVolumeClaim"] == {"claimName": "models.new", "readOnly": True}


def test_a_destination_is_writable() -> None:
    mounts, volumes = trainer_of(stage_run(claims=("models",)))
    assert "readOnly" not in mounts[f"{contract.CLAIMS_MOUNT}/models"]
    assert volumes["claim-0"]["persistentVolumeClaim"] == {"claimName": "models"}


def test_a_source_on_the_work_volumes_own_claim_is_one_volume_that_may_be_written() -> None:
    """One pod cannot have a claim both read-only and writable."""
    mounts, volumes = trainer_of(prepare("shared"), storage={"existingClaim": "shared"})
    assert volumes["claim-0"]["persistentVolumeClaim"] == {"claimName": "shared"}
    assert mounts[f"{contract.CLAIMS_MOUNT}/shared"]["readOnly"] is True


def test_the_trainer_reads_and_writes_below_the_mounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CLAIMS_FOLDER, str(tmp_path))
    (tmp_path / "models").mkdir()
    _, path, _ = filesystem_of("pvc://models/llama/x", "f")
    assert path == str(tmp_path / "models/llama/x")
    made = tmp_path / "made"
    made.mkdir()
    (made / "dapt.json").write_text("{}")
    destination = open_destination("pvc://models/clinical/1", work=tmp_path / "work")
    destination.require_writable("run")
    destination.write(made, heartbeat=lambda: None)
    assert (tmp_path / "models/clinical/1/dapt.json").read_text() == "{}"


def test_trainer_defaults_to_the_claims_folder_that_the_launcher_mounts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(CLAIMS_FOLDER, raising=False)
    with pytest.raises(
        InputError, match="claim 'x' is not mounted at /mnt/claims/x; check that the claim exists"
    ):
        filesystem_of("pvc://x/y", "f")


def test_a_claim_as_a_whole_is_no_destination(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_destination("pvc://models/", work=tmp_path)
    assert str(caught.value) == (
        "output.destination 'pvc://models/': the claim itself cannot be replaced as a whole; write pvc://CLAIM/FOLDER"
    )


def test_only_prepare_gets_the_model_cache() -> None:
    cached = {"modelCache": {"existingClaim": "models"}}
    mounts, volumes = trainer_of(prepare(), **cached)
    assert mounts[contract.MODEL_CACHE_MOUNT] == {"name": "model-cache", "mountPath": "/mnt/model-cache"}
    assert volumes["model-cache"]["persistentVolumeClaim"] == {"claimName": "models"}
    (*_, job) = LAUNCHERS["IndexedJob"].render(prepare(), profile(**cached), owner())
    variables = job["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "DAPT_MODEL_CACHE", "value": "/mnt/model-cache"} in variables
    mounts, volumes = trainer_of(stage_run(), **cached)
    assert contract.MODEL_CACHE_MOUNT not in mounts
    assert "model-cache" not in volumes
    assert contract.MODEL_CACHE_MOUNT not in trainer_of(prepare())[0]


def test_a_source_on_the_caches_own_claim_may_be_written_to_as_a_volume() -> None:
    _, volumes = trainer_of(prepare("models"), modelCache={"existingClaim": "models"})
    assert volumes["claim-0"]["persistentVolumeClaim"] == {"claimName": "models"}
