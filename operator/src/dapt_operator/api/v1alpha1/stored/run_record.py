"""One record of the ledger: what the planner remembers of all runs that do the same work.

A record changes by its named methods alone. Each returns a new record whose values were validated, so no caller can
write half of a change, misspell a field or forget to reset what belongs to the previous run.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import ConfigDict, Field

from dapt_contract.base import Contract
from dapt_contract.pod.failure import Cause
from dapt_contract.run_identity import RunIdentity
from dapt_contract.stages import KINDS
from dapt_operator.api.v1alpha1.base import Digest, FreeForm, Integer, LeanBase, Message, ShortText, Time
from dapt_operator.api.v1alpha1.stored.run_bounds import CreatedRun, EndedRun
from dapt_operator.api.v1alpha1.stored.stored_facts import compact_facts, parse_facts


class StageKey(NamedTuple):
    """Names one piece of work: a stage, the attempt it belongs to and the candidate it is about.

    All runs with the same key do the same work and share a folder of the volume; the ledger has one record for them.
    """

    stage: str
    attempt: int = 1
    candidate: str | None = None

    @classmethod
    def of(cls, identity: RunIdentity) -> "StageKey":
        """Return the key of the work that a run does."""
        return cls(identity.stage, identity.attempt, identity.candidate)

    @property
    def shown_stage(self) -> str:
        """Return the stage as messages name it, in words: `tuning data`."""
        return self.stage.replace("_", " ")

    @property
    def shown_candidate(self) -> str | None:
        """Return the candidate as messages name it: a digest that only separates pieces of work is left out."""
        if self.candidate is None or self.stage == "destination":
            return None
        return self.candidate.rpartition("-")[0] if self.stage == "tuning_data" else self.candidate


class RunRecord(LeanBase):
    """What is known of one piece of work. Values describe its newest run unless they say otherwise."""

    model_config = ConfigDict(extra="ignore")

    stage: ShortText
    """Name of the stage."""
    kind: ShortText
    """Kind of the stage."""
    attempt: Annotated[Integer, Field(ge=1)] = 1
    """Attempt of pretraining it belongs to."""
    candidate: ShortText | None = None
    """The candidate it is about."""
    try_number: Annotated[Integer, Field(ge=1)] = 1
    """Number of the newest run. In YAML: try."""
    fence: Annotated[Integer, Field(ge=0)]
    """Fencing number of the newest run."""
    state: Literal["Open", "Succeeded", "Failed"] = "Open"
    """Open: created and not known to have ended."""
    retry: bool = False
    """Failed, and another run is due."""
    cause: ShortText | None = None
    """Why the newest run failed."""
    exit_code: Integer | None = None
    """Exit code that decided."""
    message: Message = ""
    """Message that the newest run reported."""
    config_digest: Digest = ""
    """Digest of the configuration of the newest run."""
    object_uid: ShortText | None = None
    """Uid of the Job or JobSet of the newest run, once a pod of it has run: no other object of its name counts."""
    child_uid: ShortText | None = None
    """Uid of the Job that the JobSet of the newest run had created by then: no other Job below that JobSet counts."""
    generation: Integer = 0
    """Generation of the spec when the newest run was created."""
    profile_digest: Digest | None = None
    """Digest of the profile when the newest run was created."""
    created: Time | None = None
    """When the newest run was created."""
    started: Time | None = None
    """When its first process started."""
    completed: Time | None = None
    """When it ended."""
    not_before: Time | None = None
    """The next run waits until then."""
    failures: Annotated[Mapping[str, Integer], Field(max_length=8)] = Field(default_factory=dict)
    """Retries used, by retry budget."""
    stuck: Integer = 0
    """Consecutive failures without a new optimizer step."""
    step: Integer = 0
    """Largest optimizer step that was reported."""
    restarts: Integer = 0
    """New runs after faults; a run after a suspension does not count."""
    halvings: Integer = 0
    """How often the micro-batch was halved."""
    expects: ShortText | None = None
    """Digest of what the newest run was to work on: the weights that an evaluation scores, the data that a tuning stage
    learns from, the sources that prepare reads, the place that publish writes to. Absent for other stages."""
    discarded: bool = False
    """No run of it counts: each was found after an interruption, created from another spec than there is now."""
    accelerator_seconds: float = 0.0
    """Accelerator-seconds of the runs that have ended."""
    held_seconds: float | None = None
    """Seconds from the first process' start to the end, of all runs that have ended."""
    accelerators: Integer | None = None
    """Accelerators that the newest run was created with: its cost is counted by them, whatever its Job says later."""
    ran_seconds: float | None = None
    """Seconds that the newest run was last seen to have run: counted when it is not seen again."""
    seen_step: Integer | None = None
    """Largest optimizer step that a reading of the newest run had then."""
    disruptions: Integer = 0
    """Consecutive restarts after disruptions without a new optimizer step."""
    asked_seconds: float | None = None
    """`ranSeconds` at a stop request, as versions before that field wrote it; only read."""
    held: Integer | None = None
    """`accelerators` at a stop request, as versions before that field wrote it; only read."""
    facts: FreeForm | None = None
    """Facts of the stage, as its termination message has them."""

    # --- what it says ---

    @property
    def stage_key(self) -> StageKey:
        """Key of the work that the record is about."""
        return StageKey(self.stage, self.attempt, self.candidate)

    @property
    def is_open(self) -> bool:
        """Whether the newest run is not known to have ended."""
        return self.state == "Open"

    @property
    def has_succeeded(self) -> bool:
        """Whether the work is done."""
        return self.state == "Succeeded"

    @property
    def has_failed_for_good(self) -> bool:
        """Whether the newest run failed and no other follows by itself."""
        return self.state == "Failed" and not self.retry

    @property
    def has_pods_to_count(self) -> bool:
        """Whether the newest run was given up and its pods are not known to have ended."""
        return not self.is_open and self.ran_seconds is not None

    @property
    def is_stop_requested(self) -> bool:
        """Whether the newest run was requested to stop and is not known to have ended."""
        return self.is_open and self.cause == Cause.STOPPED.value

    @property
    def noted_seconds(self) -> float:
        """Seconds that the newest run is known to have run when it is not seen again."""
        return max(self.ran_seconds or 0.0, self.asked_seconds or 0.0)

    @property
    def num_accelerators(self) -> int:
        """Accelerators of the newest run; 0 where no version of the operator wrote them down."""
        return self.accelerators if self.accelerators is not None else self.held or 0

    def is_about(self, run: RunIdentity) -> bool:
        """Whether this very run is the newest of the record's work."""
        return (
            self.try_number == run.try_number
            and self.stage == run.stage
            and self.attempt == run.attempt
            and self.candidate == run.candidate
        )

    def parsed_facts(self) -> Contract | None:
        """Return the facts as the model of the stage's kind.

        None when there are none, when they do not fit it, and for a kind that only another version of the operator
        knows.
        """
        if self.facts is None or self.kind not in KINDS:
            return None
        return parse_facts(self.kind, self.facts)

    # --- a run begins ---

    @classmethod
    def before_any_run(cls, key: StageKey, kind: str) -> "RunRecord":
        """Return the record of work for which no run was created yet; `opened` or `discarding` comes next."""
        return cls(stage=key.stage, kind=kind, attempt=key.attempt, candidate=key.candidate, fence=0)

    def opened(self, run: CreatedRun) -> Self:
        """Return the record once the next run was created: just now, or before the operator stopped and stored it."""
        return self._begun(run, expects=run.inputs_digest, discarded=False)

    def discarding(self, run: CreatedRun, end: EndedRun, *, is_alive: bool) -> Self:
        """Return the record once a run is found that was created from another spec: it ends, and uses no retry."""
        has_counted = self.fence > 0 and not self.discarded
        begun = self._begun(run, expects=self.expects, discarded=not has_counted)
        return begun.given_up(end, is_alive=is_alive)

    def _begun(self, run: CreatedRun, *, expects: str | None, discarded: bool) -> Self:
        # A failure that no retry follows ends with a change of the spec by a user, so the run after it starts with full
        # retry budgets.
        budgets: dict[str, object] = {} if self.retry else {"failures": {}, "stuck": 0, "disruptions": 0}
        is_after_fault = self.cause not in (None, Cause.STOPPED.value)
        # The end of the run before it was never seen, as after a restored backup: what is known of its cost stays.
        unseen_seconds = self.noted_seconds if self.is_open else 0.0
        return self.with_values(
            try_number=run.number,
            fence=run.fence,
            state="Open",
            retry=False,
            cause=None,
            exit_code=None,
            message="",
            config_digest=run.config_digest,
            object_uid=None,
            child_uid=None,
            generation=run.generation,
            profile_digest=run.profile_digest,
            created=run.created,
            started=None,
            completed=None,
            not_before=None,
            accelerator_seconds=self.accelerator_seconds + unseen_seconds * self.num_accelerators,
            accelerators=run.accelerators,
            ran_seconds=None,
            seen_step=None,
            asked_seconds=None,
            held=None,
            restarts=self.restarts + 1 if is_after_fault else self.restarts,
            expects=expects,
            discarded=discarded,
            **budgets,
        )

    # --- a run is observed ---

    def running_since(
        self, started: str | None, object_uid: str | None = None, child_uid: str | None = None
    ) -> Self:
        """Return the record of a run whose first process started at this time; None: at a time already recorded.

        Args:
            started: of the first process.
            object_uid: of the run's Job or JobSet; stored with the start, so that it costs no write of its own.
            child_uid: of the Job of that JobSet.
        """
        if started in (None, self.started):
            return self
        return self.with_values(
            started=started,
            object_uid=object_uid or self.object_uid,
            child_uid=child_uid or self.child_uid,
        )

    def with_facts(self, facts: Contract) -> Self:
        """Return the record with the facts that the newest run has reported so far."""
        return self.with_values(facts=compact_facts(facts))

    def noting(self, *, held_seconds: float, accelerators: int, step: int = 0) -> Self:
        """Return the record with how far its newest run was seen to be; what was noted before is never lowered.

        Args:
            held_seconds: since its first process' start.
            accelerators: that it holds, where the record does not know them.
            step: optimizer step of its last reading.
        """
        return self.with_values(
            accelerators=self.accelerators if self.accelerators is not None else accelerators,
            ran_seconds=max(self.noted_seconds, round(held_seconds, 1)),
            seen_step=max(self.seen_step or 0, step) or None,
        )

    def stop_requested(self, *, held_seconds: float, accelerators: int) -> Self:
        """Return the record once its newest run was requested to stop, with what the run has cost until then."""
        noted = self.noting(held_seconds=held_seconds, accelerators=accelerators)
        return noted.with_values(cause=Cause.STOPPED.value)

    # --- a run ends ---

    def succeeded(self, end: EndedRun) -> Self:
        """Return the record once its newest run has done the work."""
        return self._closed(end, state="Succeeded", retry=False, cause=None)

    def failed(self, end: EndedRun, cause: Cause, *, retry: bool, not_before: str | None = None) -> Self:
        """Return the record once its newest run has failed; `retry`: whether another run is due."""
        return self._closed(end, state="Failed", retry=retry, cause=cause.value, not_before=not_before)

    def lost(
        self,
        completed: str,
        cause: Cause,
        message: str,
        *,
        held_seconds: float = 0.0,
        retry: bool = True,
        not_before: str | None = None,
    ) -> Self:
        """Return the record once its newest run is gone without a report.

        Args:
            completed: when that was noticed.
            cause: what it counts as.
            message: one sentence.
            held_seconds: that it has run at least; more may be noted.
            retry: whether another run is due.
            not_before: when that may start; None: at once.
        """
        seconds = max(held_seconds, self.noted_seconds)
        end = EndedRun(
            completed,
            message=message,
            accelerator_seconds=seconds * self.num_accelerators,
            held_seconds=seconds or None,
        )
        return self.failed(end, cause, retry=retry, not_before=not_before)

    def given_up(self, end: EndedRun, *, is_alive: bool) -> Self:
        """Return the record once its newest run is given up without using a retry; its pods may be alive."""
        seconds = end.held_seconds or 0.0
        lost = self.lost(end.completed, Cause.STOPPED, end.message, held_seconds=seconds)
        # What is counted of it so far: its pods may take their grace period to end.
        is_counted_on = is_alive and end.started is not None
        return lost.with_values(
            started=end.started or self.started, ran_seconds=seconds if is_counted_on else None
        )

    def outlasted(self, held_seconds: float) -> Self:
        """Return the record once the pods of a run that was given up are gone.

        Args:
            held_seconds: from the start of the first process to the end of the last pod.
        """
        seconds = max(0.0, held_seconds - self.noted_seconds)
        return self.with_values(
            accelerator_seconds=self.accelerator_seconds + seconds * self.num_accelerators,
            held_seconds=(self.held_seconds or 0.0) + seconds,
            ran_seconds=None,
        )

    def counting_failure(
        self, budget: str, *, stuck: int, disruptions: int, step: int, is_halved: bool = False
    ) -> Self:
        """Return the record with one failure counted.

        Args:
            budget: the retry budget that the failure uses; empty for none.
            stuck: consecutive failures without a new optimizer step, this one included.
            disruptions: consecutive restarts after disruptions without one, this one included.
            step: the step that the failed run reached.
            is_halved: whether the next run has half the micro-batch.
        """
        failures = dict(self.failures)
        if budget:
            failures[budget] = failures.get(budget, 0) + 1
        return self.with_values(
            failures=failures,
            stuck=stuck,
            disruptions=disruptions,
            step=max(self.step, step),
            halvings=self.halvings + int(is_halved),
        )

    def _closed(self, end: EndedRun, **outcome: object) -> Self:
        held_seconds = self.held_seconds
        if end.held_seconds is not None:
            held_seconds = (held_seconds or 0.0) + end.held_seconds
        return self.with_values(
            started=end.started or self.started,
            completed=end.completed,
            exit_code=end.exit_code,
            message=end.message,
            accelerator_seconds=self.accelerator_seconds + end.accelerator_seconds,
            held_seconds=held_seconds,
            # what was noted while it ran is now part of the sums above
            ran_seconds=None,
            seen_step=None,
            asked_seconds=None,
            held=None,
            facts=self.facts if end.facts is None else compact_facts(end.facts),
            **outcome,
        )

    # --- a status is too long ---

    def without_facts(self) -> Self:
        """Return the record without its facts, once they are kept elsewhere in a shorter form."""
        return self.with_values(facts=None)

    def with_message(self, message: str) -> Self:
        """Return the record with a shorter message."""
        return self.with_values(message=message)
