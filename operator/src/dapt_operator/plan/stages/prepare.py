"""Spec, profile and the facts of finished stages -> the configuration and resources of every stage.

One function a stage. What a configuration needs of an earlier stage is an argument, so that nothing can be planned
before it is known.
"""

from __future__ import annotations

from dapt_contract.stages.prepare import (
    InstructionSource,
    PreferenceInput,
    PrepareConfig,
    TrainingLength,
)
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.sizing import resolve
from dapt_operator.plan.sizing.resolve import (
    MAX_CHECKPOINTS,
)
from dapt_operator.plan.stages import common
from dapt_operator.plan.stages.stage_plan import StagePlan


def prepare_stage(spec: DomainAdaptationSpec) -> StagePlan:
    """All reading of hubs and object stores."""
    corpus = spec.corpus
    tuning = spec.finetuning.data if spec.finetuning else ()
    preferred = spec.preference.data if spec.preference else ()
    budget = spec.pretraining.budget
    config = PrepareConfig(
        model_source=spec.model.source,
        domain=tuple(common.text_source(source) for source in corpus.domain),
        general=tuple(common.text_source(source) for source in corpus.general),
        held_out_fraction=corpus.held_out.fraction,
        held_out_max_tokens=corpus.held_out.max_tokens,
        training=TrainingLength(
            tokens=budget.tokens,
            steps=budget.steps,
            epochs=budget.epochs,
            checkpoints=spec.pretraining.checkpoints.count,
        ),
        sequence_length_tokens=corpus.sequence_length,
        document_boundaries=corpus.packing.document_boundaries,
        deduplicate=corpus.deduplicate,
        decontaminate=corpus.decontaminate,
        bad_records_max_fraction=corpus.bad_records.max_fraction,
        instructions=tuple(InstructionSource(source=s.source, format=s.format) for s in tuning),
        preferences=tuple(PreferenceInput(source=s.source) for s in preferred),
        tokenizer_extension=resolve.tokenizer_extension(spec),
        tasks=common.tasks(spec),
        probes=common.probes(spec),
        evaluation_limit=spec.evaluation.limit,
        global_batch_size=spec.pretraining.global_batch_size,
        checkpoints_kept=min(
            spec.pretraining.checkpoints.count, spec.pretraining.budget.steps or MAX_CHECKPOINTS
        ),
        attempts=1 + (spec.gates.rollback.max_rollbacks if spec.gates.on_breach == "Rollback" else 0),
        trains_all_weights=spec.pretraining.method.lora is None,
        seed=spec.seed,
    )
    secrets = tuple(credential.secret_name for credential in spec.credentials if credential.use == "read")
    resources = common.one_process(spec, spec.stage_resources.prepare)
    claims = common.claims(common.sources(spec))
    return StagePlan("prepare", "prepare", 1, None, config, resources, secret_names=secrets, claims=claims)
