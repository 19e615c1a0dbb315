"""Walk the table of transitions over what the ledger knows, to the state where this visit has something to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dapt_contract.failure import Cause
from dapt_contract.stages.common import ModelReference
from dapt_operator.api.v1alpha1.conditions import VERIFY_FAILED
from dapt_operator.api.v1alpha1.ledger import AttemptRecord
from dapt_operator.plan import evaluations
from dapt_operator.plan.assess import (
    WOULD_TRY,
    ChainInputs,
    StageAssessment,
    assess_stage,
    exhausted,
    open_lineages,
)
from dapt_operator.plan.gates import GATES, GateFacts, Verdict
from dapt_operator.plan.ledger.gpu_hours import pretraining_seconds
from dapt_operator.plan.ledger.records import Lineage, find
from dapt_operator.plan.ledger.stage_facts import Facts, aligned, finetuned, is_given_up, read_facts, verified
from dapt_operator.plan.model_card import card_facts
from dapt_operator.plan.selection import candidates as selection_candidates
from dapt_operator.plan.selection.after_attempt import after_limit, decide_after_attempt
from dapt_operator.plan.selection.candidates import Candidate, candidates
from dapt_operator.plan.selection.choose import Breached, Choice, NeedsMeasure, Selected, choose, remedies
from dapt_operator.plan.sizing.resolve import RefusedError
from dapt_operator.plan.sizing.warnings import most_at_once, shares_volume
from dapt_operator.plan.stages import (
    align,
    attempts,
    baseline,
    evaluate,
    finetune,
    prepare,
    pretrain,
    publish,
    stage_plan,
    verify,
    weights,
)
from dapt_operator.plan.stages import blend as stages_blend
from dapt_operator.plan.stages.attempts import Attempt
from dapt_operator.plan.stages.pretrain import PretrainingPlan
from dapt_operator.plan.stages.stage_plan import StagePlan
from dapt_operator.plan.transitions import Do, Fact, Go, State, move

BESIDE = frozenset({State.PRETRAIN, State.BLEND})
"""States in which evaluations run beside the chain, where the volume allows it."""


@dataclass(frozen=True)
class Position:
    """Where the walk ended."""

    state: State
    do: Do
    look: StageAssessment
    facts: Facts
    numbers: PretrainingPlan | None
    choice: Choice | None
    candidates: tuple[Candidate, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    """Of the finished model, once it was verified."""
    retreat: AttemptRecord | None = None
    """The attempt that a rollback has decided on, to be written down."""
    beside: tuple[StageAssessment, ...] = ()
    """Evaluations that are due beside the chain, as far as they can be planned."""
    companions: frozenset[Lineage] = frozenset()
    """Evaluations whose live runs go on."""


class Chain:
    """One walk; holds what was found on the way."""

    def __init__(self, situation: ChainInputs) -> None:
        self.at = situation
        self.facts = read_facts(situation.ledger)
        self.candidates = candidates(situation.spec, self.facts)
        self.numbers: PretrainingPlan | None = None
        self.choice: Choice | None = None
        self.verdicts: tuple[Verdict, ...] = ()
        self.retreat: AttemptRecord | None = None
        self.asked: tuple[Candidate, ...] = ()
        """Candidates that the selection waits for."""
        self.companions: frozenset[Lineage] = frozenset()

    def go(self) -> Position:
        """From the first state to the one where something is to be done."""
        state = State.PREPARE
        while True:
            look = self.look(state)
            step = move(state, look.fact)
            if isinstance(step, Do):
                return Position(
                    state, step, look, self.facts, self.numbers, self.choice, self.candidates, self.verdicts,
                    self.retreat, self._beside(state), self.companions,
                )  # fmt: skip
            assert isinstance(step, Go)
            state = step.to

    def look(self, state: State) -> StageAssessment:
        """The fact of a state."""
        self.companions = self._companions(state)
        try:
            return getattr(self, f"_{state.name.lower()}")()  # type: ignore[no-any-return]
        except RefusedError as refused:
            return StageAssessment(Fact.REFUSED, reason=refused.reason, message=refused.message)

    # --- what runs beside the chain ---

    def _companions(self, state: State) -> frozenset[Lineage]:
        running = open_lineages(self.at.ledger, "evaluate")
        if state is State.EVALUATE:
            asked = {candidate.id for candidate in self.asked}
            return frozenset(lineage for lineage in running if lineage[2] in asked)
        if state is State.SELECT:
            return running
        if state is State.BLEND:
            # the tables are final: a checkpoint that was told of and did not last is left
            known = {candidate.id for candidate in self.candidates}
            running = frozenset(lineage for lineage in running if lineage[2] in known)
        beside = state in BESIDE and self.at.spec.evaluation.when != "end" and shares_volume(self.at.profile)
        return running if beside else frozenset()

    def _beside(self, state: State) -> tuple[StageAssessment, ...]:
        if state not in BESIDE or not shares_volume(self.at.profile):
            return ()
        return self._evaluations(selection_candidates.due(self.at.spec, self.candidates))

    def _evaluations(self, wanted: tuple[Candidate, ...]) -> tuple[StageAssessment, ...]:
        assert self.facts.prepare is not None or not wanted
        main = open_lineages(self.at.ledger, "pretrain") | open_lineages(self.at.ledger, "blend")
        return tuple(
            assess_stage(self.at, self._evaluate_stage(one), self.companions | main) for one in wanted
        )

    def _evaluate_stage(self, candidate: Candidate) -> StagePlan:
        assert self.facts.prepare is not None
        return evaluate.evaluate_stage(
            self.at.spec, self.at.profile, self.facts.prepare, candidate.id, candidate.model,
            attempt=candidate.attempt, digest=candidate.digest,
        )  # fmt: skip

    # --- the chain ---

    def _prepare(self) -> StageAssessment:
        return self._run(prepare.prepare_stage(self.at.spec))

    def _baseline(self) -> StageAssessment:
        assert self.facts.prepare is not None
        return self._run(baseline.baseline_stage(self.at.spec, self.at.profile, self.facts.prepare))

    def _pretrain(self) -> StageAssessment:
        prepared, base = self.facts.prepare, self.facts.base
        assert prepared is not None
        assert base is not None
        attempt = attempts.attempt(self.at.spec, self.facts, self.facts.attempt)
        assert attempt is not None
        record = find(self.at.ledger, "pretrain", attempt.number, None)
        wanted = self._numbers(attempt, record.halvings if record else 0)
        self.numbers = wanted or self._numbers(attempt, 0)
        assert self.numbers is not None
        seconds = pretraining_seconds(
            self.at.spec, self.at.ledger, self.numbers.gang, self.at.left_seconds, record
        )
        model = weights.start_model(self.at.spec, self.facts, attempt.number)
        look = self._run(
            pretrain.pretrain_stage(
                self.at.spec, self.numbers, base, attempt, model, max_train_seconds=seconds
            )
        )
        if look.fact is Fact.ABSENT:
            self._refuse_now_what_follows()
        if look.fact in WOULD_TRY and wanted is None:
            return exhausted(self.at, look)
        if look.fact is Fact.LIMIT:
            return self._after_the_limit(look)
        return look

    def _numbers(self, attempt: Attempt, halvings: int) -> PretrainingPlan | None:
        assert self.facts.prepare is not None
        assert self.facts.base is not None
        return pretrain.resolve_pretraining(
            self.at.spec, self.at.profile, self.facts.prepare, self.facts.base, attempt, halvings=halvings
        )

    def _refuse_now_what_follows(self) -> None:
        """What memory rules out later is refused before the pretraining is paid for."""
        prepared = self.facts.prepare
        assert prepared is not None
        if self.at.spec.finetuning is not None:
            finetune.finetune_stage(self.at.spec, self.at.profile, prepared, "", stage_plan.BASE_REFERENCE)
        if self.at.spec.preference is not None:
            align.align_stage(self.at.spec, self.at.profile, prepared, "", stage_plan.BASE_REFERENCE)

    def _after_the_limit(self, look: StageAssessment) -> StageAssessment:
        told, record = self.facts.pretrain, look.record
        assert record is not None
        self.retreat = after_limit(
            self.at.spec, self.facts, self.candidates, diverged=record.cause == Cause.DIVERGED,
            said=(told.message if told else "") or record.message, now=self.at.now,
        )  # fmt: skip
        return (
            StageAssessment(Fact.RETREAT, message=self.retreat.reason) if self.retreat is not None else look
        )

    def _blend(self) -> StageAssessment:
        for number in range(1, self.facts.attempt + 1):
            stage = self._blend_stage(number)
            look = self._run(stage) if stage is not None else None
            if look is None or look.fact is Fact.SUCCEEDED:
                continue
            lost = look.record is not None and is_given_up(look.record)
            if not (lost and not isinstance(choose(self.at.spec, self.facts, self.candidates), Breached)):
                return look  # where they are lost, the checkpoints do without them if one of those passes
        return StageAssessment(Fact.SKIPPED)

    def _blend_stage(self, number: int) -> StagePlan | None:
        """The blends of an attempt that were not measured yet; None when there are none."""
        assert self.facts.prepare is not None
        wanted = weights.blends(self.at.spec, self.facts, number)
        first = find(self.at.ledger, "blend", number, None)
        if first is not None and first.state == "Succeeded":
            measured = {row.candidate for row in self.facts.blends.get(number, ())}
            wanted = tuple(blend for blend in wanted if blend.candidate not in measured)
        if not wanted:
            return None
        round_name = weights.round_name(wanted) if first is not None and first.state == "Succeeded" else None
        return stages_blend.blend_stage(
            self.at.spec, self.at.profile, self.facts.prepare, wanted, attempt=number, round_name=round_name
        )

    def _select(self) -> StageAssessment:
        outcome = decide_after_attempt(self.at.spec, self.facts, self.candidates, self.at.now)
        self.choice, self.asked, self.retreat = outcome.choice, outcome.waiting, outcome.retreat
        if outcome.retreat is not None:
            return StageAssessment(Fact.RETREAT, message=outcome.retreat.reason)
        if isinstance(self.choice, Breached):
            return StageAssessment(Fact.BREACHED, reason=self.choice.reason, message=self.choice.message)
        return StageAssessment(Fact.UNMEASURED if isinstance(self.choice, NeedsMeasure) else Fact.CHOSEN)

    def _evaluate(self) -> StageAssessment:
        room = most_at_once(self.at.profile) - len(self.companions)
        return evaluations.spokesman(self._evaluations(self.asked), room)

    def _finetune(self) -> StageAssessment:
        if self.at.spec.finetuning is None:
            return StageAssessment(Fact.SKIPPED)
        assert self.facts.prepare is not None
        prepared, chosen = self.facts.prepare, self._chosen.candidate

        def stage(halvings: int) -> StagePlan | None:
            return finetune.finetune_stage(
                self.at.spec, self.at.profile, prepared, chosen.id, chosen.model,
                attempt=chosen.attempt, halvings=halvings,
            )  # fmt: skip

        return self._halving("finetune", stage)

    def _align(self) -> StageAssessment:
        if self.at.spec.preference is None:
            return StageAssessment(Fact.SKIPPED)
        assert self.facts.prepare is not None
        prepared, chosen, start = self.facts.prepare, self._chosen.candidate, self._tuned_model

        def stage(halvings: int) -> StagePlan | None:
            return align.align_stage(
                self.at.spec, self.at.profile, prepared, chosen.id, start,
                attempt=chosen.attempt, halvings=halvings,
            )  # fmt: skip

        return self._halving("align", stage)

    def _halving(self, kind: str, stage: Callable[[int], StagePlan | None]) -> StageAssessment:
        """A training stage after selection, with the micro-batch halved as often as it ran out of memory."""
        chosen = self._chosen.candidate
        record = find(self.at.ledger, kind, chosen.attempt, chosen.id)
        wanted = stage(record.halvings if record else 0)
        look = self._run(wanted or stage(0))
        if look.fact in WOULD_TRY and wanted is None:
            return exhausted(self.at, look)
        return look

    def _verify(self) -> StageAssessment:
        assert self.facts.prepare is not None
        chosen, spec = self._chosen.candidate, self.at.spec
        between = spec.finetuning is not None and spec.preference is not None
        stage = verify.verify_stage(
            spec,
            self.at.profile,
            self.facts.prepare,
            chosen.id,
            chosen.model,
            self._final_model,
            finetuned=self._tuned_model if between else None,
            evaluated=chosen.evaluated,
            attempt=chosen.attempt,
        )
        look = self._run(stage)
        if look.fact is not Fact.SUCCEEDED:
            return look
        facts = verified(self.at.ledger, chosen.id, chosen.attempt)
        assert facts is not None
        assert self.facts.base is not None
        compared = GateFacts("the finished model", self.facts.base, facts.final)
        self.verdicts = tuple(verdict for gate in GATES for verdict in gate(spec, compared))
        breached = [verdict.message for verdict in self.verdicts if not verdict.passed]
        warned = spec.gates.on_breach == "Warn" or (self._chosen.pinned and not self._chosen.passed)
        if breached and not warned:
            message = f"verification: {'; '.join(breached)}; {remedies(spec, self.facts)}"
            return StageAssessment(Fact.BREACHED, record=look.record, reason=VERIFY_FAILED, message=message)
        return look

    def _publish(self) -> StageAssessment:
        chosen = self._chosen.candidate
        card = card_facts(
            self.at.spec,
            self.at.name,
            self.facts,
            self._chosen,
            verified(self.at.ledger, chosen.id, chosen.attempt),
            self.numbers,
            self.verdicts,
            tuned=finetuned(self.at.ledger, chosen.id, chosen.attempt),
            aligned=aligned(self.at.ledger, chosen.id, chosen.attempt),
        )
        return self._run(
            publish.publish_stage(self.at.spec, chosen.id, self._final_model, card, attempt=chosen.attempt)
        )

    def _published(self) -> StageAssessment:
        return StageAssessment(Fact.SUCCEEDED)

    @property
    def _chosen(self) -> Selected:
        assert isinstance(self.choice, Selected)
        return self.choice

    @property
    def _tuned_model(self) -> ModelReference:
        """The fine-tuned model; the chosen one where nothing was fine-tuned."""
        chosen = self._chosen.candidate
        tuned = finetuned(self.at.ledger, chosen.id, chosen.attempt)
        return chosen.model if self.at.spec.finetuning is None or tuned is None else tuned.model

    @property
    def _final_model(self) -> ModelReference:
        chosen = self._chosen.candidate
        told = aligned(self.at.ledger, chosen.id, chosen.attempt)
        return self._tuned_model if self.at.spec.preference is None or told is None else told.model

    def _run(self, stage: StagePlan | None) -> StageAssessment:
        assert stage is not None
        return assess_stage(self.at, stage, self.companions)
