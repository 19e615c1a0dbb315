"""Where the weights of candidates lie, and how averages and interpolations are made of them."""

from __future__ import annotations

import hashlib
import math
import re
from typing import Final

from dapt_contract.checkpoint import average_id, candidate_id, interpolation_id
from dapt_contract.layout import EXTENDED_MODEL, STAGES
from dapt_contract.layout import MODEL as BASE_MODEL
from dapt_contract.measure import Measure
from dapt_contract.stages.blend import Blend, BlendRow
from dapt_contract.stages.common import Member, ModelReference
from dapt_contract.stages.pretrain import CheckpointFacts
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.ledger.stage_facts import Facts
from dapt_operator.plan.sizing import resolve

MAX_BLENDS: Final = 30
"""One blend run measures no more."""
_CHECKPOINT = re.compile(r"a(\d+)-s(\d+)")


def origin(spec: DomainAdaptationSpec) -> str:
    """Folder of the weights that pretraining starts from: the base model, extended where the tokenizer grows."""
    return BASE_MODEL if resolve.tokenizer_extension(spec) is None else EXTENDED_MODEL


def is_finite(row: CheckpointFacts | BlendRow) -> bool:
    """Whether every loss of a row is a number: weights after a divergence are no candidate and no part of one."""
    losses = (row.domain_a_nats, row.domain_b_nats, row.general_a_nats, row.general_b_nats)
    return all(math.isfinite(loss) for loss in losses)


def is_measurable(measure: Measure) -> bool:
    """The same of a measure."""
    sides = (measure.domain.a, measure.domain.b, measure.general.a, measure.general.b)
    return all(math.isfinite(half.nll_nats) for half in sides)


def checkpoint_row(facts: Facts, candidate: str) -> tuple[int, CheckpointFacts] | None:
    """Attempt and row of a checkpoint by its id; None for what is no known checkpoint."""
    found = _CHECKPOINT.fullmatch(candidate)
    if found is None:
        return None
    attempt, step = int(found[1]), int(found[2])
    told = facts.pretrains.get(attempt)
    row = next((row for row in told.checkpoints if row.step == step), None) if told else None
    return (attempt, row) if row is not None else None


def start_model(spec: DomainAdaptationSpec, facts: Facts, attempt: int) -> ModelReference:
    """What an attempt starts from: the base model, or the checkpoint that the rollback chose."""
    start = facts.attempts[attempt - 2].start if attempt > 1 else None
    found = checkpoint_row(facts, start) if start is not None else None
    if found is None:
        return ModelReference(weights=origin(spec), origin=origin(spec))
    return checkpoint_model(spec, facts, *found)


def checkpoint_model(
    spec: DomainAdaptationSpec, facts: Facts, attempt: int, row: CheckpointFacts
) -> ModelReference:
    """A checkpoint's weights. With LoRA: the adapters of the attempts on the way to it, then its own."""
    folder = f"{STAGES}/pretrain-a{attempt}/try-{row.try_number}/checkpoint-{row.step}"
    if spec.pretraining.method.lora is None:
        return ModelReference(weights=folder, origin=origin(spec))
    before = start_model(spec, facts, attempt).adapters
    return ModelReference(weights=origin(spec), adapters=(*before, folder), origin=origin(spec))


def blends(spec: DomainAdaptationSpec, facts: Facts, attempt: int) -> tuple[Blend, ...]:
    """Averages and interpolations of an attempt that has ended.

    The mean of the last `averageLast` checkpoints; and for each share below 1 an interpolation with the base model of
    the last checkpoint, of the one with the largest gain on half A, and of the mean.
    """
    told = facts.pretrains.get(attempt)
    rows = [row for row in told.checkpoints if is_finite(row)] if told else []
    if not rows:
        return ()
    best = min(rows, key=lambda row: (row.domain_a_nats, row.step))
    sources = {
        candidate_id(attempt, row.step): checkpoint_model(spec, facts, attempt, row)
        for row in (rows[-1], best)
    }
    found: list[Blend] = []
    last = rows[-spec.selection.average_last :]
    if len(last) > 1:
        members = [checkpoint_model(spec, facts, attempt, row) for row in last]
        mean = members[-1].model_copy(
            update={
                "averaged_with": tuple(Member(weights=m.weights, adapters=m.adapters) for m in members[:-1])
            }
        )
        found.append(Blend(candidate=average_id(attempt, len(last)), model=mean))
        sources[found[0].candidate] = mean
    found += [
        Blend(
            candidate=interpolation_id(name, share), model=model.model_copy(update={"interpolation": share})
        )
        for name, model in sources.items()
        for share in spec.selection.interpolate
        if share < 1.0
    ]
    return tuple(found[:MAX_BLENDS])


def round_name(wanted: tuple[Blend, ...]) -> str:
    """Names a further blend run of an attempt by what it measures."""
    text = " ".join(blend.candidate for blend in wanted)
    return f"more-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
