"""The facts of the model card; the card says nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dapt_contract.stages.align import AlignFacts
from dapt_contract.stages.finetune import FinetuneFacts
from dapt_contract.stages.pretrain import PretrainFacts
from dapt_contract.stages.publish import CardFacts, LearnedData
from dapt_contract.stages.tuning_data import TuningKind
from dapt_contract.stages.verify import VerifyFacts
from dapt_operator.api.v1alpha1.spec_training import Finetuning, Preference
from dapt_operator.plan.chain_parts.settled import Chosen
from dapt_operator.plan.gates import Verdict
from dapt_operator.plan.gates.verdict import WITHIN_NOISE
from dapt_operator.plan.stage_parts.attempts import Attempt
from dapt_operator.plan.stage_parts.stage_plan import TuningData
from dapt_operator.plan.stage_parts.tuning import num_records
from dapt_operator.plan.stages.tuning_data import current_warnings

NOT_FOR_DEPLOYMENT = (
    "This model had continued pre-training alone, no instruction tuning: it is not for deployment as it is."
)


@dataclass(frozen=True)
class FinishedModel:
    """What the stages after selection have reported about the finished model."""

    verified: VerifyFacts | None
    verdicts: tuple[Verdict, ...]
    """Verdicts on it, after verify."""
    finetuned: FinetuneFacts | None = None
    aligned: AlignFacts | None = None


def card_facts(
    name: str, chosen: Chosen, attempt: Attempt, pretrained: PretrainFacts | None, finished: FinishedModel
) -> CardFacts:
    """Return everything that the model card says.

    Args:
        name: of the adaptation.
        chosen: the candidate and what it was chosen by.
        attempt: that the candidate comes from.
        pretrained: what that attempt has reported.
        finished: what the stages after selection have reported.
    """
    spec, candidate, numbers = chosen.spec, chosen.candidate, chosen.numbers
    warnings = list(current_warnings(chosen))
    if spec.finetuning is None and spec.preference is None:
        warnings.append(NOT_FOR_DEPLOYMENT)
    warnings += _lost_to_length(finished.finetuned, finished.aligned)
    warnings += [
        verdict.message
        for verdict in (*candidate.verdicts, *finished.verdicts)
        if not verdict.passed or verdict.reason == WITHIN_NOISE
    ]
    tokens_per_step = numbers.batch.global_batch_size * numbers.sequence_length_tokens
    return CardFacts(
        adaptation=name,
        base_model=spec.model.source,
        base_revision=chosen.prepared.model.revision,
        method="lora" if spec.pretraining.method.lora is not None else "full",
        learning_rate=attempt.learning_rate,
        replay_fraction=attempt.replay_fraction,
        training_tokens=_steps(attempt, pretrained, candidate.step) * tokens_per_step,
        domain_sources=tuple(source.source for source in spec.corpus.domain),
        general_sources=tuple(source.source for source in spec.corpus.general),
        candidate=candidate.id,
        selection_reason=chosen.selected.reason,
        fine_tuned=spec.finetuning is not None,
        sft_examples=finished.finetuned.examples if finished.finetuned else None,
        dpo_pairs=finished.aligned.pairs if finished.aligned else None,
        dpo_beta=spec.preference.beta if finished.aligned and spec.preference else None,
        tuning_data=tuple(_learned_data(chosen)),
        license=spec.output.license,
        language=tuple(dict.fromkeys(spec.output.language or ())),
        context_length_tokens=numbers.sequence_length_tokens,
        base=chosen.base,
        chosen=candidate.measure,
        final=finished.verified.final if finished.verified else None,
        warnings=tuple(warnings),
    )


def _learned_data(chosen: Chosen) -> Iterator[LearnedData]:
    """Yield the data of each tuning stage, with the digest of what the stage was given."""
    spec = chosen.spec
    if spec.finetuning is not None:
        yield _named("instructions", spec.finetuning, chosen.instructions)
    if spec.preference is not None:
        yield _named("preferences", spec.preference, chosen.preferences)


def _named(kind: TuningKind, block: Finetuning | Preference, data: TuningData | None) -> LearnedData:
    return LearnedData(
        kind=kind,
        sources=tuple(source.source for source in block.data),
        records=num_records(data),
        digest=data.content_digest if data is not None else None,
    )


def _lost_to_length(finetuned: FinetuneFacts | None, aligned: AlignFacts | None) -> list[str]:
    """Return what tuning did not learn from, or not whole."""
    lost = []
    if finetuned is not None and finetuned.dropped_examples:
        num_examples = finetuned.examples + finetuned.dropped_examples
        lost.append(
            f"fine-tuning left out {finetuned.dropped_examples:,} of {num_examples:,} examples: no token of their"
            " responses lies within finetuning.sequenceLength"
        )
    if finetuned is not None and finetuned.cut_examples:
        lost.append(
            f"fine-tuning cut {finetuned.cut_examples:,} of {finetuned.examples:,} examples at"
            " finetuning.sequenceLength"
        )
    if aligned is not None and aligned.dropped_pairs:
        num_pairs = aligned.pairs + aligned.dropped_pairs
        lost.append(
            f"preference tuning left out {aligned.dropped_pairs:,} of {num_pairs:,} pairs: their prompts leave no room"
            " for an answer within the sequence length"
        )
    if aligned is not None and aligned.cut_pairs:
        lost.append(
            f"preference tuning cut answers of {aligned.cut_pairs:,} of {aligned.pairs:,} pairs at the sequence length"
        )
    return lost


def _steps(attempt: Attempt, pretrained: PretrainFacts | None, step: int | None) -> int:
    """Return the optimizer steps on the way to a candidate; of a blend, to the last checkpoint of its attempt."""
    checkpoints = pretrained.checkpoints if pretrained is not None else ()
    last_step = checkpoints[-1].step if checkpoints else 0
    return attempt.steps_before + (last_step if step is None else step)
