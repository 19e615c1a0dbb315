"""The facts of the model card; the card says nothing else."""

from __future__ import annotations

from dapt_contract.metric import Measure
from dapt_contract.stages.evaluate import VerifyFacts
from dapt_contract.stages.publish import CardFacts
from dapt_operator.api.spec import DomainAdaptationSpec
from dapt_operator.plan.attempts import Attempt, attempt
from dapt_operator.plan.blueprint import Pretraining
from dapt_operator.plan.facts import Facts
from dapt_operator.plan.gates import Verdict
from dapt_operator.plan.selection import Selected

NOT_FOR_DEPLOYMENT = (
    "This model had continued pre-training alone, no instruction tuning: it is not for deployment as it is."
)


def card_facts(
    spec: DomainAdaptationSpec,
    name: str,
    facts: Facts,
    chosen: Selected,
    verified: VerifyFacts | None,
    numbers: Pretraining | None,
    verdicts: tuple[Verdict, ...],
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
        base=facts.base,
        chosen=chosen.candidate.measure,
        final=final,
        warnings=tuple(warnings),
    )


def _steps(facts: Facts, trained: Attempt, step: int | None) -> int:
    """Optimizer steps on the way to a candidate; of one that is made of several, to the last of its attempt."""
    told = facts.pretrains.get(trained.number)
    last = told.checkpoints[-1].step if told and told.checkpoints else 0
    return trained.steps_before + (last if step is None else step)
