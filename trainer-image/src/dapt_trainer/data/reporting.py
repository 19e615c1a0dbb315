"""What prepare says of its work: facts for the planner, the report for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dapt_contract.measure import Side
from dapt_contract.stages.prepare import (
    ModelFacts,
    PrepareConfig,
    PrepareFacts,
    PrepareReport,
    TokenizerFacts,
)
from dapt_trainer.data.choose_held_out import HeldOutChoice
from dapt_trainer.data.dedup.contamination import ContaminationIndex
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.move_into_place import data_digest, source_facts
from dapt_trainer.data.other_inputs import SIDES, EvaluationInputs
from dapt_trainer.data.pack_source import PackedSource
from dapt_trainer.data.spool import SpooledSource
from dapt_trainer.data.warnings import warnings_of

PERCENTILES = (0, 10, 25, 50, 75, 90, 100)


def check_size(
    packed: Sequence[PackedSource], sequence_length_tokens: int, global_batch_size: int, problems: Problems
) -> None:
    """Refuse a corpus smaller than one batch.

    Raises:
        InputError: there is any problem.
    """
    for side in SIDES:
        shards = [source.manifest for source in packed if source.manifest.side == side]
        sequences, tokens = sum(s.sequences for s in shards), sum(s.tokens for s in shards)
        least = global_batch_size if side == "domain" else 1
        if sequences < least:
            problems.add(
                f"spec.corpus.{side}: {tokens} training tokens make {sequences} sequence(s) of "
                f"{sequence_length_tokens} tokens, less than one batch of {least}; add text, or lower "
                "spec.pretraining.globalBatchSize or spec.corpus.sequenceLength"
            )
    problems.raise_if_any()


def report_of(
    config: PrepareConfig,
    folder: Path,
    model: ModelFacts,
    *,
    sequence_length_tokens: int,
    tokenizer: TokenizerFacts | None,
    evaluation: EvaluationInputs,
    index: ContaminationIndex,
    spooled: Sequence[SpooledSource],
    choices: Mapping[Side, HeldOutChoice],
    packed: Sequence[PackedSource],
    resolved: Sequence[tuple[str, str]],
    warnings: Sequence[str],
    seconds: Mapping[str, float],
) -> PrepareReport:
    """The whole report, when all files of the stage are written below `folder`."""
    sources = [
        source_facts(spool, pack, choices[spool.side]) for spool, pack in zip(spooled, packed, strict=True)
    ]
    near = [pack.near_duplicates for pack in packed]
    facts = PrepareFacts(
        model=model,
        sources=tuple(sources),
        sequence_length_tokens=sequence_length_tokens,
        domain_tokens=sum(source.train_tokens for source in sources if source.side == "domain"),
        general_tokens=sum(source.train_tokens for source in sources if source.side == "general"),
        instruction_examples=len(evaluation.instructions),
        preference_pairs=len(evaluation.preferences),
        near_duplicates=sum(spool.repeats for spool in spooled),
        tokenizer=tokenizer,
        task_items=tuple(evaluation.item_counts.items()),
        data_digest=data_digest(folder, [pack.manifest for pack in packed], sequence_length_tokens),
        warnings=warnings_of(
            model,
            sources,
            spooled,
            near,
            trains_all_weights=config.trains_all_weights,
            too_short_items=index.too_short,
        )
        + tuple(warnings),
    )
    by_task = {task: sum(spool.counts.contaminated_by[task] for spool in spooled) for task in index.tasks}
    return PrepareReport(
        facts=facts,
        resolved_sources=tuple(resolved),
        contamination_by_task=tuple(by_task.items()),
        near_duplicates_by_source=tuple(
            (spool.name, count) for spool, count in zip(spooled, near, strict=True)
        ),
        repeats_by_source=tuple((spool.name, spool.repeats) for spool in spooled)
        if config.deduplicate == "near"
        else (),
        languages_by_source=tuple(
            (spool.name, tuple(spool.counts.languages.documents.most_common(10))) for spool in spooled
        ),
        lengths_by_source=tuple((spool.name, lengths(spool)) for spool in spooled),
        seconds_by_step=tuple((name, round(value, 3)) for name, value in seconds.items()),
    )


def lengths(spool: SpooledSource) -> tuple[int, ...]:
    """Tokens of a source's documents at `PERCENTILES`, special ones included; empty when it has none."""
    counts = spool.token_counts if spool.later is None else spool.token_counts[~spool.later]
    if not len(counts):
        return ()
    return tuple(int(value) for value in np.percentile(counts, PERCENTILES, method="nearest"))
