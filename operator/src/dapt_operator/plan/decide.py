"""Observed facts in, plan out: the one decision that the cluster and the local run share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from dapt_contract.envelope import digest_of
from dapt_operator.api.v1alpha1.conditions import FINISHED, is_true
from dapt_operator.api.v1alpha1.ledger import Ledger
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.launchers.launcher import Launcher
from dapt_operator.plan.admission import admit
from dapt_operator.plan.assess import ChainInputs, StageAssessment
from dapt_operator.plan.chain import Chain, Position
from dapt_operator.plan.cleanup import cleanup_due, leftovers
from dapt_operator.plan.desired import Removal, needs_shared, next_run, remembered, removals
from dapt_operator.plan.evaluations import startable
from dapt_operator.plan.ledger.compaction import closed_run_counts, free_one_record
from dapt_operator.plan.ledger.give_up import give_up_stuck
from dapt_operator.plan.ledger.gpu_hours import limit_seconds, used_seconds
from dapt_operator.plan.ledger.records import Lineage, lineage_of, put
from dapt_operator.plan.ledger.update import absorb, ask_to_stop
from dapt_operator.plan.observed import Observed
from dapt_operator.plan.sizing.resolve import pretrain_layout
from dapt_operator.plan.status import build
from dapt_operator.plan.status.events import Notice, notices
from dapt_operator.plan.status.size_limit import truncate_status
from dapt_operator.plan.transitions import Do, Fact
from dapt_operator.stage_run import Manifest, StageRun, plain

LOOK_AGAIN_SECONDS = 10.0
"""While a stage runs: its progress, its time, and what a watch may have lost."""
STOPPING_SECONDS = 1.0
"""While runs that are not wanted any more save and stop, or pods end after one of theirs has failed."""
PEERS_SECONDS = 0.2
"""While the peers of a failed pod are killed: the gang's next try waits for their end alone."""
NEXT_SECONDS = 0.1
"""When something more is to be started, or a decision was written down that the next visit acts on: one run a visit, so
that a visit is small and a number of a try is one run's alone."""
OBSTRUCTED_SECONDS = 15.0
"""While a name that we need belongs to something else: nobody tells us when it goes."""


@dataclass(frozen=True)
class Plan:
    """What is to be done, in this order: apply, one status write, delete, events."""

    apply: tuple[Manifest, ...] = ()
    status: DomainAdaptationStatus | None = None
    """None: it is as stored, and an unchanged status is never written."""
    delete: tuple[Removal, ...] = ()
    events: tuple[Notice, ...] = ()
    requeue_after: float | None = None
    """Seconds; None: only a change wakes us."""
    deletes_first: bool = False
    """The status tells that something was deleted: it is written after that."""
    needs_signing_secret: bool = False
    """The key of the checkpoints' signatures goes with the shared objects of `apply`; the shell makes it, once."""

    def fields(self) -> dict[str, object]:
        """For one log line."""
        return {
            "apply": [f"{manifest['kind']}/{manifest['metadata']['name']}" for manifest in self.apply],
            "delete": [f"{removal.kind}/{removal.name}" for removal in self.delete],
            "status": self.status is not None,
            "phase": self.status.phase if self.status is not None else None,
            "events": [notice.reason for notice in self.events],
            "requeue_after": self.requeue_after,
        }

    @property
    def is_empty(self) -> bool:
        """Nothing is to be done now."""
        return not (self.apply or self.delete or self.status or self.events)


def decide(observed: Observed, launcher: Launcher) -> Plan:
    """The plan for one adaptation at one moment. Equal arguments give an equal plan.

    Args:
        observed: what is known.
        launcher: turns a stage run into manifests.
    """
    stored = observed.status
    if observed.is_foreign or observed.deleting:
        return Plan()  # owner references collect the children
    if is_true(stored.conditions, FINISHED):
        return _after_the_end(observed)
    wish = observed.wish
    reason, message = (wish.reason, wish.message) if wish.reason else admit(wish, observed.owner.namespace)
    if reason or wish.spec is None or wish.profile is None:
        return _with_status(observed, build.refused(observed, reason, message), Plan())
    ledger = absorb(
        stored.ledger or Ledger(),
        observed.runs,
        observed.now,
        wish.profile.retries,
        observed.generation,
        suspended=wish.spec.suspend,
        closed=closed_run_counts(stored.ledger or Ledger()),
    )
    ledger = give_up_stuck(ledger, observed.runs, observed.now, observed.generation, wish.profile_digest)
    limit = limit_seconds(wish.spec, wish.profile)
    used = used_seconds(ledger, observed.runs, observed.now)
    left = None if limit is None else limit - used
    learned = ledger
    situation = ChainInputs(
        spec=wish.spec,
        profile=wish.profile,
        ledger=ledger,
        now=observed.now,
        generation=observed.generation,
        name=observed.owner.name,
        runs=observed.live,
        left_seconds=left,
        obstacle=observed.obstacle,
    )
    reached = Chain(situation).go()
    run: StageRun | None = None
    manifests: tuple[Manifest, ...] = ()
    with_shared = False
    start = _start(situation, reached)
    if start is not None:
        assert start.stage is not None
        nodes = pretrain_layout(wish.spec, wish.profile).nodes  # no stage has more
        shared = launcher.shared(wish.profile, observed.owner, nodes)
        digest = digest_of({"shared": plain(shared)})
        with_shared = needs_shared(ledger, start.record, digest)
        run, record = next_run(observed, ledger, start.stage, start.record, left)
        if start.record is None:
            ledger = free_one_record(ledger, record.candidate)
        ledger = remembered(put(ledger, record), shared, digest)
        manifests = (*(shared if with_shared else ()), *launcher.render(run, wish.profile, observed.owner))
    if reached.do is Do.STOP or reached.look.fact is Fact.SPENT:
        ledger = ask_to_stop(ledger, observed.live, observed.now)
    if reached.do is Do.ROLL_BACK:
        assert reached.retreat is not None
        ledger = ledger.model_copy(update={"attempts": (*ledger.attempts, reached.retreat)})
    removed = removals(observed, _kept(reached))
    plan = Plan(
        apply=manifests,
        delete=removed,
        requeue_after=_requeue(observed, situation, reached, start, removed),
        needs_signing_secret=with_shared,
    )
    return _with_status(
        observed,
        build.working(observed, situation, ledger, reached, run if start is reached.look else None, used),
        plan,
        learned,
    )


def _after_the_end(observed: Observed) -> Plan:
    """What is finished never runs again, whatever becomes of its Jobs; its objects may be collected, once."""
    due = cleanup_due(observed)
    if due is None:
        return _with_status(observed, build.finished(observed, None), Plan())
    left = (due - observed.now).total_seconds()
    if left > 0:
        return _with_status(observed, build.finished(observed, None), Plan(requeue_after=left))
    plan = Plan(delete=leftovers(observed), deletes_first=True)
    return _with_status(observed, build.finished(observed, observed.now), plan)


def _start(situation: ChainInputs, reached: Position) -> StageAssessment | None:
    """The one stage that this visit starts: of the chain, else an evaluation beside it."""
    if reached.do is Do.START:
        return reached.look
    if reached.do is Do.WAIT:
        return startable(reached.beside, _room(situation, reached))
    return None


def _room(situation: ChainInputs, reached: Position) -> int:
    """So many more evaluations may run."""
    return situation.profile.max_parallel_evaluations - len(reached.companions)


def _kept(reached: Position) -> frozenset[Lineage]:
    """The lineages whose live runs go on."""
    if reached.do in (Do.STOP, Do.HOLD, Do.FINISH, Do.END) or reached.look.fact is Fact.SPENT:
        return frozenset()
    record = reached.look.record
    is_open = record is not None and record.state == "Open"
    if record is None or not is_open or reached.do not in (Do.WAIT, Do.STALL, Do.START):
        return reached.companions
    return reached.companions | {lineage_of(record)}


def _with_status(
    observed: Observed, status: DomainAdaptationStatus, plan: Plan, learned: Ledger | None = None
) -> Plan:
    if status is observed.status or status.to_dict() == observed.written:
        return plan
    fitted = truncate_status(status)
    if fitted is not status and fitted.to_dict() == observed.written:
        return plan
    status = fitted
    return replace(plan, status=status, events=notices(observed.status, status, learned))


def _requeue(
    observed: Observed,
    situation: ChainInputs,
    reached: Position,
    start: StageAssessment | None,
    removed: tuple[Removal, ...],
) -> float | None:
    if any(removal.kind == "Pod" for removal in removed):
        return PEERS_SECONDS
    if any(run.has_failed_pod for run in observed.live):
        return STOPPING_SECONDS
    if reached.do is Do.ROLL_BACK or (start is not None and _more_to_start(situation, reached, start)):
        return NEXT_SECONDS
    if reached.look.fact is Fact.OBSTRUCTED:
        return OBSTRUCTED_SECONDS
    if reached.do in (Do.STOP, Do.CLEAR):
        return STOPPING_SECONDS
    record = reached.look.record
    if reached.look.fact is Fact.BACKOFF and record is not None and record.not_before is not None:
        wait = max(0.0, (datetime.fromisoformat(record.not_before) - observed.now).total_seconds())
        return min(wait, LOOK_AGAIN_SECONDS) if observed.live else wait
    if reached.do in (Do.START, Do.WAIT) or observed.live:
        return LOOK_AGAIN_SECONDS
    return None


def _more_to_start(situation: ChainInputs, reached: Position, start: StageAssessment) -> bool:
    """Whether another evaluation could start once this one is written down."""
    others = [look for look in reached.beside if look is not start]
    taken = 0 if start is reached.look else 1
    return startable(others, _room(situation, reached) - taken) is not None
