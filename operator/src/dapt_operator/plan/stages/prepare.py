"""Plans prepare, which does all reading of hubs and object stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from dapt_contract.stages.prepare import PrepareConfig, TextSource, TrainingLength
from dapt_operator.api.quantity import parse_quantity
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.spec_corpus import Source
from dapt_operator.plan.observed import NO_CONTENTS
from dapt_operator.plan.sizing import resolve
from dapt_operator.plan.sizing.batch_size import smallest_pretraining_batch
from dapt_operator.plan.stage_parts import common
from dapt_operator.plan.stage_parts.addresses import claims, sources
from dapt_operator.plan.stage_parts.stage_plan import StagePlan, cpu_resources, secret_names
from dapt_operator.plan.stages.tuning_data import tuning_data_configs
from dapt_operator.remembered import remembered
from dapt_operator.stage_run import RunResources

_CACHED_PLANS: Final = 64


def prepare_stage(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    contents: Mapping[str, str] = NO_CONTENTS,
    *,
    may_follow: bool = True,
) -> StagePlan:
    """Return the plan of prepare; it needs no earlier stage.

    Args:
        spec: the desired spec.
        profile: its profile.
        contents: digest of the files of a source, for sources on the machine that plans.
        may_follow: whether an edit of what it reads makes it run again; not once the base model is measured.
    """
    return _plan(spec, profile, contents, may_follow)


# Every reconcile compares what prepare has read with what it would read now; only an edit changes that.
@remembered(_CACHED_PLANS)
def _plan(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    contents: Mapping[str, str],
    may_follow: bool,
) -> StagePlan:
    corpus, budget = spec.corpus, spec.pretraining.budget
    num_checkpoints = spec.pretraining.checkpoints.count
    tasks, probes = common.tasks(spec), common.probes(spec)
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
        tuning_data=tuning_data_configs(spec, contents),
        tokenizer_extension=resolve.tokenizer_extension(spec),
        tasks=tasks,
        probes=probes,
        evaluation_limit=spec.evaluation.limit,
        evaluation_content=common.content(common.item_sources(tasks, probes), contents),
        global_batch_size=smallest_pretraining_batch(spec, resolve.pretrain_layout(spec, profile).world_size),
        checkpoints_kept=min(num_checkpoints, budget.steps or num_checkpoints),
        attempts=1 + (spec.gates.rollback.max_rollbacks if spec.gates.on_breach == "Rollback" else 0),
        trains_all_weights=spec.pretraining.method.lora is None,
        lora=resolve.pretraining_lora(spec),
        precision=resolve.training_precision(spec, profile),
        seed=spec.seed,
        memory_bytes=int(parse_quantity(memory)) if (memory := _resources(spec).memory) else None,
    )
    return StagePlan(
        kind="prepare",
        config=config,
        resources=_resources(spec),
        secret_names=secret_names(spec, "read"),
        claims=claims(sources(spec)),
        inputs_digest=config.inputs_digest,
        follows_inputs=may_follow,
    )


def _resources(spec: DomainAdaptationSpec) -> RunResources:
    own = spec.stage_resources.prepare
    return replace(cpu_resources(spec, own), nodes=(own.nodes if own else None) or 1)


def _text_source(source: Source) -> TextSource:
    return TextSource(
        source=source.source, text_field=source.text_field, weight=source.weight, max_tokens=source.max_tokens
    )
