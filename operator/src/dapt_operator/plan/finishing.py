"""The stages after selection: fine-tuning, preference tuning, verification, publication.

Like those before it (`blueprint`), one function a stage; what a configuration needs of an earlier stage is an argument.
"""

from __future__ import annotations

from dapt_contract.layout import STAGES
from dapt_contract.stages.align import AlignConfig
from dapt_contract.stages.common import LoraConfig, ModelReference
from dapt_contract.stages.evaluate import NamedModel, VerifyConfig
from dapt_contract.stages.finetune import FinetuneConfig
from dapt_contract.stages.prepare import PrepareFacts
from dapt_contract.stages.publish import CardFacts, PublishConfig
from dapt_operator.api.profile import AdaptationProfileSpec
from dapt_operator.api.spec import DomainAdaptationSpec
from dapt_operator.api.spec_training import Finetuning, Preference
from dapt_operator.plan import parts
from dapt_operator.plan.blueprint import BASE_REFERENCE, BASELINE_LINEAGE, StagePlan
from dapt_operator.plan.growth import grown_model
from dapt_operator.plan.resolve import (
    Batch,
    Gang,
    align_gang,
    finetune_gang,
    fit_batch,
    halved,
    learning_rate,
    lora_config,
    preference_learning_rate,
)


def finetune_stage(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    prepared: PrepareFacts,
    candidate: str,
    model: ModelReference,
    *,
    attempt: int = 1,
    halvings: int = 0,
) -> StagePlan | None:
    """Supervised fine-tuning; None when the micro-batch cannot be halved as often as that.

    Raises:
        RefusedError: as `resolve_pretraining`.
    """
    tuning = spec.finetuning
    assert tuning is not None
    gang = finetune_gang(spec, profile)
    length = min(tuning.sequence_length or prepared.sequence_length_tokens, prepared.model.max_positions)
    lora = lora_config(tuning.method)
    batch = _batch(
        spec,
        profile,
        prepared,
        gang,
        "finetuning",
        tuning,
        lora,
        sequence_length_tokens=length,
        halvings=halvings,
    )
    if batch is None:
        return None
    config = FinetuneConfig(
        model=model,
        lora=lora,
        epochs=tuning.budget.epochs,
        total_steps=tuning.budget.steps,
        sequence_length_tokens=length,
        global_batch_size=batch.global_batch_size,
        micro_batch_size=batch.micro_batch_size,
        optimizer=parts.optimizer(
            tuning.optimizer, learning_rate(tuning.method, tuning.optimizer.learning_rate)
        ),
        schedule=parts.schedule(tuning.schedule),
        distribution=parts.distribution(batch),
        seed=spec.seed,
    )
    return StagePlan(
        "finetune",
        "finetune",
        attempt,
        candidate,
        config,
        parts.gang_resources(gang, spec, spec.stage_resources.finetune),
        signs_checkpoints=True,
    )


def align_stage(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    prepared: PrepareFacts,
    candidate: str,
    model: ModelReference,
    *,
    attempt: int = 1,
    halvings: int = 0,
) -> StagePlan | None:
    """Preference tuning of the fine-tuned model; None when the micro-batch cannot be halved as often as that.

    Raises:
        RefusedError: as `resolve_pretraining`.
    """
    wish = spec.preference
    assert wish is not None
    gang = align_gang(spec, profile)
    length = prepared.sequence_length_tokens
    if spec.finetuning is not None and spec.finetuning.sequence_length is not None:
        length = min(spec.finetuning.sequence_length, prepared.model.max_positions)
    lora = lora_config(wish.method)
    batch = _batch(
        spec,
        profile,
        prepared,
        gang,
        "preference",
        wish,
        lora,
        sequence_length_tokens=length,
        copies=2,
        halvings=halvings,
    )
    if batch is None:
        return None
    config = AlignConfig(
        model=model,
        beta=wish.beta,
        lora=lora,
        epochs=wish.epochs,
        sequence_length_tokens=length,
        global_batch_size=batch.global_batch_size,
        micro_batch_size=batch.micro_batch_size,
        optimizer=parts.optimizer(
            wish.optimizer, preference_learning_rate(wish.method, wish.optimizer.learning_rate)
        ),
        schedule=parts.schedule(wish.schedule),
        distribution=parts.distribution(batch),
        seed=spec.seed,
    )
    return StagePlan(
        "align",
        "align",
        attempt,
        candidate,
        config,
        parts.gang_resources(gang, spec, spec.stage_resources.align),
        signs_checkpoints=True,
    )


def _batch(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    prepared: PrepareFacts,
    gang: Gang,
    block: str,
    tuning: Finetuning | Preference,
    lora: LoraConfig | None,
    *,
    sequence_length_tokens: int,
    copies: int = 1,
    halvings: int,
) -> Batch | None:
    """A global batch that these ranks can share, by default pretraining's, and what of it fits into their memory.

    Args:
        block: of the spec, for messages.
        copies: sequences that one unit of the batch holds.
        halvings: how often the micro-batch ran out of memory; None comes back when it cannot be halved so often.
    """
    share = gang.world_size * (tuning.micro_batch_size or 1)
    shareable = max(1, spec.pretraining.global_batch_size // share) * share
    fitted = fit_batch(
        grown_model(prepared.model, spec, prepared.tokenizer),
        spec,
        profile,
        gang,
        stage=block,
        lora=lora,
        global_batch_size=tuning.global_batch_size or shareable,
        micro_batch_size=tuning.micro_batch_size,
        sequence_length_tokens=sequence_length_tokens,
        copies=copies,
    )
    return halved(fitted, halvings)


def verify_stage(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    prepared: PrepareFacts,
    candidate: str,
    chosen: ModelReference,
    final: ModelReference,
    *,
    finetuned: ModelReference | None = None,
    evaluated: bool,
    attempt: int = 1,
) -> StagePlan:
    """Compare base, chosen and final model; what was measured before is read again, not measured again.

    `finetuned` is the model between chosen and final, where preference tuning came after fine-tuning.
    """
    reuse = [("base", BASELINE_LINEAGE)]
    if evaluated:
        reuse.append(("chosen", f"{STAGES}/evaluate-a{attempt}-{candidate}"))
    config = VerifyConfig(
        models=(
            NamedModel(name="base", model=BASE_REFERENCE),
            NamedModel(name="chosen", model=chosen),
            *((NamedModel(name="finetuned", model=finetuned),) if finetuned is not None else ()),
            NamedModel(name="final", model=final),
        ),
        evaluation=parts.evaluation_config(spec, prepared),
        base_items_path=BASELINE_LINEAGE,
        reuse_paths=tuple(reuse),
    )
    return StagePlan("verify", "verify", attempt, candidate, config, parts.measuring(spec, profile, "verify"))


def publish_stage(
    spec: DomainAdaptationSpec, candidate: str, final: ModelReference, card: CardFacts, *, attempt: int = 1
) -> StagePlan:
    """Write the model to its destination."""
    config = PublishConfig(
        model=final,
        destination=spec.output.destination,
        run_digest=parts.run_digest(spec),
        model_card=spec.output.model_card,
        card=card,
    )
    secrets = tuple(credential.secret_name for credential in spec.credentials if credential.use == "write")
    resources = parts.one_process(spec, spec.stage_resources.publish)
    claims = parts.claims((spec.output.destination,))
    return StagePlan(
        "publish", "publish", attempt, candidate, config, resources, secret_names=secrets, claims=claims
    )
