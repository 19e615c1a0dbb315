"""Where the weights of candidates lie, and how averages and interpolations are made of them."""

from __future__ import annotations

import hashlib
import math
import re
from typing import Final

from dapt_contract.checkpoint import average_id, candidate_id, interpolation_id
from dapt_contract.layout import EXTENDED_MODEL, stage_folder
from dapt_contract.layout import MODEL as BASE_MODEL
from dapt_contract.measure import Measure
from dapt_contract.stages.blend import MAX_BLENDS, Blend, BlendRow
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.pretrain import CheckpointFacts
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.ledger.stage_facts import Facts
from dapt_operator.plan.sizing import resolve
from dapt_operator.remembered import remembered

_CACHED_LEDGERS: Final = 16
_CHECKPOINT_ID: Final = re.compile(r"a(\d+)-s(\d+)")


def origin(spec: DomainAdaptationSpec) -> str:
    """Return the folder of the weights that pretraining starts from: the base model, extended where the tokenizer
    grows."""
    return BASE_MODEL if resolve.tokenizer_extension(spec) is None else EXTENDED_MODEL


def is_finite(row: CheckpointFacts | BlendRow) -> bool:
    """Whether every loss of a row is a number: weights after a divergence are no candidate and no part of one."""
    losses = (row.domain_a_nats, row.domain_b_nats, row.general_a_nats, row.general_b_nats)
    return all(math.isfinite(loss) for loss in losses)


def is_measurable(measure: Measure) -> bool:
    """Whether every loss of a measure is a number."""
    halves = (measure.domain.a, measure.domain.b, measure.general.a, measure.general.b)
    return all(math.isfinite(half.nll_nats) for half in halves)


def start_model(spec: DomainAdaptationSpec, facts: Facts, attempt: int) -> ModelReference:
    """Return the model that an attempt starts from: the base model, or the checkpoint that the rollback chose."""
    start = facts.attempts[attempt - 2].start if attempt > 1 else None
    checkpoint = _find_checkpoint(facts, start) if start is not None else None
    if checkpoint is None:
        return ModelReference(weights=origin(spec), origin=origin(spec))
    return checkpoint_model(spec, facts, *checkpoint)


def checkpoint_model(
    spec: DomainAdaptationSpec, facts: Facts, attempt: int, row: CheckpointFacts
) -> ModelReference:
    """Return a checkpoint's weights. With LoRA: the adapters of the attempts on the way to it, then its own."""
    folder = checkpoint_folder(attempt, row)
    if spec.pretraining.method.lora is None:
        return ModelReference(weights=folder, origin=origin(spec))
    earlier_adapters = start_model(spec, facts, attempt).adapters
    return ModelReference(weights=origin(spec), adapters=(*earlier_adapters, folder), origin=origin(spec))


def checkpoint_folder(attempt: int, row: CheckpointFacts) -> str:
    """Return the folder of a checkpoint, relative to the work volume."""
    return f"{stage_folder('pretrain', attempt)}/try-{row.try_number}/checkpoint-{row.step}"


@remembered(_CACHED_LEDGERS)
def blends(spec: DomainAdaptationSpec, facts: Facts, attempt: int) -> tuple[Blend, ...]:
    """Return the averages and interpolations of an attempt that has ended.

    The mean of the last `averageLast` checkpoints; and for each share below 1 an interpolation with the base model of
    the last checkpoint, of the one with the largest gain on half A, and of the mean.
    """
    pretrain_facts = facts.pretrains.get(attempt)
    rows = [row for row in pretrain_facts.checkpoints if is_finite(row)] if pretrain_facts else []
    if not rows:
        return ()
    # With the step, so that equal losses give the same checkpoint in every reconcile.
    best = min(rows, key=lambda row: (row.domain_a_nats, row.step))
    sources = {
        candidate_id(attempt, row.step): checkpoint_model(spec, facts, attempt, row)
        for row in (rows[-1], best)
    }
    averages: list[Blend] = []
    averaged_rows = rows[-spec.selection.average_last :]
    if len(averaged_rows) > 1:
        *others, newest = (checkpoint_model(spec, facts, attempt, row) for row in averaged_rows)
        average = Blend(candidate=average_id(attempt, len(averaged_rows)), model=newest.averaged(others))
        averages.append(average)
        sources[average.candidate] = average.model
    interpolations = [
        Blend(candidate=interpolation_id(name, share), model=model.interpolated(share))
        for name, model in sources.items()
        for share in spec.selection.interpolate
        if share < 1.0
    ]
    return (*averages, *interpolations)[:MAX_BLENDS]


def blend_model(spec: DomainAdaptationSpec, facts: Facts, blend: Blend) -> ModelReference:
    """Return a measured blend: its folder where that stayed on the volume, else its recipe."""
    folder = facts.blend_folders.get(blend.candidate)
    return blend.model if folder is None else ModelReference(weights=folder, origin=origin(spec))


def by_adapters(
    spec: DomainAdaptationSpec, facts: Facts, attempt: int, candidate: str, final: ModelReference
) -> ModelReference:
    """Return the recipe of the last model in which a blend stands as what it is made of, not as its folder."""
    recipes = (blend.model for blend in blends(spec, facts, attempt) if blend.candidate == candidate)
    blend = next(recipes, None)
    return final if blend is None else blend.model_copy(update={"tuned": final.tuned})


def round_name(unmeasured: tuple[Blend, ...]) -> str:
    """Return the name of a further blend run of an attempt, by what it measures."""
    text = " ".join(blend.candidate for blend in unmeasured)
    return f"more-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _find_checkpoint(facts: Facts, candidate: str) -> tuple[int, CheckpointFacts] | None:
    """Return attempt and row of a checkpoint by its id; None where no such checkpoint is known."""
    match = _CHECKPOINT_ID.fullmatch(candidate)
    if match is None:
        return None
    attempt, step = int(match[1]), int(match[2])
    pretrain_facts = facts.pretrains.get(attempt)
    rows = pretrain_facts.checkpoints if pretrain_facts else ()
    row = next((row for row in rows if row.step == step), None)
    return (attempt, row) if row is not None else None
