"""The status: what people read, with conditions as kstatus wants them, and the ledger."""

from __future__ import annotations

from datetime import datetime

from dapt_operator.api.v1alpha1 import conditions as words
from dapt_operator.api.v1alpha1.conditions import set_condition, timestamp
from dapt_operator.api.v1alpha1.ledger import Ledger
from dapt_operator.api.v1alpha1.status import (
    MAX_STAGES,
    Condition,
    Digests,
    DomainAdaptationStatus,
    OutputStatus,
)
from dapt_operator.plan.assess import ChainInputs
from dapt_operator.plan.chain import Position
from dapt_operator.plan.gates import perplexity
from dapt_operator.plan.gates.gain import gain
from dapt_operator.plan.ledger.stage_facts import published
from dapt_operator.plan.observed import Observed
from dapt_operator.plan.selection import choose
from dapt_operator.plan.stages.common import run_digest
from dapt_operator.plan.status import blocks, conditions
from dapt_operator.plan.status.progress import progress
from dapt_operator.plan.transitions import Do, State
from dapt_operator.stage_run import StageRun

PHASES: dict[State, str] = {
    State.PREPARE: words.PHASE_PREPARING,
    State.BASELINE: words.PHASE_MEASURING_BASE,
    State.PRETRAIN: words.PHASE_PRETRAINING,
    State.BLEND: words.PHASE_EVALUATING,
    State.SELECT: words.PHASE_SELECTING,
    State.EVALUATE: words.PHASE_EVALUATING,
    State.FINETUNE: words.PHASE_FINETUNING,
    State.ALIGN: words.PHASE_ALIGNING,
    State.VERIFY: words.PHASE_VERIFYING,
    State.PUBLISH: words.PHASE_PUBLISHING,
    State.PUBLISHED: words.PHASE_PUBLISHED,
}


def refused(observed: Observed, reason: str, message: str) -> DomainAdaptationStatus:
    """For a spec or profile that cannot be worked with; what was known is kept."""
    suspended = observed.wish.spec is not None and observed.wish.spec.suspend
    return observed.status.model_copy(
        update={
            "observed_generation": observed.generation,
            "phase": words.PHASE_STALLED,
            "conditions": _conditions(observed, conditions.refused(reason, message, suspended=suspended)),
            "digests": (observed.status.digests or Digests()).model_copy(update={"owner": _owner(observed)}),
        }
    )


def working(
    observed: Observed,
    situation: ChainInputs,
    ledger: Ledger,
    reached: Position,
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
    spec, base, old = situation.spec, reached.facts.base, observed.status.digests
    shown = reached.candidates
    chosen = reached.choice.candidate if isinstance(reached.choice, choose.Selected) else None
    latest = chosen or next((one for one in reversed(shown) if one.step is not None), None)
    output = published(ledger, chosen.id, chosen.attempt) if chosen else None
    told, told_at = progress(observed, ledger)
    forgetting = won = None
    if latest is not None and base is not None:
        forgetting = blocks.number(perplexity.increase(base.general, latest.measure.general, "both"))
        won = blocks.number(gain(spec.selection.weights, base, latest.measure, "both"))
    return DomainAdaptationStatus(
        observed_generation=observed.generation,
        phase=_phase(reached),
        conditions=_conditions(observed, conditions.working(observed, situation, reached, run)),
        forgetting=forgetting,
        gain=won,
        attempt=1 + len(ledger.attempts)
        if any(record.kind == "pretrain" for record in ledger.runs)
        else None,
        progress=told,
        resolved=blocks.resolved(observed, situation, reached),
        frozen=blocks.frozen(ledger),
        digests=Digests(
            profile=observed.wish.profile_digest,
            config=run.stage_file.config_digest if run else (old.config if old else None),
            owner=_owner(observed),
            run=run_digest(spec),
        ),
        plan=blocks.plan_summary(situation, reached),
        stages=tuple(blocks.stage(record, observed) for record in ledger.runs)[-MAX_STAGES:],
        candidates=tuple(
            blocks.candidate(situation, reached, one)
            for one in blocks.most_telling(shown, chosen.id if chosen else None)
        ),
        selected=blocks.selected(reached),
        attempts=blocks.attempts(situation, reached, ledger),
        usage=blocks.usage(observed, ledger, used_seconds, told, ticked=told_at != ledger.progress_time),
        output=OutputStatus(
            destination=output.destination,
            digest=output.digest,
            deployable=spec.finetuning is not None or spec.preference is not None,
        )
        if output
        else None,
        ledger=ledger.model_copy(update={"progress_time": told_at}),
    )


def finished(observed: Observed, cleaned: datetime | None) -> DomainAdaptationStatus:
    """After the end: nothing but the generation that was looked at, and when cleanup was done, changes any more."""
    stored = observed.status
    changed: dict[str, object] = {}
    if stored.observed_generation != observed.generation:
        seen = {"observed_generation": observed.generation}
        changed = {**seen, "conditions": tuple(one.model_copy(update=seen) for one in stored.conditions)}
    if cleaned is not None:
        ledger = stored.ledger or Ledger()
        changed["ledger"] = ledger.model_copy(update={"cleaned": timestamp(cleaned)})
    return stored.model_copy(update=changed) if changed else stored


def _owner(observed: Observed) -> str | None:
    """The operator installation that works for the adaptation: the first that wrote a status."""
    return (observed.status.digests.owner if observed.status.digests else None) or observed.instance or None


def _phase(reached: Position) -> str:
    if reached.do is Do.STALL:
        return words.PHASE_STALLED
    if reached.do is Do.END:
        return words.PHASE_BUDGET_EXHAUSTED
    if reached.do in (Do.HOLD, Do.STOP):
        return words.PHASE_SUSPENDED
    return PHASES[reached.state]


def _conditions(observed: Observed, said: dict[str, conditions.ConditionValue]) -> tuple[Condition, ...]:
    found = observed.status.conditions
    for type_ in words.CONDITION_TYPES:
        status, reason, message = said[type_]
        found = set_condition(
            found, type_, status, reason, message, now=observed.now, observed_generation=observed.generation
        )
    return found
