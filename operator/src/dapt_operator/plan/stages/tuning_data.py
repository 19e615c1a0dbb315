"""Plans tuning_data, which reads the examples of fine-tuning or the pairs of preference tuning after an edit.

`tuning_data_config` also renders what prepare reads of them, so that equal inputs have equal digests: what prepare has
read is not read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from dapt_contract.layout import INSTRUCTIONS, PREFERENCES
from dapt_contract.stages.common import TaskConfig
from dapt_contract.stages.prepare import PrepareFacts
from dapt_contract.stages.tuning_data import (
    FieldNames,
    InstructionSource,
    PreferenceInput,
    TuningDataConfig,
    TuningDataFacts,
    TuningKind,
    data_folder,
)
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.spec_training import Finetuning, Preference
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.plan.stage_parts import common
from dapt_operator.plan.stage_parts.addresses import claims
from dapt_operator.plan.stage_parts.stage_plan import (
    StageInputs,
    StagePlan,
    TuningData,
    cpu_resources,
    secret_names,
)
from dapt_operator.remembered import remembered

TUNING_KINDS: Final[tuple[TuningKind, ...]] = ("instructions", "preferences")
LEARNED_BY: Final[Mapping[TuningKind, str]] = {"instructions": "finetune", "preferences": "align"}
"""Kind of the stage that learns from the data."""
_CACHED_SPECS: Final = 64
_FIELDS: Final = {"instructions": "spec.finetuning", "preferences": "spec.preference"}
"""Field that sentences about the data begin with."""
_FOLDER_WITHOUT_DIGEST: Final[Mapping[TuningKind, str]] = {
    "instructions": INSTRUCTIONS,
    "preferences": PREFERENCES,
}


@remembered(_CACHED_SPECS)
def tuning_data_configs(
    spec: DomainAdaptationSpec, contents: Mapping[str, str]
) -> tuple[TuningDataConfig, ...]:
    """Return the configuration of every kind of tuning data that the spec has."""
    configs = (tuning_data_config(spec, kind, contents) for kind in TUNING_KINDS)
    return tuple(config for config in configs if config is not None)


def tuning_data_config(
    spec: DomainAdaptationSpec, kind: TuningKind, contents: Mapping[str, str]
) -> TuningDataConfig | None:
    """Return how one kind of tuning data is read; None where the spec has none.

    Args:
        spec: the desired spec.
        kind: of the data.
        contents: digest of the files of a source, for sources on the machine that plans.
    """
    block = _block(spec, kind)
    if block is None:
        return None
    # Without cleaning, the evaluation items are no part of the data's identity: an edit of them changes nothing.
    cleans = spec.corpus.decontaminate
    tasks = common.tasks(spec) if cleans else ()
    probes = common.probes(spec) if cleans else ()
    return TuningDataConfig(
        kind=kind,
        instructions=_instructions(block),
        preferences=_preferences(block),
        bad_records_max_fraction=block.bad_records.max_fraction,
        sequence_length_tokens=spec.finetuning.sequence_length if spec.finetuning is not None else None,
        decontaminate=cleans,
        tasks=_read_alike(tasks),
        probes=probes,
        evaluation_limit=spec.evaluation.limit if cleans else None,
        content=common.content(
            (*(source.source for source in block.data), *common.item_sources(tasks, probes)), contents
        ),
    )


def tuning_data_stage(spec: DomainAdaptationSpec, config: TuningDataConfig) -> StagePlan:
    """Return the plan of reading tuning data; each digest is work of its own, so that an edit is never overlooked."""
    sources = [source.source for source in config.instructions]
    sources += [source.source for source in config.preferences]
    items = common.item_sources(config.tasks, config.probes)
    return StagePlan(
        kind="tuning_data",
        candidate=f"{config.kind}-{config.digest}",
        config=config,
        resources=cpu_resources(spec, spec.stage_resources.prepare),
        secret_names=secret_names(spec, "read"),
        claims=claims((*sources, *items)),
    )


def tuning_data(config: TuningDataConfig, ledger: Ledger, prepared: PrepareFacts) -> TuningData:
    """Return the data that a tuning stage learns from.

    Until its stage has started, and once that has failed for good, that is the data of the present spec. Else it is the
    data that the stage was given: its block is frozen, and files that change on this machine change nothing any more.

    Args:
        config: of the present spec.
        ledger: with what was read and what was started.
        prepared: what prepare has read.
    """
    learner = LEARNED_BY[config.kind]
    is_freed = ledger.has_failed_for_good(learner)
    started = [
        record for record in ledger.runs if record.kind == learner and not record.discarded and not is_freed
    ]
    newest_first = sorted(started, key=lambda record: record.fence, reverse=True)
    given = next((record.expects for record in newest_first if record.expects is not None), None)
    if given is None and any(record.is_open or record.has_succeeded for record in started):
        return TuningData(_FOLDER_WITHOUT_DIGEST[config.kind])
    digest = given or config.digest
    facts = _read_facts(config.kind, digest, ledger, prepared)
    is_unread = given is None and facts is None
    return TuningData(data_folder(config.kind, digest), digest, facts, unread=config if is_unread else None)


def current_warnings(inputs: StageInputs) -> tuple[str, ...]:
    """Return what was found in the data that is used: not what prepare found in tuning data that was edited since."""
    prepared, warnings = inputs.prepared, list(inputs.prepared.warnings)
    for kind, data in (("instructions", inputs.instructions), ("preferences", inputs.preferences)):
        facts = data.facts if data is not None else None
        if facts is not None and facts in prepared.tuning_data:
            continue
        # From before the data had a digest: prepare's own sentences are about what is used.
        if data is not None and data.digest is None:
            continue
        warnings = [text for text in warnings if not text.startswith(f"{_FIELDS[kind]}.data")]
        warnings += facts.warnings if facts is not None else ()
    return tuple(warnings)


def _read_facts(
    kind: TuningKind, digest: str, ledger: Ledger, prepared: PrepareFacts
) -> TuningDataFacts | None:
    """Return what is known of the data with this digest; None while it was not read."""
    read = list(prepared.tuning_data)
    for record in ledger.runs:
        if record.kind == "tuning_data" and record.has_succeeded:
            facts = record.parsed_facts()
            read += [facts] if isinstance(facts, TuningDataFacts) else []
    return next((facts for facts in read if (facts.kind, facts.config_digest) == (kind, digest)), None)


def _block(spec: DomainAdaptationSpec, kind: TuningKind) -> Finetuning | Preference | None:
    return spec.finetuning if kind == "instructions" else spec.preference


def _instructions(block: Finetuning | Preference) -> tuple[InstructionSource, ...]:
    if not isinstance(block, Finetuning):
        return ()
    return tuple(
        InstructionSource(
            source=source.source,
            format=source.format,
            fields=FieldNames.model_validate(source.fields.model_dump()) if source.fields else None,
        )
        for source in block.data
    )


def _preferences(block: Finetuning | Preference) -> tuple[PreferenceInput, ...]:
    if not isinstance(block, Preference):
        return ()
    return tuple(
        PreferenceInput(
            source=source.source,
            fields=FieldNames.model_validate(source.fields.model_dump()) if source.fields else None,
        )
        for source in block.data
    )


def _read_alike(tasks: Iterable[TaskConfig]) -> tuple[TaskConfig, ...]:
    """Return the tasks without what only their measurement depends on: their items are the same."""
    return tuple(TaskConfig(name=task.name, side=task.side, source=task.source) for task in tasks)
