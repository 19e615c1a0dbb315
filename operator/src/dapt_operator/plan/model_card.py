"""The facts of the model card; the card says nothing else."""

from __future__ import annotations

from dapt_contract.measure import Measure
from dapt_contract.stages.align import AlignFacts
from dapt_contract.stages.finetune import FinetuneFacts
from dapt_contract.stages.publish import CardFacts
from dapt_contract.stages.verify import VerifyFacts
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.gates import Verdict
from dapt_operator.plan.ledger.stage_facts import Facts
from dapt_operator.plan.selection.choose import Selected
from dapt_operator.plan.stages.attempts import Attempt, attempt
from dapt_operator.plan.stages.pretrain import PretrainingPlan

NOT_FOR_DEPLOYMENT = (
    "This model had continued pre-training alone, no instruction tuning: it is not for deployment as it is."
)


def card_facts(
    spec: DomainAdaptationSpec,
    name: str,
    facts: Facts,
    chosen: Selected,
    verified: VerifyFacts | None,
    numbers: PretrainingPlan | None,
    verdicts: tuple[Verdict, ...],
    *,
    tuned: FinetuneFacts | None = None,
    aligned: AlignFacts | None = None,
) -> CardFacts:
    """Everything that the card tells, of finished stages."""
    assert facts.prepare is not None
    assert facts.base is not None
    assert numbers is not None
    trained = attempt(spec, facts, chosen.candidate.attempt)
    assert trained is not None
    final: Measure | None = verified.final if verified else None
    warnings = list(facts.prepare.warnings)
    if spec.finetuning is None and spec.preference is None:
        warnings.append(NOT_FOR_DEPLOYMENT)
    warnings += _lost_to_length(tuned, aligned)
    warnings += [
        verdict.message
        for verdict in (*chosen.candidate.verdicts, *verdicts)
        if not verdict.passed or verdict.reason == "WithinNoise"
    ]
    tokens_a_step = numbers.batch.global_batch_size * numbers.sequence_length_tokens
    return CardFacts(
        adaptation=name,
        base_model=spec.model.source,
        base_revision=facts.prepare.model.revision,
        method="lora" if spec.pretraining.method.lora is not None else "full",
        learning_rate=trained.learning_rate,
        replay_fraction=trained.replay_fraction,
        training_tokens=_steps(facts, trained, chosen.candidate.step) * tokens_a_step,
        domain_sources=tuple(source.source for source in spec.corpus.domain),
        general_sources=tuple(source.source for source in spec.corpus.general),
        candidate=chosen.candidate.id,
        selection_reason=chosen.reason,
        fine_tuned=spec.finetuning is not None,
        sft_examples=tuned.examples if tuned else None,
        dpo_pairs=aligned.pairs if aligned else None,
        dpo_beta=spec.preference.beta if aligned and spec.preference else None,
        base=facts.base,
        chosen=chosen.candidate.measure,
        final=final,
        warnings=tuple(warnings),
    )


def _lost_to_length(tuned: FinetuneFacts | None, aligned: AlignFacts | None) -> list[str]:
    """What tuning did not learn from, or not whole."""
    lost = []
    if tuned is not None and tuned.dropped_examples:
        found = tuned.examples + tuned.dropped_examples
        lost.append(
            f"fine-tuning left out {tuned.dropped_examples:,} of {found:,} examples: no token of their responses lies"
            " within finetuning.sequenceLength"
        )
    if tuned is not None and tuned.cut_examples:
        lost.append(
            f"fine-tuning cut {tuned.cut_examples:,} of {tuned.examples:,} examples at finetuning.sequenceLength"
        )
    if aligned is not None and aligned.dropped_pairs:
        found = aligned.pairs + aligned.dropped_pairs
        lost.append(
            f"preference tuning left out {aligned.dropped_pairs:,} of {found:,} pairs: their prompts leave no room for"
            " an answer within the sequence length"
        )
    if aligned is not None and aligned.cut_pairs:
        lost.append(
            f"preference tuning cut answers of {aligned.cut_pairs:,} of {aligned.pairs:,} pairs at the sequence length"
        )
    return lost


def _steps(facts: Facts, trained: Attempt, step: int | None) -> int:
    """Optimizer steps on the way to a candidate; of one that is made of several, to the last of its attempt."""
    told = facts.pretrains.get(trained.number)
    last = told.checkpoints[-1].step if told and told.checkpoints else 0
    return trained.steps_before + (last if step is None else step)
