"""Finds the position of an adaptation in its chain of stages.

`Chain.states` is the chain: every state in its order, with the method that says what is known about it. A method that
belongs to a stage renders that stage with the function of `stages/` of the same name and assesses its newest run; a
method that decides (blend, select) asks `selection/`. Which state follows a fact, or what to do, is the table in
`transitions`.
"""

from __future__ import annotations

from collections.abc import Callable

from dapt_contract.pod.failure import Cause
from dapt_contract.stages.align import AlignFacts
from dapt_contract.stages.blend import Blend
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.finetune import FinetuneFacts
from dapt_contract.stages.verify import VerifyFacts
from dapt_operator.api.v1alpha1.conditions import VERIFY_FAILED
from dapt_operator.api.v1alpha1.stored.ledger import AttemptRecord, SomeFacts
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord, StageKey
from dapt_operator.plan.chain_parts.assess import (
    RETRIES_AHEAD,
    ChainInputs,
    StageAssessment,
    assess_stage,
    exhausted,
    memory_rule,
)
from dapt_operator.plan.chain_parts.evaluations import (
    assess_evaluations,
    companions_in,
    may_evaluate_alongside,
    representative,
)
from dapt_operator.plan.chain_parts.model_card import FinishedModel, card_facts
from dapt_operator.plan.chain_parts.position import Position
from dapt_operator.plan.chain_parts.settled import Chosen, Measured, known, measured, stage_inputs
from dapt_operator.plan.gates import FINISHED_MODEL, GATES, GateFacts, Verdict
from dapt_operator.plan.ledger.gpu_hours import pretraining_seconds
from dapt_operator.plan.ledger.stage_facts import read_facts
from dapt_operator.plan.selection.after_attempt import after_limit, decide_after_attempt
from dapt_operator.plan.selection.candidates import Candidate, candidates, due
from dapt_operator.plan.selection.choose import Breached, Choice, NeedsMeasure, Selected, choose, remedies
from dapt_operator.plan.sizing.model_fit.batch import Batch, halved, with_smallest_micro_batch
from dapt_operator.plan.sizing.resolve import RefusedError, pretrain_layout
from dapt_operator.plan.stage_parts.attempts import measured_attempt
from dapt_operator.plan.stage_parts.stage_plan import StageInputs, StagePlan, TuningData
from dapt_operator.plan.stage_parts.weights import blends, by_adapters, round_name, start_model
from dapt_operator.plan.stages.align import align_batch, align_stage
from dapt_operator.plan.stages.baseline import baseline_stage
from dapt_operator.plan.stages.blend import blend_stage
from dapt_operator.plan.stages.destination import destination_stage
from dapt_operator.plan.stages.finetune import finetune_batch, finetune_stage
from dapt_operator.plan.stages.prepare import prepare_stage
from dapt_operator.plan.stages.pretrain import PretrainingPlan, pretrain_stage, resolve_pretraining
from dapt_operator.plan.stages.publish import publish_stage
from dapt_operator.plan.stages.tuning_data import tuning_data_stage
from dapt_operator.plan.stages.verify import ComparedModels, verify_stage
from dapt_operator.plan.transitions import Action, Fact, State, next_move


class Chain:
    """Finds a position once; holds what the states on the way have found."""

    def __init__(self, inputs: ChainInputs) -> None:
        self.inputs = inputs
        self.facts = read_facts(inputs.ledger, pretrain_layout(inputs.spec, inputs.profile).world_size)
        self.candidates = candidates(inputs.spec, self.facts)
        self._candidate_ids = frozenset(candidate.id for candidate in self.candidates)
        # The chain in its order. A method takes what the stages before its state have settled as an argument, so none
        # can be called before that exists.
        self.states: dict[State, Callable[[], StageAssessment]] = {
            State.DESTINATION: self._destination,
            State.PREPARE: self._prepare,
            State.BASELINE: lambda: self._baseline(self._stage_inputs()),
            State.PRETRAIN: lambda: self._pretrain(self._measured()),
            State.BLEND: lambda: self._blend(self._measured()),
            State.SELECT: self._select,
            State.EVALUATE: lambda: self._evaluate(self._stage_inputs()),
            State.INSTRUCTIONS: lambda: self._read_edited(self._stage_inputs().instructions),
            State.FINETUNE: lambda: self._finetune(self._chosen()),
            State.PREFERENCES: lambda: self._read_edited(self._stage_inputs().preferences),
            State.ALIGN: lambda: self._align(self._chosen()),
            State.VERIFY: lambda: self._verify(self._chosen()),
            State.PUBLISH: lambda: self._publish(self._chosen()),
            State.PUBLISHED: self._published,
        }
        self._numbers: PretrainingPlan | None = None
        self._choice: Choice | None = None
        self._awaited: tuple[Candidate, ...] = ()
        """Candidates that must be evaluated before the selection can choose."""
        self._awaited_evaluations: tuple[StageAssessment, ...] = ()
        self._verdicts: tuple[Verdict, ...] = ()
        self._rollback: AttemptRecord | None = None
        self._companions: frozenset[StageKey] = frozenset()

    def position(self) -> Position:
        """Return the first state, from the beginning of the chain, in which something is to be done or awaited."""
        # No state is stored. Each reconcile goes through the chain from its beginning, so that an edit of the spec, for
        # example of the gates, takes effect in whichever state it concerns.
        state = State.DESTINATION
        while True:
            assessment = self._assess_state(state)
            move = next_move(state, assessment.fact)
            if isinstance(move, Action):
                break
            state = move.state
        return Position(
            state=state,
            action=move,
            assessment=assessment,
            facts=self.facts,
            candidates=self.candidates,
            stage_inputs=self._stage_inputs() if self.facts.prepare is not None else None,
            numbers=self._numbers,
            choice=self._choice,
            verdicts=self._verdicts,
            rollback=self._rollback,
            alongside=self._due_alongside(state),
            companions=self._companions,
            free_slots=self._free_slots,
            awaited=self._awaited_evaluations,
        )

    def _assess_state(self, state: State) -> StageAssessment:
        # Before the assessment, which reads them: what may run in parallel depends on the state.
        self._companions = self._companions_in(state)
        try:
            return self.states[state]()
        except RefusedError as refused:
            return StageAssessment(Fact.REFUSED, reason=refused.reason, message=refused.message)

    # --- what the states before one have settled ---

    def _stage_inputs(self) -> StageInputs:
        desired, prepared = self.inputs.desired, known(self.facts.prepare, "prepare")
        return stage_inputs(desired.spec, desired.profile, desired.contents, self.inputs.ledger, prepared)

    def _measured(self) -> Measured:
        return measured(self._stage_inputs(), known(self.facts.base, "baseline"))

    def _chosen(self) -> Chosen:
        selected = self._choice if isinstance(self._choice, Selected) else None
        return Chosen(
            **vars(self._measured()),
            numbers=known(self._numbers, "pretrain"),
            selected=known(selected, "selection"),
        )

    # --- the chain, in its order ---

    def _destination(self) -> StageAssessment:
        """Assess the trial of the destination: before prepare, and after an edit as long as nothing is paid for."""
        prepare = self.inputs.ledger.find("prepare")
        # A running prepare goes on: the new destination is tried after it.
        if self._is_measured or (prepare is not None and prepare.is_open):
            return StageAssessment(Fact.SKIPPED)
        return self._assess(destination_stage(self.inputs.spec))

    def _prepare(self) -> StageAssessment:
        desired = self.inputs.desired
        stage = prepare_stage(
            desired.spec, desired.profile, desired.contents, may_follow=not self._is_measured
        )
        return self._assess(stage)

    @property
    def _is_measured(self) -> bool:
        """Whether the base model's measurement has started, which freezes what the corpus is cleaned of."""
        return "baseline" in self.inputs.ledger.started_kinds()

    def _baseline(self, inputs: StageInputs) -> StageAssessment:
        return self._assess(baseline_stage(inputs))

    def _pretrain(self, measured: Measured) -> StageAssessment:
        """Assess the newest attempt; where it ended at a limit, a rollback may follow."""
        spec, ledger = measured.spec, self.inputs.ledger
        attempt = measured_attempt(spec, self.facts, measured.base, self.facts.attempt)
        record = ledger.find("pretrain", attempt.number)
        model = start_model(spec, self.facts, attempt.number)
        first = measured_attempt(spec, self.facts, measured.base, 1)
        full = resolve_pretraining(measured, first.replay_fraction, attempt, memory_rule(ledger, record))

        def stage(batch: Batch) -> StagePlan:
            self._numbers = numbers = full.with_batch(batch)
            seconds = pretraining_seconds(spec, ledger, numbers.layout, self.inputs.left_seconds, record)
            return pretrain_stage(spec, numbers, measured.base, attempt, model, max_train_seconds=seconds)

        assessment = self._assess_training(record, full.batch, stage)
        if assessment.fact is Fact.ABSENT:
            # What memory rules out later is refused before the pretraining is paid for.
            if spec.finetuning is not None:
                finetune_batch(measured, spec.finetuning)
            if spec.preference is not None:
                align_batch(measured, spec.preference)
        if assessment.fact is Fact.LIMIT and record is not None:
            return self._after_limit(assessment, record)
        return assessment

    def _after_limit(self, assessment: StageAssessment, record: RunRecord) -> StageAssessment:
        facts = self.facts.pretrain
        self._rollback = after_limit(
            self.inputs.spec,
            self.facts,
            self.candidates,
            has_diverged=record.cause == Cause.DIVERGED,
            message=(facts.message if facts else "") or record.message,
            now=self.inputs.now,
        )
        if self._rollback is None:
            return assessment
        return StageAssessment(Fact.ROLLBACK, message=self._rollback.reason)

    def _blend(self, inputs: Measured) -> StageAssessment:
        """Assess the blends of every attempt, since an edit of the selection may ask for more of an earlier one."""
        for number in range(1, self.facts.attempt + 1):
            unmeasured = self._unmeasured_blends(number)
            if not unmeasured:
                continue
            first = self.inputs.ledger.find("blend", number)
            is_further_round = first is not None and first.has_succeeded
            name = round_name(unmeasured) if is_further_round else None
            assessment = self._assess(
                blend_stage(inputs, unmeasured, inputs.base, attempt=number, round_name=name)
            )
            if assessment.fact is Fact.SUCCEEDED:
                continue
            is_lost = assessment.record is not None and assessment.record.has_failed_for_good
            # Lost blends hold nothing up where one of the checkpoints passes without them.
            if not is_lost or isinstance(choose(inputs.spec, self.facts, self.candidates), Breached):
                return assessment
        return StageAssessment(Fact.SKIPPED)

    def _unmeasured_blends(self, attempt: int) -> tuple[Blend, ...]:
        wanted = blends(self.inputs.spec, self.facts, attempt)
        first = self.inputs.ledger.find("blend", attempt)
        if first is None or not first.has_succeeded:
            return wanted
        measured = {row.candidate for row in self.facts.blends.get(attempt, ())}
        return tuple(blend for blend in wanted if blend.candidate not in measured)

    def _select(self) -> StageAssessment:
        decision = decide_after_attempt(self.inputs.spec, self.facts, self.candidates, self.inputs.now)
        self._choice, self._awaited, self._rollback = decision.choice, decision.awaited, decision.rollback
        if decision.rollback is not None:
            return StageAssessment(Fact.ROLLBACK, message=decision.rollback.reason)
        if isinstance(decision.choice, Breached):
            return StageAssessment(
                Fact.BREACHED, reason=decision.choice.reason, message=decision.choice.message
            )
        if isinstance(decision.choice, NeedsMeasure):
            return StageAssessment(Fact.UNMEASURED)
        return StageAssessment(Fact.CHOSEN)

    def _evaluate(self, inputs: StageInputs) -> StageAssessment:
        self._awaited_evaluations = self._assess_evaluations(inputs, self._awaited)
        return representative(self._awaited_evaluations, self._free_slots)

    def _read_edited(self, data: TuningData | None) -> StageAssessment:
        """Assess the reading of tuning data that prepare has not read: it was added or edited since."""
        if data is None or data.unread is None:
            return StageAssessment(Fact.SKIPPED)
        return self._assess(tuning_data_stage(self.inputs.spec, data.unread))

    def _finetune(self, chosen: Chosen) -> StageAssessment:
        settings, candidate = chosen.spec.finetuning, chosen.candidate
        if settings is None:
            return StageAssessment(Fact.SKIPPED)
        record = self.inputs.ledger.find("finetune", candidate.attempt, candidate.id)
        return self._assess_training(
            record,
            finetune_batch(chosen, settings, memory_rule(self.inputs.ledger, record)),
            lambda batch: finetune_stage(
                chosen, settings, batch, candidate.id, candidate.model, attempt=candidate.attempt
            ),
        )

    def _align(self, chosen: Chosen) -> StageAssessment:
        settings, candidate = chosen.spec.preference, chosen.candidate
        if settings is None:
            return StageAssessment(Fact.SKIPPED)
        record = self.inputs.ledger.find("align", candidate.attempt, candidate.id)
        return self._assess_training(
            record,
            align_batch(chosen, settings, memory_rule(self.inputs.ledger, record)),
            lambda batch: align_stage(
                chosen, settings, batch, candidate.id, self._tuned_model(chosen), attempt=candidate.attempt
            ),
        )

    def _verify(self, chosen: Chosen) -> StageAssessment:
        """Assess the comparison of the finished model, then judge it by the gates."""
        spec, candidate = chosen.spec, chosen.candidate
        has_model_between = spec.finetuning is not None and spec.preference is not None
        models = ComparedModels(
            chosen=candidate.model,
            final=self._final_model(chosen),
            finetuned=self._tuned_model(chosen) if has_model_between else None,
        )
        stage = verify_stage(
            chosen, candidate.id, models, is_evaluated=candidate.is_evaluated, attempt=candidate.attempt
        )
        assessment = self._assess(stage)
        if assessment.fact is not Fact.SUCCEEDED:
            return assessment
        verified = known(self._facts_of_chosen(VerifyFacts, "verify", chosen), "verify")
        compared = GateFacts(FINISHED_MODEL, chosen.base, verified.final)
        self._verdicts = tuple(verdict for gate in GATES for verdict in gate.judge(spec, compared))
        breaches = [verdict.message for verdict in self._verdicts if not verdict.passed]
        # Who pinned a candidate that fails a gate has accepted that it fails.
        only_warns = spec.gates.on_breach == "Warn" or (
            chosen.selected.is_pinned and not chosen.selected.passes
        )
        if breaches and not only_warns:
            message = f"verification: {'; '.join(breaches)}; {remedies(spec, self.facts)}"
            return StageAssessment(
                Fact.BREACHED, record=assessment.record, reason=VERIFY_FAILED, message=message
            )
        return assessment

    def _publish(self, chosen: Chosen) -> StageAssessment:
        candidate = chosen.candidate
        finished = FinishedModel(
            verified=self._facts_of_chosen(VerifyFacts, "verify", chosen),
            verdicts=self._verdicts,
            finetuned=self._facts_of_chosen(FinetuneFacts, "finetune", chosen),
            aligned=self._facts_of_chosen(AlignFacts, "align", chosen),
        )
        attempt = measured_attempt(chosen.spec, self.facts, chosen.base, candidate.attempt)
        pretrained = self.facts.pretrains.get(candidate.attempt)
        card = card_facts(self.inputs.name, chosen, attempt, pretrained, finished)
        final = self._final_model(chosen)
        recipe = by_adapters(chosen.spec, self.facts, candidate.attempt, candidate.id, final)
        return self._assess(
            publish_stage(chosen.spec, candidate.id, final, card, recipe=recipe, attempt=candidate.attempt)
        )

    def _published(self) -> StageAssessment:
        return StageAssessment(Fact.SUCCEEDED)

    # --- evaluations alongside the chain ---

    @property
    def _free_slots(self) -> int:
        return self.inputs.profile.max_parallel_evaluations - len(self._companions)

    def _companions_in(self, state: State) -> frozenset[StageKey]:
        awaited = {candidate.id for candidate in self._awaited}
        return companions_in(state, self.inputs, awaited, self._candidate_ids)

    def _due_alongside(self, state: State) -> tuple[StageAssessment, ...]:
        if not may_evaluate_alongside(state, self.inputs):
            return ()
        return self._assess_evaluations(self._stage_inputs(), due(self.inputs.spec, self.candidates))

    def _assess_evaluations(
        self, inputs: StageInputs, wanted: tuple[Candidate, ...]
    ) -> tuple[StageAssessment, ...]:
        ledger = self.inputs.ledger
        companions = self._companions | ledger.open_work("pretrain") | ledger.open_work("blend")
        return assess_evaluations(self.inputs, inputs, wanted, companions)

    # --- parts of several states ---

    def _assess(self, stage: StagePlan) -> StageAssessment:
        return assess_stage(self.inputs, stage, self._companions)

    def _assess_training(
        self, record: RunRecord | None, full: Batch, stage: Callable[[Batch], StagePlan]
    ) -> StageAssessment:
        """Assess a stage that trains, with the micro-batch halved as often as it ran out of memory."""
        batch = halved(full, record.halvings) if record is not None else full
        planned = stage(batch or with_smallest_micro_batch(full))
        assessment = self._assess(planned)
        # Once the user has changed the spec, perhaps for more memory, the smallest micro-batch is tried again.
        if batch is not None or record is None or record.generation != self.inputs.generation:
            return assessment
        is_in_vain = record.cause == Cause.OUT_OF_MEMORY and assessment.fact in RETRIES_AHEAD
        return exhausted(self.inputs, planned, record) if is_in_vain else assessment

    def _tuned_model(self, chosen: Chosen) -> ModelReference:
        """Return the fine-tuned model; the chosen one where nothing was fine-tuned."""
        tuned = self._facts_of_chosen(FinetuneFacts, "finetune", chosen)
        return chosen.candidate.model if chosen.spec.finetuning is None or tuned is None else tuned.model

    def _final_model(self, chosen: Chosen) -> ModelReference:
        """Return the last model of the chain."""
        aligned = self._facts_of_chosen(AlignFacts, "align", chosen)
        if chosen.spec.preference is None or aligned is None:
            return self._tuned_model(chosen)
        return aligned.model

    def _facts_of_chosen(self, facts_type: type[SomeFacts], stage: str, chosen: Chosen) -> SomeFacts | None:
        """Return what a stage has reported about the chosen candidate; None before it has finished."""
        return self.inputs.ledger.facts(facts_type, stage, chosen.candidate.attempt, chosen.candidate.id)
