"""The planner's memory, kept in the status: enough to decide again when every Job is gone.

One record for each piece of work (stage, attempt, candidate), of its newest run. Facts are the compact form of the
termination message, at most 3.75 KiB a record. Users read `status.stages`; only the planner reads this. The ledger
changes by its named methods alone, as its records do.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Annotated, Final, Self, TypeVar

from pydantic import ConfigDict, Field

from dapt_contract.base import MAX_ATTEMPTS, Contract
from dapt_operator.api.v1alpha1.base import Digest, Integer, LeanBase, Message, ShortText, Text, Time
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord, StageKey

MAX_RECORDS = 40
MAX_MEASURES = 100
MAX_CLOSED = 800
MAX_UNREADABLE = 8
MAX_SIGNING_KEYS = 8
_CACHED_TABLES: Final = 16

SomeFacts = TypeVar("SomeFacts", bound=Contract)


class PhaseRecord(LeanBase):
    """A stretch of data that was read on the way to the checkpoint that an attempt starts from."""

    model_config = ConfigDict(extra="ignore")

    steps: Annotated[Integer, Field(ge=0)]
    """Optimizer steps."""
    replay_fraction: Annotated[float, Field(ge=0, le=1)]
    """Share of general text in it."""


class AttemptRecord(LeanBase):
    """A rollback as it was decided. It is stored before the new attempt starts, so that no later edit of the gates
    changes what an attempt is, and no restart of the operator repeats it."""

    model_config = ConfigDict(extra="ignore")

    number: Annotated[Integer, Field(ge=2)]
    """Number of the new attempt: 2 after the first rollback."""
    learning_rate: Annotated[float, Field(ge=0)]
    """Its peak learning rate."""
    replay_fraction: Annotated[float, Field(ge=0, le=1)]
    """Its share of general text."""
    start: ShortText | None = None
    """Candidate that it starts from; absent: the base model."""
    phases: Annotated[tuple[PhaseRecord, ...], Field(strict=False, max_length=MAX_ATTEMPTS)] = ()
    """What was read on the way to that candidate, oldest first."""
    reason: Text = ""
    """Why the attempt before it was given up."""
    time: Time | None = None
    """When it was decided."""


class MeasureRecord(LeanBase):
    """What a finished evaluation has measured, in short form."""

    model_config = ConfigDict(extra="ignore")

    candidate: ShortText
    """Id of the candidate."""
    expects: ShortText | None = None
    """Digest of the weights that the evaluation was to score."""
    text: Message
    """Digest, losses and scores as JSON, without what the base model's measure has too."""


class ClosedRuns(LeanBase):
    """What is remembered of dropped records, since the ledger has a bound."""

    model_config = ConfigDict(extra="ignore")

    lineages: Annotated[tuple[ShortText, ...], Field(strict=False, max_length=MAX_CLOSED)] = ()
    """Stage, attempt, candidate and number of runs of each."""
    accelerator_seconds: Annotated[Mapping[str, float], Field(max_length=16)] = Field(default_factory=dict)
    """What they cost, by kind of stage."""
    failures: Annotated[Mapping[str, Integer], Field(max_length=16)] = Field(default_factory=dict)
    """Retries that they used, by retry budget."""
    restarts: Integer = 0
    """Their new runs after faults."""

    def with_record(self, record: RunRecord) -> Self:
        """Return what is remembered once this record is dropped too."""
        work = f"{record.stage} {record.attempt} {record.candidate or ''} "
        others = tuple(line for line in self.lineages if not line.startswith(work))
        seconds, failures = dict(self.accelerator_seconds), dict(self.failures)
        seconds[record.kind] = seconds.get(record.kind, 0.0) + record.accelerator_seconds
        for budget, count in record.failures.items():
            failures[budget] = failures.get(budget, 0) + count
        return self.with_values(
            lineages=(*others, f"{work}{record.try_number}")[-MAX_CLOSED:],
            accelerator_seconds=seconds,
            failures=failures,
            restarts=self.restarts + record.restarts,
        )


class Ledger(LeanBase):
    """All records of one adaptation."""

    model_config = ConfigDict(extra="ignore")

    fence: Integer = 0
    """Newest fencing number that was given out."""
    progress_time: Time | None = None
    """When status.progress was last written."""
    shared: Digest | None = None
    """Digest of the shared objects (work volume, Service) as they were last applied."""
    made: Annotated[tuple[ShortText, ...], Field(strict=False, max_length=8)] = ()
    """Shared objects that were created, as KIND/NAME: what cleanup may remove."""
    signing_keys: Annotated[tuple[Digest, ...], Field(strict=False, max_length=MAX_SIGNING_KEYS)] = ()
    """SHA-256 of the keys that the operator has made for the signing Secret, newest last; each is stored before its
    Secret is created. Empty before the first one, and where the key is older than this field."""
    cleaned: Time | None = None
    """When cleanup was done; it is done once."""
    unreadable: Annotated[tuple[Text, ...], Field(strict=False, max_length=MAX_UNREADABLE)] = ()
    """Parts of an earlier status that could not be read and were left out, newest last."""
    has_tables_only: bool = False
    """Whether the adaptation has finished and its ledger no longer holds what decisions were made from."""
    replay_fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of general text of the first attempt, chosen by the measured shift and stored before that attempt starts.
    Absent before that, where the spec gives the share, and where an earlier version started the attempt."""
    attempts: Annotated[tuple[AttemptRecord, ...], Field(strict=False, max_length=MAX_ATTEMPTS)] = ()
    """Attempts after the first, in their order."""
    measures: Annotated[tuple[MeasureRecord, ...], Field(strict=False, max_length=MAX_MEASURES)] = ()
    """Finished evaluations in short form; when there are too many, what has forgotten most goes first."""
    closed: ClosedRuns | None = None
    """Dropped records."""
    runs: Annotated[tuple[RunRecord, ...], Field(strict=False, max_length=MAX_RECORDS)] = ()
    """One record for each piece of work, in the order of their first run."""

    # --- what it says ---

    @property
    def attempt(self) -> int:
        """Number of the newest attempt."""
        return 1 + len(self.attempts)

    @property
    def restarts(self) -> int:
        """New runs after faults, of all work that was ever begun."""
        dropped = self.closed.restarts if self.closed is not None else 0
        return dropped + sum(record.restarts for record in self.runs)

    def find(self, stage: str, attempt: int = 1, candidate: str | None = None) -> RunRecord | None:
        """Return the record of a piece of work; None before its first run."""
        for record in self.runs:
            if record.stage == stage and record.attempt == attempt and record.candidate == candidate:
                return record
        return None

    def facts(
        self, facts_type: type[SomeFacts], stage: str, attempt: int = 1, candidate: str | None = None
    ) -> SomeFacts | None:
        """Return what a stage has reported; None before that, or when it does not fit the type."""
        record = self.find(stage, attempt, candidate)
        facts = record.parsed_facts() if record is not None else None
        return facts if isinstance(facts, facts_type) else None

    def open_work(self, kind: str) -> frozenset[StageKey]:
        """Return the work of a kind of stage whose newest run is not known to have ended."""
        return frozenset(record.stage_key for record in self.runs if record.kind == kind and record.is_open)

    def started_kinds(self) -> frozenset[str]:
        """Return the kinds of stages that have had a run which counts."""
        recorded = (record.kind for record in self.runs if not record.discarded)
        return frozenset((*recorded, *(work.stage for work in self.dropped_work())))

    def has_failed_for_good(self, kind: str) -> bool:
        """Return whether every run of this kind of stage which counts has failed and no other follows by itself."""
        records = [record for record in self.runs if record.kind == kind and not record.discarded]
        is_dropped = any(work.stage == kind for work in self.dropped_work())
        return bool(records) and not is_dropped and all(record.has_failed_for_good for record in records)

    def dropped_work(self) -> Mapping[StageKey, int]:
        """Return all work whose record was dropped, with its number of runs."""
        return _parsed_work(self.closed.lineages) if self.closed is not None else {}

    # --- how it changes ---

    def with_record(self, record: RunRecord) -> Self:
        """Return the ledger with this record added, or in the place of the one about the same work."""
        known = self.find(*record.stage_key)
        if known is None:
            runs: tuple[RunRecord, ...] = (*self.runs, record)
        else:
            runs = tuple(record if old is known else old for old in self.runs)
        return self.with_records(runs, record.fence)

    def with_records(self, records: Iterable[RunRecord], fence: int) -> Self:
        """Return the ledger with these records in the place of all; `fence`: newest number seen in the cluster."""
        runs, newest = tuple(records), max(self.fence, fence)
        if runs == self.runs and newest == self.fence:
            return self  # as in most reconciles
        return self.with_values(runs=runs, fence=newest)

    def without_record(self, record: RunRecord) -> Self:
        """Return the ledger with a record dropped; what it cost and its number of runs are remembered."""
        runs = tuple(other for other in self.runs if other is not record)
        return self.with_values(runs=runs, closed=(self.closed or ClosedRuns()).with_record(record))

    def with_measures(self, measures: Iterable[MeasureRecord]) -> Self:
        """Return the ledger with these measures of dropped evaluations in the place of all."""
        return self.with_values(measures=tuple(measures))

    def with_replay_fraction(self, share: float) -> Self:
        """Return the ledger with the first attempt's share of general text, as the measured shift asks for it."""
        return self.with_values(replay_fraction=share)

    def with_attempt(self, attempt: AttemptRecord) -> Self:
        """Return the ledger with the attempt that a rollback has decided on."""
        return self.with_values(attempts=(*self.attempts, attempt))

    def with_shared_objects(self, names: Iterable[str], digest: str) -> Self:
        """Return the ledger once the shared objects were applied; what was ever created stays named for cleanup."""
        return self.with_values(shared=digest, made=tuple(dict.fromkeys((*self.made, *names))))

    def with_signing_key(self, digest: str) -> Self:
        """Return the ledger with the digest of a key that is about to be made; only the newest ones are kept."""
        return self.with_values(signing_keys=(*self.signing_keys, digest)[-MAX_SIGNING_KEYS:])

    def with_progress_time(self, time: str | None) -> Self:
        """Return the ledger once status.progress was written at this time."""
        return self if time == self.progress_time else self.with_values(progress_time=time)

    def with_unreadable(self, parts: Iterable[str]) -> Self:
        """Return the ledger that remembers which parts of an earlier status were left out."""
        return self.with_values(unreadable=tuple(dict.fromkeys((*self.unreadable, *parts)))[-MAX_UNREADABLE:])

    def reduced_to_tables(self) -> Self:
        """Return the ledger marked as one that decides nothing any more."""
        return self.with_values(has_tables_only=True)

    def cleaned_at(self, time: str) -> Self:
        """Return the ledger once cleanup was done."""
        return self.with_values(cleaned=time)

    def with_messages(self, shorten: Callable[[str], str]) -> Self:
        """Return the ledger with every record's message shortened."""
        runs = tuple(record.with_message(shorten(record.message)) for record in self.runs)
        return self.with_values(runs=runs)


@lru_cache(maxsize=_CACHED_TABLES)
def _parsed_work(lines: tuple[str, ...]) -> Mapping[StageKey, int]:
    work: dict[StageKey, int] = {}
    for line in lines:
        stage, _, rest = line.partition(" ")
        parts = rest.split(" ")
        # An edit by hand may have left anything here: such a line tells of no work.
        if len(parts) == 3 and parts[0].isdecimal() and parts[2].isdecimal():
            work[StageKey(stage, int(parts[0]), parts[1] or None)] = int(parts[2])
    return work
