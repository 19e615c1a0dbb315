"""The status: what people read, with conditions as kstatus wants them, and the ledger."""

from __future__ import annotations

from dapt_contract.envelope import digest_of
from dapt_contract.metric import Score
from dapt_operator.api import conditions as words
from dapt_operator.api.conditions import ConditionStatus, set_condition, timestamp
from dapt_operator.api.ledger import Ledger, RunRecord
from dapt_operator.api.run import RunPhase, RunState, StageRun
from dapt_operator.api.status import (
    MAX_CANDIDATES,
    MAX_STAGES,
    AttemptStatus,
    CandidateStatus,
    Condition,
    Digests,
    DomainAdaptationStatus,
    Frozen,
    OutputStatus,
    PlanSummary,
    Resolved,
    ResolvedModel,
    Selected,
    StageStatus,
    TaskScore,
    Usage,
)
from dapt_operator.plan import selection
from dapt_operator.plan.facts import Facts, published
from dapt_operator.plan.gain import gain
from dapt_operator.plan.gates import perplexity
from dapt_operator.plan.history import lineage_of
from dapt_operator.plan.observed import Observed
from dapt_operator.plan.progress import progress
from dapt_operator.plan.transitions import Do, Fact, State
from dapt_operator.plan.walk import Reached, Situation

PHASES: dict[State, str] = {
    State.PREPARE: words.PHASE_PREPARING,
    State.BASELINE: words.PHASE_MEASURING_BASE,
    State.PRETRAIN: words.PHASE_PRETRAINING,
    State.SELECT: words.PHASE_SELECTING,
    State.EVALUATE: words.PHASE_EVALUATING,
    State.FINETUNE: words.PHASE_FINETUNING,
    State.VERIFY: words.PHASE_VERIFYING,
    State.PUBLISH: words.PHASE_PUBLISHING,
    State.PUBLISHED: words.PHASE_PUBLISHED,
}

Saying = tuple[ConditionStatus, str, str]
"""Status, reason and message of a condition."""


def refused(observed: Observed, reason: str, message: str) -> DomainAdaptationStatus:
    """For a spec or profile that cannot be worked with; what was known is kept."""
    old = observed.status
    sayings: dict[str, Saying] = {
        words.ACCEPTED: ("False", reason, message),
        words.READY: ("False", words.PROGRESSING, "the model is not published"),
        words.RECONCILING: ("False", reason, "waits for the spec or the profile to change"),
        words.STALLED: ("True", reason, message),
        words.QUOTA_RESERVED: ("Unknown", words.NO_QUEUE, "no queue is asked for"),
        words.GATES_PASSED: ("Unknown", words.GATES_NOT_JUDGED, "no candidate was judged"),
        words.SUSPENDED: ("False", words.NOT_SUSPENDED, "spec.suspend is false"),
        words.FINISHED: ("False", words.NOT_FINISHED, "nothing is finished"),
    }
    return old.model_copy(
        update={
            "observed_generation": observed.generation,
            "phase": words.PHASE_STALLED,
            "conditions": _conditions(observed, sayings),
        }
    )


def working(
    observed: Observed,
    situation: Situation,
    ledger: Ledger,
    reached: Reached,
    run: StageRun | None,
    used_seconds: float,
) -> DomainAdaptationStatus:
    """For everything else.

    Args:
        observed: with the stored status.
        situation: what was decided on.
        ledger: as it is after this visit.
        reached: where the walk ended.
        run: the run that this visit starts.
        used_seconds: accelerator-seconds so far.
    """
    old = observed.status
    spec = situation.spec
    shown = selection.candidates(spec, reached.facts, situation.attempt)
    chosen = reached.choice if isinstance(reached.choice, selection.Selected) else None
    told, told_at = progress(observed, ledger)
    latest = chosen.candidate if chosen else (shown[-1] if shown else None)
    output = published(ledger, chosen.candidate.id, situation.attempt) if chosen else None
    base = reached.facts.base
    return DomainAdaptationStatus(
        observed_generation=observed.generation,
        phase=_phase(reached),
        conditions=_conditions(observed, _sayings(observed, situation, reached, run)),
        forgetting=_number(perplexity.increase(base.general, latest.measure.general, "both"))
        if latest and base
        else None,
        gain=_number(gain(spec.selection.weights, base, latest.measure, "both")) if latest and base else None,
        attempt=situation.attempt if any(r.kind == "pretrain" for r in ledger.runs) else None,
        progress=told,
        resolved=_resolved(observed, situation, reached),
        frozen=_frozen(ledger),
        digests=Digests(
            profile=digest_of(situation.profile.to_dict()),
            config=run.stage_file.config_digest if run else (old.digests.config if old.digests else None),
        ),
        plan=_plan_summary(reached),
        stages=tuple(_stage(record, observed) for record in ledger.runs)[-MAX_STAGES:],
        candidates=tuple(_candidate(situation, reached, c) for c in shown)[-MAX_CANDIDATES:],
        selected=Selected(
            id=chosen.candidate.id, reason=chosen.reason, digest=chosen.candidate.row.weights_digest
        )
        if chosen
        else None,
        attempts=_attempts(situation, reached, ledger),
        usage=_usage(observed, ledger, used_seconds, ticked=told_at != ledger.progress_time),
        output=OutputStatus(
            destination=output.destination, digest=output.digest, deployable=spec.finetuning is not None
        )
        if output
        else None,
        ledger=ledger.model_copy(update={"progress_time": told_at}),
    )


def _phase(reached: Reached) -> str:
    if reached.do is Do.STALL:
        return words.PHASE_STALLED
    if reached.do is Do.END:
        return words.PHASE_BUDGET_EXHAUSTED
    if reached.do in (Do.HOLD, Do.STOP):
        return words.PHASE_SUSPENDED
    return PHASES[reached.state]


def _sayings(
    observed: Observed, situation: Situation, reached: Reached, run: StageRun | None
) -> dict[str, Saying]:
    spec, look = situation.spec, reached.look
    published = reached.do is Do.FINISH
    where = f"model published to {spec.output.destination}"
    sayings: dict[str, Saying] = {
        words.ACCEPTED: ("True", words.PLANNED, "the spec and its profile fit together"),
        words.READY: ("False", words.PROGRESSING, "the model is not published"),
        words.RECONCILING: _reconciling(observed, reached, run),
        words.STALLED: ("False", words.PROGRESSING, "nothing waits for a person"),
        words.QUOTA_RESERVED: ("Unknown", words.NO_QUEUE, "no queue is asked for"),
        words.GATES_PASSED: _gates(reached),
        words.SUSPENDED: ("True", words.SUSPENDED_BY_USER, "spec.suspend is true")
        if spec.suspend
        else ("False", words.NOT_SUSPENDED, "spec.suspend is false"),
        words.FINISHED: ("False", words.NOT_FINISHED, "there is still something to do"),
    }
    if reached.do is Do.STALL:
        sayings[words.ACCEPTED] = (
            ("False", look.reason, look.message) if look.fact is Fact.REFUSED else sayings[words.ACCEPTED]
        )
        sayings[words.STALLED] = ("True", look.reason, look.message)
    if published:
        sayings[words.READY] = ("True", words.PUBLISHED, where)
        sayings[words.FINISHED] = ("True", words.PUBLISHED, where)
    if reached.do is Do.END:
        message = _overspent(situation, reached)
        sayings[words.FINISHED] = ("True", words.BUDGET_EXHAUSTED, message)
        sayings[words.STALLED] = ("True", words.BUDGET_EXHAUSTED, message)
    return sayings


def _reconciling(observed: Observed, reached: Reached, run: StageRun | None) -> Saying:
    look = reached.look
    if run is not None:
        title = _title(run.identity.stage, run.identity.candidate)
        if run.identity.try_number == 1:
            return "True", words.STAGE_STARTING, f"{title} is starting"
        cause = f" after {look.record.cause}" if look.record and look.record.cause else ""
        return "True", words.RETRYING, f"{title} is starting again (try {run.identity.try_number}){cause}"
    if reached.do is Do.WAIT and look.record is not None:
        title = _title(look.record.stage, look.record.candidate)
        if look.fact is Fact.BACKOFF:
            return (
                "True",
                words.RETRYING,
                f"{title} failed ({look.record.cause}) and is tried again at {look.record.not_before}",
            )
        state = _state_of(observed, look.record)
        if state is not None and state.phase is RunPhase.PENDING:
            waiting = state.waiting_reason or state.message
            if waiting:
                return "True", words.WAITING_FOR_NODES, f"{title} waits: {waiting}"[:4096]
            return "True", words.STAGE_STARTING, f"{title} is starting"
        return "True", words.STAGE_RUNNING, f"{title} is running"
    if reached.do is Do.STOP:
        return "True", words.STOPPING, "running processes were asked to save and stop"
    if reached.do is Do.HOLD:
        return "False", words.SUSPENDED_BY_USER, "spec.suspend is true"
    if reached.do is Do.FINISH:
        return "False", words.PUBLISHED, "there is nothing left to do"
    return "False", look.reason or words.BUDGET_EXHAUSTED, "waits for a person"


def _gates(reached: Reached) -> Saying:
    if isinstance(reached.choice, selection.Selected):
        failed = [v.message for v in (*reached.choice.candidate.verdicts, *reached.verdicts) if not v.passed]
        if reached.state is State.VERIFY and reached.do is Do.STALL:
            return "False", words.VERIFY_FAILED, reached.look.message
        if failed:
            return "False", words.PASSED_WITH_WARNINGS, "; ".join(failed)
        told = "; ".join(verdict.message for verdict in reached.choice.candidate.verdicts)
        return "True", words.ALL_GATES_PASSED, told
    if isinstance(reached.choice, selection.Breached):
        return "False", reached.choice.reason, reached.choice.message
    return "Unknown", words.GATES_NOT_JUDGED, "no candidate was judged"


def _overspent(situation: Situation, reached: Reached) -> str:
    spec, profile = situation.spec, situation.profile
    hours = [h for h in (spec.limits.gpu_hours, profile.limits.gpu_hours) if h is not None]
    kept = ""
    if isinstance(reached.choice, selection.Selected | selection.NeedsMeasure):
        kept = f"; the best candidate {reached.choice.candidate.id} is kept"
    stage = reached.look.stage.stage if reached.look.stage else "the next stage"
    return f"limits.gpuHours of {min(hours):g} is used up before {stage}{kept}"


def _conditions(observed: Observed, sayings: dict[str, Saying]) -> tuple[Condition, ...]:
    found = observed.status.conditions
    for type_ in words.CONDITION_TYPES:
        status, reason, message = sayings[type_]
        found = set_condition(
            found,
            type_,
            status,
            reason,
            message,
            now=observed.now,
            observed_generation=observed.generation,
        )
    return found


def _title(stage: str, candidate: str | None) -> str:
    return f"{stage} of {candidate}" if candidate else stage


def _state_of(observed: Observed, record: RunRecord) -> RunState | None:
    return next(
        (
            run
            for run in observed.runs
            if lineage_of(run.identity) == lineage_of(record) and run.identity.try_number == record.try_number
        ),
        None,
    )


def _stage(record: RunRecord, observed: Observed) -> StageStatus:
    from dapt_contract.run import RunIdentity

    identity = RunIdentity(
        namespace=observed.owner.namespace, name=observed.owner.name, uid=observed.owner.uid, stage=record.stage,
        attempt=record.attempt, candidate=record.candidate, try_number=record.try_number, fence=record.fence,
    )  # fmt: skip
    state = {"Open": "Running" if record.started else "Pending", "Succeeded": "Succeeded", "Failed": "Failed"}
    shown = state[record.state]
    suspended = observed.wish.spec is not None and observed.wish.spec.suspend
    if shown == "Failed" and record.retry and suspended:
        shown = "Suspended"
    return StageStatus.model_validate(
        {
            "name": record.stage,
            "kind": record.kind,
            "attempt": record.attempt,
            "try_number": record.try_number,
            "state": shown,
            "candidate": record.candidate,
            "run_key": identity.key,
            "reason": record.cause,
            "exit_code": record.exit_code,
            "start_time": record.started,
            "completion_time": record.completed,
            "message": record.message or None,
        }
    )


def _candidate(situation: Situation, reached: Reached, candidate: selection.Candidate) -> CandidateStatus:
    base = reached.facts.base
    assert base is not None
    measured = candidate.measure
    known = candidate.evaluated or not selection.has_scores(situation.spec)
    passes = candidate.passes_a and candidate.passes
    return CandidateStatus(
        id=candidate.id,
        attempt=situation.attempt,
        step=candidate.row.step,
        digest=candidate.row.weights_digest,
        domain_perplexity=_number(measured.domain.both.perplexity),
        general_perplexity=_number(measured.general.both.perplexity),
        forgetting=_number(perplexity.increase(base.general, measured.general, "both")),
        domain_perplexity_decrease=_number(-perplexity.increase(base.domain, measured.domain, "both")),
        gain=_number(gain(situation.spec.selection.weights, base, measured, "both")),
        tasks={score.name: _score(score) for score in measured.scores},
        passes=passes if known or not passes else None,
        message=(candidate.first_breach or ("" if candidate.passes_a else "over the limit on half A"))[:4096]
        or None,
    )


def _score(score: Score) -> TaskScore:
    return TaskScore(
        score=score.score,
        change_points=None if score.difference is None else _number(100 * score.difference),
        standard_error_points=None
        if score.difference_standard_error is None
        else _number(100 * score.difference_standard_error),
    )


def _number(value: float) -> float | None:
    """Six significant digits; what is not a number is left out."""
    import math

    return float(f"{value:.6g}") if math.isfinite(value) else None


def _resolved(observed: Observed, situation: Situation, reached: Reached) -> Resolved:
    prepared, numbers = reached.facts.prepare, reached.numbers
    known: dict[str, object] = {"profile": observed.wish.profile_name}
    if prepared is not None:
        known |= {
            "model": ResolvedModel(
                source=situation.spec.model.source,
                revision=prepared.model.revision,
                digest=prepared.model.digest,
            ),
            "sequence_length": prepared.sequence_length_tokens,
        }
    if numbers is not None:
        batch = numbers.batch
        known |= {
            "learning_rate": numbers.learning_rate,
            "replay_fraction": numbers.replay_fraction,
            "world_size": numbers.gang.world_size,
            "global_batch_size": batch.global_batch_size,
            "micro_batch_size": batch.micro_batch_size,
            "gradient_accumulation_steps": batch.accumulation,
            "zero_stage": batch.zero_stage,
            "offload": "none",
            "gradient_checkpointing": batch.gradient_checkpointing,
            "precision": batch.precision,
            "total_tokens": numbers.steps.total_tokens,
            "total_steps": numbers.steps.total_steps,
        }
    return Resolved.model_validate(known)


def _frozen(ledger: Ledger) -> Frozen:
    from dapt_operator.api.immutable import FROZEN_BY

    started = {record.kind for record in ledger.runs}
    return Frozen.model_validate({block: True for block, kind in FROZEN_BY.items() if kind in started})


def _plan_summary(reached: Reached) -> PlanSummary | None:
    numbers = reached.numbers
    if numbers is None:
        return None
    return PlanSummary(
        tokens=numbers.steps.total_tokens,
        steps=numbers.steps.total_steps,
        memory_gib_per_gpu=_number(numbers.batch.memory.total / 2**30),
    )


def _attempts(situation: Situation, reached: Reached, ledger: Ledger) -> tuple[AttemptStatus, ...]:
    if reached.numbers is None or not any(record.kind == "pretrain" for record in ledger.runs):
        return ()
    return (
        AttemptStatus(
            number=situation.attempt,
            learning_rate=reached.numbers.learning_rate,
            replay_fraction=reached.numbers.replay_fraction,
            ended_by=_ended_by(reached.facts, reached),
        ),
    )


def _ended_by(facts: Facts, reached: Reached) -> str | None:
    if reached.state in (State.PREPARE, State.BASELINE, State.PRETRAIN) or facts.pretrain is None:
        return None
    return facts.pretrain.ended_by


def _usage(observed: Observed, ledger: Ledger, used_seconds: float, *, ticked: bool) -> Usage:
    old = observed.status.usage
    ended = sum(record.accelerator_seconds for record in ledger.runs) / 3600
    stored = (old.gpu_hours or 0.0) if old else 0.0
    hours = used_seconds / 3600 if ticked else max(stored, ended)
    restarts = sum(record.try_number - 1 for record in ledger.runs)
    return Usage(gpu_hours=round(hours, 4), restarts=restarts)


def time_of(observed: Observed) -> str:
    """Now, as the status writes it."""
    return timestamp(observed.now)
