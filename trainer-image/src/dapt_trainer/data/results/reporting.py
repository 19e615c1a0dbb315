"""Computes what prepare reports: facts for the planner, and details for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dapt_contract.stages.prepare import (
    ModelFacts,
    PrepareConfig,
    PrepareFacts,
    PrepareReport,
    SourceFacts,
    TokenizerFacts,
    source_label,
)
from dapt_contract.stages.tuning_data import TuningDataFacts
from dapt_trainer.data.choose_held_out import Corpus, HeldOutChoice
from dapt_trainer.data.dedup.contamination import ContaminationIndex
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.pack_source import PackedSource
from dapt_trainer.data.packing.data_manifest import ShardManifest
from dapt_trainer.data.results.warnings import SourceFindings, warnings_of
from dapt_trainer.data.slices.cut import CorpusSource
from dapt_trainer.data.slices.spooled_source import SpooledSource
from dapt_trainer.data.stage_inputs import SIDES, EvaluationInputs

PERCENTILES = (0, 10, 25, 50, 75, 90, 100)
_MAX_LANGUAGES = 10


@dataclass
class RunNotes:
    """Collects what a run notes for its report."""

    resolved: list[tuple[str, str]] = field(default_factory=list)
    """(URI as written, URI as resolved)."""
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """Duration of each step."""
    tokenizer: TokenizerFacts | None = None
    """What the extension of the tokenizer saved; None without one."""

    def add_sources(self, sources: Sequence[CorpusSource]) -> None:
        """Note which files the sources have, and warn of those that have a second name."""
        for source in sources:
            self.resolved.append((source.config.source, source.files.resolved))
            self.warnings += [
                f"{source_label(source.side, source.index)}: {note}." for note in source.files.notes
            ]


@dataclass(frozen=True)
class PreparedData:
    """Holds everything that prepare made, before it is reported."""

    model: ModelFacts
    sequence_length_tokens: int
    evaluation: EvaluationInputs
    tuning_data: tuple[TuningDataFacts, ...]
    contamination: ContaminationIndex
    corpus: Corpus
    packed: list[PackedSource]
    """One for each source of the corpus, in its order."""

    @property
    def shards(self) -> tuple[ShardManifest, ...]:
        """Return the manifests of all shards."""
        return tuple(source.manifest for source in self.packed)


def check_size(
    packed: Sequence[PackedSource], sequence_length_tokens: int, global_batch_size: int, problems: Problems
) -> None:
    """Refuse a corpus smaller than one batch.

    Raises:
        InputError: there is any problem.
    """
    for side in SIDES:
        shards = [source.manifest for source in packed if source.manifest.side == side]
        sequences, tokens = sum(shard.sequences for shard in shards), sum(shard.tokens for shard in shards)
        min_sequences = global_batch_size if side == "domain" else 1
        if sequences < min_sequences:
            problems.add(
                f"spec.corpus.{side}: {tokens} training tokens make {sequences} sequence(s) of "
                f"{sequence_length_tokens} tokens, less than one batch of {min_sequences}; add text, or lower "
                "spec.pretraining.globalBatchSize or spec.corpus.sequenceLength"
            )
    problems.raise_if_any()


def report_of(config: PrepareConfig, data: PreparedData, notes: RunNotes) -> PrepareReport:
    """Return the report of a run, without the digest of the data: `DataManifest.with_digest` adds it.

    Args:
        config: of the run.
        data: what the run made.
        notes: taken during the run.
    """
    spooled, packed = data.corpus.spooled, data.packed
    sources = [
        source_facts(spool, pack, data.corpus.choices[spool.side])
        for spool, pack in zip(spooled, packed, strict=True)
    ]
    near_duplicates = [pack.near_duplicates for pack in packed]
    data_warnings = warnings_of(
        data.model,
        sources,
        [
            SourceFindings(spool, pack.near_duplicates, pack.contained, data.corpus.shared.get(spool.name, 0))
            for spool, pack in zip(spooled, packed, strict=True)
        ],
        trains_all_weights=config.trains_all_weights,
        too_short_items=data.contamination.too_short,
        token_limits={
            side: choice.token_limit
            for side, choice in data.corpus.choices.items()
            if choice.token_limit is not None
        },
    )
    facts = PrepareFacts(
        model=data.model,
        sources=tuple(sources),
        sequence_length_tokens=data.sequence_length_tokens,
        domain_tokens=sum(source.train_tokens for source in sources if source.side == "domain"),
        general_tokens=sum(source.train_tokens for source in sources if source.side == "general"),
        instruction_examples=sum(facts.records for facts in data.tuning_data if facts.kind == "instructions"),
        preference_pairs=sum(facts.records for facts in data.tuning_data if facts.kind == "preferences"),
        near_duplicates=sum(spool.repeats for spool in spooled),
        tokenizer=notes.tokenizer,
        task_items=tuple(data.evaluation.item_counts.items()),
        data_digest="",
        tuning_data=data.tuning_data,
        warnings=(*data_warnings, *notes.warnings),
    )
    by_task = {
        task: sum(spool.counts.contaminated_by[task] for spool in spooled)
        for task in data.contamination.tasks
    }
    return PrepareReport(
        facts=facts,
        resolved_sources=tuple(notes.resolved),
        contamination_by_task=tuple(by_task.items()),
        near_duplicates_by_source=tuple(
            (spool.name, count) for spool, count in zip(spooled, near_duplicates, strict=True)
        ),
        contained_by_source=tuple(
            (spool.name, pack.contained) for spool, pack in zip(spooled, packed, strict=True)
        ),
        shared_by_source=tuple(data.corpus.shared.items()),
        repeats_by_source=tuple((spool.name, spool.repeats) for spool in spooled)
        if config.deduplicate == "near"
        else (),
        languages_by_source=tuple(
            (spool.name, tuple(spool.counts.languages.documents.most_common(_MAX_LANGUAGES)))
            for spool in spooled
        ),
        lengths_by_source=tuple((spool.name, lengths(spool)) for spool in spooled),
        seconds_by_step=tuple((name, round(value, 3)) for name, value in notes.seconds.items()),
    )


def source_facts(spool: SpooledSource, packed: PackedSource, choice: HeldOutChoice) -> SourceFacts:
    """Return what the planner reads of one source."""
    held_out = [tokens for candidate, tokens in choice.chosen if candidate.source == spool.index]
    shard, counts = packed.manifest, spool.counts
    return SourceFacts(
        side=spool.side,
        index=spool.index,
        documents=shard.documents,
        train_tokens=shard.tokens,
        sequences=shard.sequences,
        duplicates=counts.duplicates + spool.repeats,
        contaminated=counts.contaminated,
        empty=counts.empty,
        bad_records=counts.bad_records,
        held_out_documents=len(held_out),
        held_out_tokens=sum(held_out),
        cut_documents=shard.cut_documents,
        fill_fraction=shard.filled_positions / max(1, shard.positions),
        weight=spool.config.weight,
    )


def lengths(spool: SpooledSource) -> tuple[int, ...]:
    """Return the tokens of a source's documents at `PERCENTILES`, special ones included; empty without documents."""
    counts = spool.token_counts if spool.is_repeat is None else spool.token_counts[~spool.is_repeat]
    if not len(counts):
        return ()
    return tuple(int(value) for value in np.percentile(counts, PERCENTILES, method="nearest"))
