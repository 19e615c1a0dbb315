"""Walk the table of transitions over what the ledger knows, to the state where this visit has something to do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dapt_contract.stages.common import ModelReference
from dapt_operator.api.conditions import PENDING_TIMEOUT, VERIFY_FAILED
from dapt_operator.api.ledger import Ledger, RunRecord
from dapt_operator.api.profile import AdaptationProfileSpec
from dapt_operator.api.run import RunState
from dapt_operator.api.spec import DomainAdaptationSpec
from dapt_operator.plan import blueprint as plans
from dapt_operator.plan import finishing
from dapt_operator.plan.blueprint import Pretraining, StagePlan
from dapt_operator.plan.budget import is_spent, pretraining_seconds
from dapt_operator.plan.card import card_facts
from dapt_operator.plan.facts import Facts, finetuned, read_facts, verified
from dapt_operator.plan.gates import GATES, GateFacts, Verdict
from dapt_operator.plan.history import find, find_state
from dapt_operator.plan.observed import Obstacle
from dapt_operator.plan.resolve import RefusedError
from dapt_operator.plan.retries import JUDGED, stalled
from dapt_operator.plan.selection import Breached, Choice, NeedsMeasure, Selected, choose, remedies
from dapt_operator.plan.transitions import Do, Fact, Go, State, move
from dapt_operator.plan.waiting import hindrance, overdue

WOULD_TRY = frozenset({Fact.DUE, Fact.BACKOFF, Fact.HELD, Fact.CROWDED})
"""Another try of a failed stage is ahead."""


@dataclass(frozen=True)
class Situation:
    """What the walk goes over."""

    spec: DomainAdaptationSpec
    profile: AdaptationProfileSpec
    ledger: Ledger
    now: datetime
    generation: int
    name: str
    runs: tuple[RunState, ...] = ()
    left_seconds: float | None = None
    """Accelerator-seconds left of the limit; None without one."""
    attempt: int = 1
    obstacle: Obstacle | None = None
    """Why the objects of the due try cannot be made; None: nobody tried, or nothing stood in the way."""


@dataclass(frozen=True)
class Look:
    """One state's fact, and what belongs to it."""

    fact: Fact
    stage: StagePlan | None = None
    record: RunRecord | None = None
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Reached:
    """Where the walk ended."""

    state: State
    do: Do
    look: Look
    facts: Facts
    numbers: Pretraining | None
    choice: Choice | None
    verdicts: tuple[Verdict, ...] = ()
    """Of the finished model, once it was verified."""


class Walk:
    """One walk; holds what was found on the way."""

    def __init__(self, situation: Situation) -> None:
        self.at = situation
        self.facts = read_facts(situation.ledger, situation.attempt)
        self.numbers: Pretraining | None = None
        self.choice: Choice | None = None
        self.verdicts: tuple[Verdict, ...] = ()

    def go(self) -> Reached:
        """From the first state to the one where something is to be done."""
        state = State.PREPARE
        while True:
            look = self.look(state)
            step = move(state, look.fact)
            if isinstance(step, Do):
                return Reached(state, step, look, self.facts, self.numbers, self.choice, self.verdicts)
            assert isinstance(step, Go)
            state = step.to

    def look(self, state: State) -> Look:
        """The fact of a state."""
        try:
            return getattr(self, f"_{state.name.lower()}")()  # type: ignore[no-any-return]
        except RefusedError as refused:
            return Look(Fact.REFUSED, reason=refused.reason, message=refused.message)

    def _prepare(self) -> Look:
        return self._run(plans.prepare_stage(self.at.spec))

    def _baseline(self) -> Look:
        assert self.facts.prepare is not None
        return self._run(plans.baseline_stage(self.at.spec, self.at.profile, self.facts.prepare))

    def _pretrain(self) -> Look:
        prepared, base = self.facts.prepare, self.facts.base
        assert prepared is not None
        assert base is not None
        record = find(self.at.ledger, "pretrain", self.at.attempt, None)
        numbers = plans.resolve_pretraining(
            self.at.spec, self.at.profile, prepared, base, halvings=record.halvings if record else 0
        )
        self.numbers = numbers or plans.resolve_pretraining(self.at.spec, self.at.profile, prepared, base)
        assert self.numbers is not None
        seconds = pretraining_seconds(
            self.at.spec, self.at.ledger, self.numbers.gang, self.at.left_seconds, record
        )
        stage = plans.pretrain_stage(
            self.at.spec, self.numbers, base, attempt=self.at.attempt, max_train_seconds=seconds
        )
        look = self._run(stage)
        if look.fact is Fact.ABSENT and self.at.spec.finetuning is not None:
            # refused now if its memory does not do, not after the pretraining was paid for
            finishing.finetune_stage(self.at.spec, self.at.profile, prepared, "", plans.BASE_REFERENCE)
        if look.fact in WOULD_TRY and numbers is None:
            return self._exhausted(look)
        return look

    def _select(self) -> Look:
        self.choice = choose(self.at.spec, self.facts, self.at.attempt)
        if isinstance(self.choice, Breached):
            return Look(Fact.BREACHED, reason=self.choice.reason, message=self.choice.message)
        return Look(Fact.UNMEASURED if isinstance(self.choice, NeedsMeasure) else Fact.CHOSEN)

    def _evaluate(self) -> Look:
        assert isinstance(self.choice, NeedsMeasure)
        assert self.facts.prepare is not None
        candidate = self.choice.candidate
        model = plans.candidate_model(self.at.spec, candidate.row, self.at.attempt)
        return self._run(
            plans.evaluate_stage(
                self.at.spec,
                self.at.profile,
                self.facts.prepare,
                candidate.id,
                model,
                attempt=self.at.attempt,
            )
        )

    def _finetune(self) -> Look:
        if self.at.spec.finetuning is None:
            return Look(Fact.SKIPPED)
        assert self.facts.prepare is not None
        record = find(self.at.ledger, "finetune", self.at.attempt, self._chosen.candidate.id)

        def stage(halvings: int) -> StagePlan | None:
            assert self.facts.prepare is not None
            return finishing.finetune_stage(
                self.at.spec, self.at.profile, self.facts.prepare, self._chosen.candidate.id, self._chosen_model,
                attempt=self.at.attempt, halvings=halvings,
            )  # fmt: skip

        wanted = stage(record.halvings if record else 0)
        look = self._run(wanted or stage(0))
        if look.fact in WOULD_TRY and wanted is None:
            return self._exhausted(look)
        return look

    def _verify(self) -> Look:
        assert self.facts.prepare is not None
        stage = finishing.verify_stage(
            self.at.spec,
            self.at.profile,
            self.facts.prepare,
            self._chosen.candidate.id,
            self._chosen_model,
            self._final_model,
            evaluated=self._chosen.candidate.evaluated,
            attempt=self.at.attempt,
        )
        look = self._run(stage)
        if look.fact is not Fact.SUCCEEDED:
            return look
        facts = verified(self.at.ledger, self._chosen.candidate.id, self.at.attempt)
        assert facts is not None
        assert self.facts.base is not None
        compared = GateFacts("the finished model", self.facts.base, facts.final)
        self.verdicts = tuple(verdict for gate in GATES for verdict in gate(self.at.spec, compared))
        breached = [verdict.message for verdict in self.verdicts if not verdict.passed]
        if breached and self.at.spec.gates.on_breach != "Warn":
            message = f"verification: {'; '.join(breached)}; {remedies(self.at.spec, self.facts)}"
            return Look(Fact.BREACHED, record=look.record, reason=VERIFY_FAILED, message=message)
        return look

    def _publish(self) -> Look:
        card = card_facts(
            self.at.spec,
            self.at.name,
            self.facts,
            self._chosen,
            verified(self.at.ledger, self._chosen.candidate.id, self.at.attempt),
            self.numbers,
            self.verdicts,
        )
        return self._run(
            finishing.publish_stage(
                self.at.spec, self._chosen.candidate.id, self._final_model, card, attempt=self.at.attempt
            )
        )

    def _published(self) -> Look:
        return Look(Fact.SUCCEEDED)

    @property
    def _chosen(self) -> Selected:
        assert isinstance(self.choice, Selected)
        return self.choice

    @property
    def _chosen_model(self) -> ModelReference:
        return plans.candidate_model(self.at.spec, self._chosen.candidate.row, self.at.attempt)

    @property
    def _final_model(self) -> ModelReference:
        tuned = finetuned(self.at.ledger, self._chosen.candidate.id, self.at.attempt)
        if self.at.spec.finetuning is None or tuned is None:
            return self._chosen_model
        return tuned.model

    def _run(self, stage: StagePlan | None) -> Look:
        """The bucket of a stage's newest try."""
        assert stage is not None
        record = find(self.at.ledger, stage.stage, stage.attempt, stage.candidate)
        if record is None:
            return self._wanted(Fact.ABSENT, stage, None)
        if record.state == "Open":
            return self._open(stage, record)
        if record.state == "Succeeded":
            return Look(Fact.SUCCEEDED, stage, record)
        if record.cause in JUDGED and stage.kind == "pretrain" and not record.retry:
            return Look(Fact.LIMIT, stage, record)
        if not record.retry and record.generation == self.at.generation:
            return self._exhausted(Look(Fact.EXHAUSTED, stage, record))
        if record.not_before is not None and self.at.now < datetime.fromisoformat(record.not_before):
            return self._wanted(Fact.BACKOFF, stage, record)
        return self._wanted(Fact.DUE, stage, record)

    def _open(self, stage: StagePlan, record: RunRecord) -> Look:
        if self.at.spec.suspend:
            return Look(Fact.STOPPING, stage, record)
        run = find_state(self.at.runs, record)
        if run is None or run.deleting:
            return Look(Fact.RUNNING, stage, record)
        reason, message = hindrance(run, stage.stage, self.at.spec.queue)
        if reason:
            return Look(Fact.HINDERED, stage, record, reason, message)
        message = overdue(run, stage.stage, self.at.now, self.at.profile.pending_timeout_seconds)
        if message:
            return Look(Fact.UNPLACED, stage, record, PENDING_TIMEOUT, message)
        return Look(Fact.RUNNING, stage, record)

    def _wanted(self, fact: Fact, stage: StagePlan, record: RunRecord | None) -> Look:
        if self.at.spec.suspend:
            return Look(Fact.HELD, stage, record)
        if stage.resources.accelerators_per_node and is_spent(self.at.left_seconds, record):
            return Look(Fact.OVERSPENT, stage, record)
        if any(run.is_live for run in self.at.runs):
            return Look(Fact.CROWDED, stage, record)
        obstacle = self.at.obstacle
        if obstacle is not None and fact in (Fact.ABSENT, Fact.DUE):
            return Look(Fact.OBSTRUCTED, stage, record, obstacle.reason, obstacle.message)
        return Look(fact, stage, record)

    def _exhausted(self, look: Look) -> Look:
        assert look.record is not None
        reason, message = stalled(look.record, self.at.profile.retries)
        return Look(Fact.EXHAUSTED, look.stage, look.record, reason, message)
