"""Reading checkpoints: what is complete, what was skipped and why.

Nothing of a checkpoint is opened before its manifest's signature fits; nothing but hashing is done with a file before
its SHA-256 fits.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dapt_contract.checkpoint import CHECKPOINT_SCHEMA, CheckpointManifest
from dapt_contract.envelope import ContractError, read_envelope, write_envelope
from dapt_trainer.checkpoints.fence import Claim
from dapt_trainer.digests import sha256_of_file

RESUME_FOLDER = "resume"
"""Below a checkpoint: everything that only a resume needs (optimizer, scheduler, random states, curve)."""
PARTIAL_SUFFIX = ".partial"
_HASHING_THREADS = 4


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint whose manifest is sound."""

    manifest: CheckpointManifest
    manifest_path: Path
    folder: Path
    try_number: int


@dataclass(frozen=True)
class Inventory:
    """What a lineage's folder holds."""

    checkpoints: tuple[StoredCheckpoint, ...]
    """Sound manifests in the order of (step, fence)."""
    skipped: tuple[str, ...]
    """One sentence each."""


def read_inventory(
    work: Path, lineage: Path, *, key: bytes, training_digest: str, claim: Claim | None
) -> Inventory:
    """All checkpoints of a lineage that may be read, over all its tries; files are checked by size alone.

    Args:
        work: root of the work volume.
        lineage: the lineage's folder.
        key: of the signatures.
        training_digest: only checkpoints of this configuration.
        claim: the newest claim; None admits all.
    """
    found: list[StoredCheckpoint] = []
    skipped: list[str] = []
    for path in sorted(lineage.glob("try-*/checkpoint-*.json")):
        try:
            _, manifest = read_envelope(path, CHECKPOINT_SCHEMA, CheckpointManifest)
        except ContractError as error:
            skipped.append(f"skipped a checkpoint: {error}")
            continue
        stored = StoredCheckpoint(manifest, path, work / manifest.folder, int(path.parent.name[4:]))
        problem = _problem_of_manifest(stored, lineage, key, training_digest, claim) or problem_of_sizes(
            stored
        )
        if problem:
            skipped.append(f"skipped {path.relative_to(work)}: {problem}")
        else:
            found.append(stored)
    found.sort(key=lambda stored: (stored.manifest.step, stored.manifest.fence))
    return Inventory(tuple(found), tuple(skipped))


def _problem_of_manifest(
    stored: StoredCheckpoint, lineage: Path, key: bytes, training_digest: str, claim: Claim | None
) -> str | None:
    manifest, path = stored.manifest, stored.manifest_path
    if not manifest.is_signed_with(key):
        return "its signature does not fit this adaptation's key, so it was altered or is someone else's"
    if stored.folder != path.with_suffix("") or manifest.lineage != lineage.name:
        return f"it was written for {manifest.folder} and lies elsewhere"
    if manifest.config_digest != training_digest:
        return "another configuration trained it"
    if claim is not None and not claim.admits(manifest):
        return f"written with fence {manifest.fence} after fence {claim.fence} had taken over"
    return None


def problem_of_sizes(stored: StoredCheckpoint) -> str | None:
    """What a look at the file sizes says; None when they fit."""
    for entry in stored.manifest.files:
        path = stored.folder / entry.path
        if not path.is_file():
            return f"{entry.path} is missing"
        if (size := path.stat().st_size) != entry.size_bytes:
            return f"{entry.path} has {size} bytes, written were {entry.size_bytes}"
    return None


def problem_of_content(stored: StoredCheckpoint) -> str | None:
    """Hash every file; None when all are what was written."""

    def wrong(index: int) -> str | None:
        entry = stored.manifest.files[index]
        same = sha256_of_file(stored.folder / entry.path) == entry.sha256
        return None if same else f"{entry.path} was altered (its SHA-256 differs)"

    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        problems = [problem for problem in pool.map(wrong, range(len(stored.manifest.files))) if problem]
    return problems[0] if problems else None


def newest_to_resume(work: Path, inventory: Inventory) -> tuple[StoredCheckpoint | None, Inventory]:
    """The newest checkpoint with an optimizer state whose every byte is right, and the inventory without damaged ones.

    What is newer than it and sound but without optimizer state leaves the inventory too: it will be trained again.
    """
    skipped = list(inventory.skipped)
    sound = list(inventory.checkpoints)
    while sound:
        stored = sound[-1]
        name = stored.manifest_path.relative_to(work)
        if not stored.manifest.has_optimizer:
            skipped.append(
                f"skipped {name}: its optimizer state was dropped, so training cannot go on from it"
            )
        elif problem := problem_of_content(stored):
            skipped.append(f"skipped {name}: {problem}")
        else:
            return stored, Inventory(tuple(sound), tuple(skipped))
        sound.pop()
    return None, Inventory((), tuple(skipped))


def clear_leftovers(lineage: Path, keep: Inventory, own_try: Path) -> None:
    """Free the space of saves that never ended and, in this run's own folder, of checkpoints that will be rewritten.

    Called right after the claim: whoever still writes there has lost the right to.
    """
    kept = {stored.folder for stored in keep.checkpoints}
    for folder in lineage.glob("try-*/checkpoint-*"):
        unfinished = folder.is_dir() and not folder.with_suffix(".json").exists()
        if folder.name.endswith(PARTIAL_SUFFIX) or unfinished:
            shutil.rmtree(folder, ignore_errors=True)
    for manifest in own_try.glob("checkpoint-*.json"):
        if manifest.with_suffix("") not in kept:
            manifest.unlink()
            shutil.rmtree(manifest.with_suffix(""), ignore_errors=True)


def drop_old_optimizer_states(
    stored: list[StoredCheckpoint], keep: int, *, key: bytes
) -> list[StoredCheckpoint]:
    """Keep the optimizer state of the newest `keep` checkpoints alone.

    The manifest is rewritten first and the files removed after, so a kill in between leaves a sound checkpoint.

    Returns:
        The checkpoints as they are now.
    """
    result = list(stored)
    with_state = [index for index, one in enumerate(stored) if one.manifest.has_optimizer]
    for index in with_state[:-keep] if keep else with_state:
        one = stored[index]
        files = tuple(entry for entry in one.manifest.files if not entry.path.startswith(f"{RESUME_FOLDER}/"))
        manifest = one.manifest.model_copy(update={"files": files, "has_optimizer": False}).signed(key)
        write_envelope(one.manifest_path, CHECKPOINT_SCHEMA, manifest)
        shutil.rmtree(one.folder / RESUME_FOLDER, ignore_errors=True)
        result[index] = StoredCheckpoint(manifest, one.manifest_path, one.folder, one.try_number)
    return result
