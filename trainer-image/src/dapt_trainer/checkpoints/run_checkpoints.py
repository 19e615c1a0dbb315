"""Manages the checkpoints of one attempt as one of its runs sees them: found at its start, added by its saves."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import TypeAdapter

from dapt_contract.checkpoint import CheckpointManifest, FileEntry
from dapt_contract.envelope import ContractError
from dapt_contract.layout import lineage_folder
from dapt_contract.measure import SidePerplexity
from dapt_contract.stages.pretrain import CheckpointFacts
from dapt_contract.untrusted.folders import remove_folder
from dapt_trainer.checkpoints.fence import read_claim, require_not_superseded, write_claim
from dapt_trainer.checkpoints.inventory import (
    RESUME_FOLDER,
    Inventory,
    StoredCheckpoint,
    clear_leftovers,
    drop_old_optimizer_states,
    newest_to_resume,
    problem_of_content,
    read_inventory,
)
from dapt_trainer.checkpoints.listed_files import ChangedFileError, read_listed
from dapt_trainer.checkpoints.resume_files import ResumeFiles, log_entries
from dapt_trainer.checkpoints.same_training import (
    TrainingConfig,
    distribution_to_resume,
    problem_of_sharing,
    training_digest,
    zero_stages_by_digest,
)
from dapt_trainer.checkpoints.save import (
    SAVE_RESULT,
    PendingSave,
    SaveResult,
    begin,
    complete,
    failing_cleanly,
    write_all,
    write_manifest,
)
from dapt_trainer.context import StageContext
from dapt_trainer.digests import DIGEST_DIGITS, digest_of_weights, is_loaded
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InfrastructureError, StageEnded
from dapt_trainer.staged_files import StagedFiles

_INVENTORY: TypeAdapter[Inventory] = TypeAdapter(Inventory)
_STORED_LIST: TypeAdapter[list[StoredCheckpoint]] = TypeAdapter(list[StoredCheckpoint])
_PROBLEM: TypeAdapter[str | None] = TypeAdapter(str | None)
LogEntry = dict[str, object]
"""One entry of the log that transformers' Trainer keeps in its state."""


class RunCheckpoints:
    """Opens, saves and removes checkpoints. All ranks call all methods; rank 0 alone reads and writes manifests."""

    def __init__(
        self,
        config: TrainingConfig,
        context: StageContext,
        ranks: Ranks,
        *,
        keep_optimizer_states: int,
    ) -> None:
        self._keep_optimizer_states = keep_optimizer_states
        self._context = context
        self._ranks = ranks
        self._identity = context.stage.run
        self._folder = context.work / lineage_folder(self._identity)
        self._config = config
        self.distribution = config.distribution
        """How the ranks share the model: as configured, or as the resumed checkpoint requires."""
        self._checkpoints: list[StoredCheckpoint] = []
        self.resumed: StoredCheckpoint | None = None
        self.skipped: tuple[str, ...] = ()
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._background = ranks
        """The ranks as the thread talks to them."""
        self._pending: PendingSave | None = None

    def open(self) -> None:
        """Claim the lineage and find the newest complete checkpoint.

        Raises:
            InfrastructureError: a newer run has claimed the lineage, or the volume fails.
        """
        self._background = self._ranks.in_background()
        # Rank 0 decides for all: they must resume from the same checkpoint.
        inventory = self._ranks.from_first(self._read, _INVENTORY)
        # Each rank hashes a part of the files, which may have hundreds of gigabytes.
        with self._context.keep_alive(sum(stored.size_bytes for stored in inventory.checkpoints)):
            self.resumed, inventory = newest_to_resume(
                self._context.work, inventory, self._problem_of_resuming
            )
        if self.resumed is not None:
            kept = distribution_to_resume(self._config, self.resumed.manifest, self._ranks.world_size)
            self.distribution = kept or self.distribution
        self._checkpoints = self._ranks.from_first(lambda: self._adopt(inventory), _STORED_LIST)
        self.skipped = inventory.skipped

    def _read(self) -> Inventory:
        require_not_superseded(self._folder, self._identity, self._context.signing_key)
        with self._reporting_failures():
            return read_inventory(
                self._context.work,
                self._folder,
                key=self._context.signing_key,
                training_digests=zero_stages_by_digest(self._config),
                claim=read_claim(self._folder, self._context.signing_key),
            )

    def _problem_of_resuming(self, stored: StoredCheckpoint) -> str | None:
        if problem := problem_of_sharing(self._config, stored.manifest, self._ranks.world_size):
            return problem
        own = problem_of_content(stored, self._ranks.rank, self._ranks.world_size)
        return next((problem for problem in self._ranks.gather(own, _PROBLEM) if problem), None)

    def _adopt(self, inventory: Inventory) -> list[StoredCheckpoint]:
        # Of two checkpoints of one step the one with the newer fence is last, and is kept.
        by_step = {stored.manifest.step: stored for stored in inventory.checkpoints}
        adopted = tuple(stored.manifest.folder for stored in by_step.values())
        with self._reporting_failures():
            # The claim lists what this run has read; a save that a predecessor finishes later is not in it.
            write_claim(self._folder, self._identity, adopted, self._context.signing_key)
            clear_leftovers(self._folder, inventory, self._context.try_folder)
        return list(by_step.values())

    @contextlib.contextmanager
    def _reporting_failures(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ContractError) as error:
            raise InfrastructureError(f"the checkpoints of {self._identity.lineage}: {error}") from error

    def files_to_resume(self) -> ResumeFiles | None:
        """Return what this rank resumes from, in a private folder; None where training starts from the beginning.

        Raises:
            InfrastructureError: a file has changed since `open`.
        """
        if self.resumed is None:
            return None
        return ResumeFiles(self.resumed.folder, self.resumed.manifest.files, self._view)

    @property
    def _view(self) -> Path:
        return self._context.scratch / f"resume-{self._ranks.rank}"

    @property
    def resumed_bytes(self) -> int:
        """Return the bytes of the checkpoint to resume from; 0 where training starts from the beginning."""
        return self.resumed.size_bytes if self.resumed is not None else 0

    @property
    def resumed_is_measured(self) -> bool:
        """Return whether the resumed checkpoint is already a candidate."""
        return self.resumed is not None and self.resumed.manifest.domain is not None

    def log_history(self) -> list[LogEntry]:
        """Return the trainer's log up to the resumed step; empty when training starts from the beginning."""
        if self.resumed is None:
            return []
        # From the checkpoint and not from the curve's file, which may have steps that are trained again.
        entries = {entry.path: entry for entry in self.resumed.manifest.files}
        try:
            content = read_listed(self.resumed.folder, entries[f"{RESUME_FOLDER}/trainer_state.json"])
        except ChangedFileError as error:
            raise InfrastructureError(
                f"{self.resumed.folder}: {error}; the checkpoint is not used, and the next run continues from an older"
                " one"
            ) from error
        return log_entries(content, self.resumed.folder)

    def begin_save(
        self, step: int, tokens: int, stage: Callable[[StagedFiles], None], *, candidate: str
    ) -> None:
        """Copy the state of all ranks to host memory; a thread of each rank writes it while training continues.

        It waits for the save before, so that a rank holds one copy at most.

        Args:
            step: optimizer steps so far.
            tokens: training tokens so far over all ranks.
            stage: stages this rank's files.
            candidate: id of the checkpoint as candidate.

        Raises:
            InfrastructureError: a file could not be written, or a newer run took over.
        """
        self.finish_save()
        folder = self._context.try_folder / f"checkpoint-{step}"
        if self._ranks.is_first:
            require_not_superseded(self._folder, self._identity, self._context.signing_key)
        last_complete = self._last_complete
        staged = StagedFiles(self._context.scratch / f"staged-{self._ranks.rank}")
        with failing_cleanly(folder, last_complete):
            if self._ranks.is_first:
                begin(folder)
            stage(staged)
        self._ranks.barrier()  # no rank may write before the folder exists

        def finish() -> StoredCheckpoint:
            files = write_all(staged, folder, self._background, last_complete=last_complete)
            return self._completed(
                folder, files, last_complete, step=step, tokens=tokens, candidate=candidate
            )

        size_bytes = staged.size_bytes * self._ranks.world_size
        self._pending = PendingSave(self._writer.submit(finish), size_bytes)

    @property
    def _last_complete(self) -> str:
        if not self._checkpoints:
            return "there is no earlier checkpoint"
        return f"the last complete checkpoint, step {self._checkpoints[-1].manifest.step}, is kept"

    def _completed(
        self,
        folder: Path,
        files: tuple[FileEntry, ...],
        last_complete: str,
        *,
        step: int,
        tokens: int,
        candidate: str,
    ) -> StoredCheckpoint:
        """Complete a checkpoint whose files are on disk, on rank 0, and return it on all; called by the thread."""

        def complete_first() -> SaveResult:
            # Rank 0 must answer in any case: its peers wait for it.
            try:
                with failing_cleanly(folder, last_complete):
                    complete(folder)
                    return SaveResult(self._write_manifest(folder, files, step, tokens, candidate))
            except StageEnded as error:
                return SaveResult(problem=str(error))

        result = self._background.from_first(complete_first, SAVE_RESULT)
        if result.stored is None:
            raise InfrastructureError(result.problem)
        return result.stored

    def settle_if_complete(self) -> bool:
        """Return whether the pending save has become a checkpoint of this rank's list; never waits.

        The checkpoints of other ranks may follow a moment later: they complete them by themselves.

        Raises:
            InfrastructureError: the save failed.
        """
        if self._pending is None or not self._pending.completion.done():
            return False
        self.finish_save()
        return True

    def finish_save(self) -> None:
        """Wait until the pending save is a checkpoint; return at once when there is none.

        Raises:
            InfrastructureError: it could not be completed, or a newer run took over.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        with self._context.keep_alive(pending.size_bytes):
            self._checkpoints.append(pending.completion.result())
        if pending.readings is not None:
            self._add_readings_to_newest(*pending.readings)
        if self._ranks.is_first:
            # After the save: until it is complete, the older optimizer states are what a resume needs.
            self._checkpoints = drop_old_optimizer_states(
                self._checkpoints, self._keep_optimizer_states, key=self._context.signing_key
            )

    @contextlib.contextmanager
    def completing_at_errors(self) -> Iterator[None]:
        """Wait for this rank's thread where the block raises: the error ends the process, and would cut a save off."""
        try:
            yield
        except BaseException:
            if self._pending is not None:
                wait([self._pending.completion])
            raise

    def remove(self, *, keep_newest: bool = False) -> None:
        """Remove the checkpoints, or all but the newest."""
        kept = self._checkpoints[-1:] if keep_newest else []
        if self._ranks.is_first:
            for stored in self._checkpoints[: len(self._checkpoints) - len(kept)]:
                # The manifest first: without it the checkpoint does not exist, so a kill in between leaves none
                # with missing files.
                stored.manifest_path.unlink(missing_ok=True)
                remove_folder(stored.folder)
        self._checkpoints = kept
        if not kept:
            self.resumed, self.distribution = None, self._config.distribution
        self._ranks.barrier()

    def _write_manifest(
        self, folder: Path, files: tuple[FileEntry, ...], step: int, tokens: int, candidate: str
    ) -> StoredCheckpoint:
        manifest = CheckpointManifest(
            folder=folder.relative_to(self._context.work).as_posix(),
            candidate=candidate,
            step=step,
            tokens=tokens,
            world_size=self._ranks.world_size,
            fence=self._identity.fence,
            lineage=self._folder.name,
            config_digest=training_digest(self._config.with_distribution(self.distribution)),
            weights_digest=digest_of_weights(
                {entry.path: entry.sha256 for entry in files if is_loaded(entry.path)}
            ),
            files=files,
        )
        # Again, right before the manifest: a newer run may have claimed the lineage during the save.
        require_not_superseded(self._folder, self._identity, self._context.signing_key)
        return self._store(manifest, folder)

    def _store(self, manifest: CheckpointManifest, folder: Path) -> StoredCheckpoint:
        path = folder.with_suffix(".json")
        try:
            signed = write_manifest(path, manifest, key=self._context.signing_key, run_key=self._identity.key)
        except OSError as error:
            raise InfrastructureError(
                f"the manifest of {folder.name} could not be written: {error}; earlier checkpoints are kept; enlarge "
                "the volume, and the next run continues from them"
            ) from error
        return StoredCheckpoint(signed, path, folder, int(folder.parent.name[4:]))

    def add_readings(self, domain: SidePerplexity, general: SidePerplexity) -> None:
        """Put both perplexities into the manifest of the newest checkpoint, which makes it a candidate.

        Where its save is still pending, they are added once it is complete.
        """
        if self._pending is not None:
            self._pending = replace(self._pending, readings=(domain, general))
        else:
            self._add_readings_to_newest(domain, general)

    def _add_readings_to_newest(self, domain: SidePerplexity, general: SidePerplexity) -> None:
        newest = self._checkpoints[-1]
        manifest = newest.manifest.with_readings(domain, general)
        if self._ranks.is_first:
            newest = self._store(manifest, newest.folder)
        self._checkpoints[-1] = newest.with_manifest(manifest)

    def _measured(self) -> list[tuple[StoredCheckpoint, SidePerplexity, SidePerplexity]]:
        return [
            (stored, stored.manifest.domain, stored.manifest.general)
            for stored in self._checkpoints
            if stored.manifest.domain is not None and stored.manifest.general is not None
        ]

    def general_perplexities(self) -> list[float]:
        """Return the general perplexities of the measured checkpoints, oldest first, for the stop rule.

        With that of a pending save: all ranks must decide the same, whichever of them has seen it complete.
        """
        perplexities = [general.both.perplexity for _, _, general in self._measured()]
        if self._pending is not None and self._pending.readings is not None:
            perplexities.append(self._pending.readings[1].both.perplexity)
        return perplexities

    def checkpoint_facts(self) -> tuple[CheckpointFacts, ...]:
        """Return the facts of each measured checkpoint, in the order of steps."""
        return tuple(
            CheckpointFacts(
                step=stored.manifest.step,
                try_number=stored.try_number,
                domain_a_nats=domain.a.loss_nats,
                domain_b_nats=domain.b.loss_nats,
                general_a_nats=general.a.loss_nats,
                general_b_nats=general.b.loss_nats,
                weights_digest=stored.manifest.weights_digest[:DIGEST_DIGITS],
                domain_b_error=domain.b.row_error,
                general_b_error=general.b.row_error,
            )
            for stored, domain, general in self._measured()
        )

    def peak_memory_bytes(self) -> int:
        """Return the largest peak of any rank: accelerator memory, or resident memory on the CPU."""
        if self._ranks.device.type == "cuda":
            own = torch.cuda.max_memory_allocated()
        else:
            # Linux counts this in KiB.
            own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return int(self._ranks.maximum(float(own)))
