"""Renders a run's volumes: work volume, scratch, shared memory, the run's files, signing key and claims."""

from __future__ import annotations

from typing import Final

from dapt_contract.pod import environment as contract
from dapt_operator.api.names import signing_secret_name, work_claim_name
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.launchers.render.environment import uses_model_cache
from dapt_operator.stage_run import JsonObject, Owner, StageRun

WRITING_KINDS: Final = ("destination", "publish")
"""Kinds of stage that write to the claim of the destination."""


def mounts_of(run: StageRun, profile: AdaptationProfileSpec, owner: Owner) -> list[JsonObject]:
    """Return the volume mounts of the trainer's container."""
    work: JsonObject = {"name": "work", "mountPath": contract.WORK_MOUNT}
    if profile.storage.existing_claim:
        # Several adaptations may share this claim: each gets its own folder.
        work["subPath"] = work_claim_name(owner.name, owner.uid)
    mounts: list[JsonObject] = [
        work,
        {"name": "scratch", "mountPath": contract.SCRATCH_MOUNT},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
        {"name": "stage", "mountPath": contract.STAGE_FILE.rpartition("/")[0], "readOnly": True},
    ]
    if run.needs_signing_key:
        mounts.append({"name": "signing", "mountPath": contract.SIGNING_KEY_MOUNT, "readOnly": True})
    if uses_model_cache(run, profile):
        mounts.append({"name": "model-cache", "mountPath": contract.MODEL_CACHE_MOUNT})
    for number, claim in enumerate(run.claims):
        mount: JsonObject = {"name": f"claim-{number}", "mountPath": f"{contract.CLAIMS_MOUNT}/{claim}"}
        mounts.append(mount | ({"readOnly": True} if _is_reader(run) else {}))
    return mounts


def volumes_of(
    run: StageRun, profile: AdaptationProfileSpec, owner: Owner, scratch_limit: str
) -> list[JsonObject]:
    """Return the volumes of the run's pods; `scratch_limit`: a pod that writes more to its scratch is evicted."""
    claim = profile.storage.existing_claim or work_claim_name(owner.name, owner.uid)
    volumes: list[JsonObject] = [
        {"name": "work", "persistentVolumeClaim": {"claimName": claim}},
        {"name": "scratch", "emptyDir": {"sizeLimit": scratch_limit}},
        # A container gets 64 MB of /dev/shm by default, too little for data loaders and for NCCL.
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        {"name": "stage", "configMap": {"name": run.name}},
    ]
    if run.needs_signing_key:
        secret = signing_secret_name(owner.name, owner.uid)
        volumes.append({"name": "signing", "secret": {"secretName": secret, "defaultMode": 0o440}})
    if profile.model_cache is not None and uses_model_cache(run, profile):
        cache = {"claimName": profile.model_cache.existing_claim}
        volumes.append({"name": "model-cache", "persistentVolumeClaim": cache})
    for number, name in enumerate(run.claims):
        source: JsonObject = {"claimName": name}
        if _is_reader(run) and name not in _written_claims(profile, claim):
            source["readOnly"] = True  # the kubelet then does not change the files' owner either
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": source})
    return volumes


def _written_claims(profile: AdaptationProfileSpec, work_claim: str) -> tuple[str, ...]:
    """Return the claims that the pod writes to: a claim cannot be both read-only and writable in one pod."""
    cache = profile.model_cache
    return (work_claim, cache.existing_claim) if cache is not None else (work_claim,)


def _is_reader(run: StageRun) -> bool:
    """Whether the run only reads its claims."""
    return run.kind not in WRITING_KINDS
