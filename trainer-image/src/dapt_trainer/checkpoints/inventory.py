"""Reads the checkpoints of a lineage: which are complete, and which are skipped and why.

No file of a checkpoint is opened before the signature of its manifest matches, no file is used for anything but hashing
before its SHA-256 matches, and a folder with a link or with a file that the manifest does not list is not used at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from dapt_contract.checkpoint import CHECKPOINT_SCHEMA, CheckpointManifest
from dapt_contract.envelope import ContractError, read_envelope, write_envelope
from dapt_contract.layout import try_number
from dapt_contract.untrusted.folders import remove_folder, run_folders
from dapt_trainer.checkpoints.fence import Claim
from dapt_trainer.checkpoints.listed_files import problem_of_file, problem_of_listing

RESUME_FOLDER = "resume"
"""Folder of a checkpoint for what only a resume needs (optimizer, scheduler, random states, curve)."""
PARTIAL_SUFFIX = ".partial"
_HASHING_THREADS = 4


@dataclass(frozen=True)
class StoredCheckpoint:
    """Refers to a checkpoint whose manifest is valid."""

    manifest: CheckpointManifest
    manifest_path: Path
    folder: Path
    try_number: int
    """Number of the run that wrote it."""

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all its files."""
        return sum(entry.size_bytes for entry in self.manifest.files)

    def with_manifest(self, manifest: CheckpointManifest) -> StoredCheckpoint:
        """Return a copy with another manifest."""
        return replace(self, manifest=manifest)


@dataclass(frozen=True)
class Inventory:
    """Lists the checkpoints in a lineage's folder."""

    checkpoints: tuple[StoredCheckpoint, ...]
    """Valid checkpoints in the order of (step, fence)."""
    skipped: tuple[str, ...]
    """One message for each checkpoint that was skipped."""


def read_inventory(
    work: Path, lineage: Path, *, key: bytes, training_digests: Collection[str], claim: Claim | None
) -> Inventory:
    """Return all checkpoints of a lineage that may be read, from all its runs; files are checked by size alone.

    Args:
        work: root of the work volume.
        lineage: the lineage's folder.
        key: key of the signatures.
        training_digests: of the configuration that must have trained them, one for each way to share the model.
        claim: the newest claim; None admits all.
    """
    checkpoints: list[StoredCheckpoint] = []
    skipped: list[str] = []
    for path in sorted(lineage.glob("try-*/checkpoint-*.json")):
        number = try_number(path.parent.name)
        if number is None:
            skipped.append(f"skipped {path.relative_to(work)}: {path.parent.name} is not the folder of a run")
            continue
        try:
            _, manifest = read_envelope(path, CHECKPOINT_SCHEMA, CheckpointManifest)
        except (ContractError, OSError) as error:
            # Not fatal: an older checkpoint may still be good, and the report lists what was skipped.
            skipped.append(f"skipped a checkpoint: {error}")
            continue
        stored = StoredCheckpoint(manifest, path, work / manifest.folder, number)
        problem = _problem_of_manifest(stored, lineage, key, training_digests, claim) or _problem_of_files(
            stored
        )
        if problem:
            skipped.append(f"skipped {path.relative_to(work)}: {problem}")
        else:
            checkpoints.append(stored)
    # By fence too: of two checkpoints of one step the newer run's comes last, which is the one that is kept.
    checkpoints.sort(key=lambda stored: (stored.manifest.step, stored.manifest.fence))
    return Inventory(tuple(checkpoints), tuple(skipped))


def _problem_of_manifest(
    stored: StoredCheckpoint,
    lineage: Path,
    key: bytes,
    training_digests: Collection[str],
    claim: Claim | None,
) -> str | None:
    manifest, path = stored.manifest, stored.manifest_path
    # First: of a manifest that anybody may have written nothing else is believed.
    if not manifest.is_signed_with(key):
        return (
            "its signature does not match this adaptation's key: it was altered, belongs to another adaptation, or the"
            " key was lost and made again since"
        )
    if stored.folder != path.with_suffix("") or manifest.lineage != lineage.name:
        return f"it was written for {manifest.folder} and is in another folder"
    if manifest.config_digest not in training_digests:
        return "it was trained with another configuration"
    if claim is not None and not claim.admits(manifest):
        return f"it was written with fence {manifest.fence} after fence {claim.fence} had taken over"
    return None


def _problem_of_files(stored: StoredCheckpoint) -> str | None:
    # A run that dropped the optimizer's state may have been killed before it had deleted it.
    leftovers = None if stored.manifest.has_optimizer else RESUME_FOLDER
    try:
        return problem_of_listing(stored.folder, stored.manifest.files, leftovers=leftovers)
    except OSError as error:
        return f"its folder cannot be read ({error.strerror})"


def problem_of_content(stored: StoredCheckpoint, part: int = 0, parts: int = 1) -> str | None:
    """Return what is wrong with the content of the files, by hashing each; None when they match the manifest.

    Args:
        stored: the checkpoint.
        part: hash only every `parts`-th file, from this one on.
        parts: ranks that share the work.
    """
    entries = stored.manifest.files[part::parts]
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        problems = pool.map(lambda entry: problem_of_file(stored.folder, entry), entries)
        return next((problem for problem in problems if problem), None)


def newest_to_resume(
    work: Path, inventory: Inventory, check: Callable[[StoredCheckpoint], str | None] = problem_of_content
) -> tuple[StoredCheckpoint | None, Inventory]:
    """Return the newest checkpoint that training can resume from, and the inventory up to it.

    It has an optimizer state, and the digest of every file matches. Newer checkpoints leave the inventory even if they
    are valid but have no optimizer state: their steps are trained again.

    Args:
        work: root of the work volume.
        inventory: of the lineage.
        check: returns what is wrong with a checkpoint's content; the same on every rank.
    """
    # Only what will be loaded is hashed: it reads every byte of a checkpoint.
    skipped = list(inventory.skipped)
    checkpoints = list(inventory.checkpoints)
    while checkpoints:
        stored = checkpoints[-1]
        name = stored.manifest_path.relative_to(work)
        if not stored.manifest.has_optimizer:
            skipped.append(
                f"skipped {name}: its optimizer state was dropped, so training cannot continue from it"
            )
        elif problem := check(stored):
            skipped.append(f"skipped {name}: {problem}")
        else:
            return stored, Inventory(tuple(checkpoints), tuple(skipped))
        checkpoints.pop()
    return None, Inventory((), tuple(skipped))


def clear_leftovers(lineage: Path, keep: Inventory, own_try: Path) -> None:
    """Delete unfinished saves of all runs and, in this run's own folder, checkpoints that will be written again.

    Call it right after the claim: a run that still writes there is no longer allowed to.
    """
    kept = {stored.folder for stored in keep.checkpoints}
    for _, run_folder in run_folders(lineage):
        for folder in run_folder.glob("checkpoint-*"):
            # Without a manifest: the run ended between the rename and the manifest of a save.
            unfinished = folder.is_dir() and not folder.with_suffix(".json").exists()
            if folder.name.endswith(PARTIAL_SUFFIX) or unfinished:
                remove_folder(folder)
    for manifest in own_try.glob("checkpoint-*.json"):
        if manifest.with_suffix("") not in kept:
            # The manifest first, as in every removal: a checkpoint exists when its manifest does.
            manifest.unlink()
            remove_folder(manifest.with_suffix(""))


def drop_old_optimizer_states(
    stored: list[StoredCheckpoint], keep: int, *, key: bytes
) -> list[StoredCheckpoint]:
    """Delete the optimizer states of all but the newest `keep` of them; return the checkpoints as they are now."""
    result = list(stored)
    with_state = [index for index, checkpoint in enumerate(stored) if checkpoint.manifest.has_optimizer]
    # `[:-0]` would be empty.
    for index in with_state[:-keep] if keep else with_state:
        checkpoint = stored[index]
        manifest = checkpoint.manifest.without_optimizer(RESUME_FOLDER).signed(key)
        # The manifest first: killed in between, this leaves a valid checkpoint with files that it does not list.
        write_envelope(checkpoint.manifest_path, CHECKPOINT_SCHEMA, manifest)
        remove_folder(checkpoint.folder / RESUME_FOLDER)
        result[index] = checkpoint.with_manifest(manifest)
    return result
