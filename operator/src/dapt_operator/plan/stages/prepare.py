"""Plans prepare, which does all reading of hubs and object stores."""

from __future__ import annotations

from dapt_contract.stages.prepare import PrepareConfig, TextSource, TrainingLength
from dapt_contract.stages.tuning_data import InstructionSource, PreferenceInput
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.spec_corpus import Source
from dapt_operator.plan.sizing import resolve
from dapt_operator.plan.stages import common
from dapt_operator.plan.stages.stage_plan import StagePlan, claims, cpu_resources


def prepare_stage(spec: DomainAdaptationSpec, profile: AdaptationProfileSpec) -> StagePlan:
    """Return the plan of prepare; it needs no earlier stage."""
    corpus, budget = spec.corpus, spec.pretraining.budget
    num_checkpoints = spec.pretraining.checkpoints.count
    instructions = spec.finetuning.data if spec.finetuning else ()
    preferences = spec.preference.data if spec.preference else ()
    config = PrepareConfig(
        model_source=spec.model.source,
        domain=tuple(_text_source(source) for source in corpus.domain),
        general=tuple(_text_source(source) for source in corpus.general),
        held_out_fraction=corpus.held_out.fraction,
        held_out_max_tokens=corpus.held_out.max_tokens,
        training=TrainingLength(
            tokens=budget.tokens, steps=budget.steps, epochs=budget.epochs, checkpoints=num_checkpoints
        ),
        sequence_length_tokens=corpus.sequence_length,
        document_boundaries=corpus.packing.document_boundaries,
        deduplicate=corpus.deduplicate,
        decontaminate=corpus.decontaminate,
        bad_records_max_fraction=corpus.bad_records.max_fraction,
        instructions=tuple(InstructionSource(source=s.source, format=s.format) for s in instructions),
        preferences=tuple(PreferenceInput(source=s.source) for s in preferences),
        tokenizer_extension=resolve.tokenizer_extension(spec),
        tasks=common.tasks(spec),
        probes=common.probes(spec),
        evaluation_limit=spec.evaluation.limit,
        global_batch_size=spec.pretraining.global_batch_size,
        checkpoints_kept=min(num_checkpoints, budget.steps or num_checkpoints),
        attempts=1 + (spec.gates.rollback.max_rollbacks if spec.gates.on_breach == "Rollback" else 0),
        trains_all_weights=spec.pretraining.method.lora is None,
        lora=resolve.pretraining_lora(spec),
        precision=resolve.training_precision(spec, profile),
        seed=spec.seed,
    )
    return StagePlan(
        kind="prepare",
        config=config,
        resources=cpu_resources(spec, spec.stage_resources.prepare),
        secret_names=tuple(
            credential.secret_name for credential in spec.credentials if credential.use == "read"
        ),
        claims=claims(sources(spec)),
    )


def sources(spec: DomainAdaptationSpec) -> tuple[str, ...]:
    """Return the URI of everything that prepare reads."""
    evaluation = spec.evaluation
    tasks = (*evaluation.domain.tasks, *evaluation.general.tasks)
    probes = (*evaluation.probes.domain, *evaluation.probes.general)
    return (
        spec.model.source,
        *(source.source for source in (*spec.corpus.domain, *spec.corpus.general)),
        *(task.source for task in tasks if task.source is not None),
        *(probe.source for probe in probes),
        *(source.source for source in (spec.finetuning.data if spec.finetuning else ())),
        *(source.source for source in (spec.preference.data if spec.preference else ())),
    )


def _text_source(source: Source) -> TextSource:
    return TextSource(
        source=source.source, text_field=source.text_field, weight=source.weight, max_tokens=source.max_tokens
    )
