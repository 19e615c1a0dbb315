"""Warnings before the money is spent, each one sentence with its numbers (docs/training.md, data guidance)."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Final

from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec, has_scores
from dapt_operator.number_format import count, plural
from dapt_operator.plan.sizing.batch_size import FEW_STEPS
from dapt_operator.plan.sizing.resolve import RankLayout, replay_by_shift, replay_within
from dapt_operator.significance import errors_that_are_real

MILLION: Final = 1_000_000
BILLION: Final = 1_000_000_000
SMALL_CORPUS_TOKENS: Final = 100 * MILLION
LARGE_CORPUS_TOKENS: Final = 10 * BILLION
MOST_PASSES: Final = 4.0
"""Beyond about four passes repeated tokens are worth little (Muennighoff et al. 2023)."""
MUCH_LESS: Final = 0.6
"""A replay fraction up to this share of what the measured shift calls for is warned about."""
CLEARLY_LESS: Final = 0.02
"""Replay by which the default is below what the recorded runs needed, so that it is worth a warning."""
USUAL_SPREAD_POINTS: Final = 39.0
"""Standard deviation of the differences item by item where 15 % of the answers change: the root of 0.15."""
POWER: Final = 0.8
"""Chance with which twice the limit should be noticed."""


@dataclass(frozen=True)
class WarningFacts:
    """What the warnings depend on; what is None is not known yet and not warned about."""

    model: ModelFacts | None = None
    domain_tokens: int | None = None
    general_tokens: int | None = None
    total_tokens: int | None = None
    """Tokens of the whole training, replay included."""
    replay_fraction: float | None = None
    shift_nats: float | None = None
    """`resolve.shift_nats`, a token."""
    items: Mapping[str, int] = field(default_factory=dict)
    """Items of the tasks of whose items the number is known, by name."""


def expectation(domain_tokens: int | None) -> str:
    """Return what a corpus of this size may bring, as published; empty where nothing was published."""
    if domain_tokens is None or not SMALL_CORPUS_TOKENS <= domain_tokens <= LARGE_CORPUS_TOKENS:
        return ""
    points = "8 to 15" if domain_tokens < BILLION else "15 to 25"
    return (
        f"with {count(domain_tokens)} domain tokens, {points} points on domain benchmarks are what published"
        " adaptations of such size report"
    )


def warnings(
    spec: DomainAdaptationSpec, profile: AdaptationProfileSpec, facts: WarningFacts
) -> tuple[str, ...]:
    """Return what to think about before the run starts."""
    found = [*_model(facts.model), *_corpus(spec, facts.domain_tokens), *_replay(spec, facts.shift_nats)]
    if facts.total_tokens is not None and facts.replay_fraction is not None:
        found += _passes(facts.domain_tokens, facts.total_tokens * (1.0 - facts.replay_fraction), "domain")
        found += _passes(facts.general_tokens, facts.total_tokens * facts.replay_fraction, "general")
    found += _items(spec, facts.items)
    if spec.finetuning is None:
        found.append(
            "no finetuning is asked for: a model after continued pre-training alone is not for deployment"
        )
    if spec.resources.nodes > 1 and not profile.storage.is_shared:
        found.append(
            f"{spec.resources.nodes} nodes need a work volume that many nodes can mount: give the profile's"
            " claimTemplate the access mode ReadWriteMany"
        )
    own = spec.stage_resources.prepare
    if own is not None and (own.nodes or 1) > 1 and not profile.storage.is_shared:
        found.append(
            f"{own.nodes} nodes of stageResources.prepare need a work volume that many nodes can mount: give the"
            " profile's claimTemplate the access mode ReadWriteMany, or remove stageResources.prepare.nodes"
        )
    return tuple(found)


def warnings_also_from_prepare(
    spec: DomainAdaptationSpec, model: ModelFacts | None, domain_tokens: int | None
) -> tuple[str, ...]:
    """Return those of `warnings` that prepare reports too, in its own sentences from the data itself."""
    is_small = domain_tokens is not None and domain_tokens < SMALL_CORPUS_TOKENS
    return (*_model(model), *(_corpus(spec, domain_tokens) if is_small else ()))


def few_steps_warnings(
    steps_by_block: Mapping[str, int | None], at_most: Container[str] = ()
) -> tuple[str, ...]:
    """Return a warning for each training that is too short for its learning rate to rise and fall.

    Args:
        steps_by_block: optimizer steps by block of the spec; None: not known.
        at_most: blocks whose steps are an upper bound.
    """
    return tuple(
        f"{block} has {'at most ' if block in at_most else ''}{plural(steps, 'optimizer step')}, under {FEW_STEPS}:"
        " too few for the learning rate to rise and fall; use more data or passes, or a smaller"
        f" {block}.globalBatchSize"
        for block, steps in steps_by_block.items()
        if steps is not None and steps < FEW_STEPS
    )


def sequence_warnings(spec: DomainAdaptationSpec, layout: RankLayout) -> tuple[str, ...]:
    """Return a warning where ranks of different nodes share a sequence: that works, over the network."""
    ranks = spec.pretraining.distribution.sequence_parallel or 1
    per_node = layout.processes_per_node
    if layout.nodes == 1 or per_node % ranks == 0:
        return ()
    return (
        f"spec.pretraining.distribution.sequenceParallel is {ranks} on nodes of {per_node}: ranks of different nodes"
        " share a sequence, and attention exchanges its heads over the network in every layer; a divisor of"
        f" {per_node} keeps that on the links of a node",
    )


def volume_warnings(spec: DomainAdaptationSpec, profile: AdaptationProfileSpec) -> tuple[str, ...]:
    """Return a warning when the work volume keeps evaluations from running in parallel with pretraining."""
    if spec.evaluation.when == "end" or not has_scores(spec) or profile.storage.is_shared:
        return ()
    return (
        f"the profile's work volume ({', '.join(profile.storage.access_modes)}) can be mounted by one node alone:"
        " evaluations run after pretraining, one at a time, not in parallel with it; a ReadWriteMany volume lets them"
        " run in parallel",
    )


def _model(model: ModelFacts | None) -> Iterator[str]:
    if model is not None and model.has_chat_template:
        yield (
            "the base model has a chat template, so it was tuned on instructions: continued pre-training costs it"
            " much of its chat ability (MT-Bench 7.9 to about 1 in FinDAP); prefer the base model of the same family"
        )


def _corpus(spec: DomainAdaptationSpec, domain_tokens: int | None) -> Iterator[str]:
    if domain_tokens is None:
        return
    is_full = spec.pretraining.method.lora is None
    if domain_tokens < SMALL_CORPUS_TOKENS:
        also = ", and train with lora instead of full" if is_full else ""
        yield (
            f"the domain corpus has {count(domain_tokens)} tokens, under 100 M: consider retrieval or fine-tuning"
            f" instead{also}"
        )
    elif domain_tokens < BILLION and is_full:
        yield (
            f"the domain corpus has {count(domain_tokens)} tokens, under 1 B: full training forgets more than lora"
            " on so little; watch the general perplexity"
        )
    elif domain_tokens >= BILLION and not is_full:
        yield (
            f"the domain corpus has {count(domain_tokens)} tokens, over 1 B: full training learns more from so much"
            " than lora (Biderman et al. 2024); lora forgets less"
        )
    if domain_tokens > LARGE_CORPUS_TOKENS:
        yield f"the domain corpus has {count(domain_tokens)} tokens, over 10 B: watch for repeated text"


def _replay(spec: DomainAdaptationSpec, shift_nats: float | None) -> Iterator[str]:
    if spec.corpus.general_use == "measure":
        if spec.pretraining.regularization is None:
            yield (
                "no general text is trained on and no regularization is asked for, so nothing holds what the base model"
                " knows: add pretraining.regularization, or write generalUse: train, which holds it better"
            )
        return
    requested = spec.corpus.replay_fraction
    if shift_nats is None:
        return
    if requested is None:
        yield from _default_replay(spec, shift_nats)
        return
    advised = replay_by_shift(shift_nats)
    if requested <= MUCH_LESS * advised:
        yield (
            f"replayFraction is {requested:g}, and the base model predicts the domain {shift_nats:.2f} nats a token"
            f" worse than general text: {advised:g} is what such a shift asks for; raise it, or leave it out"
        )


def _default_replay(spec: DomainAdaptationSpec, shift_nats: float) -> Iterator[str]:
    """Yield that the default share relies on interpolation, where the recorded runs say so."""
    limit = spec.gates.max_general_perplexity_increase
    default, enough = replay_by_shift(shift_nats), replay_within(limit, shift_nats)
    if enough is not None and default <= enough - CLEARLY_LESS:
        yield (
            f"the base model predicts the domain {shift_nats:.2f} nats a token worse than general text, so replay is"
            f" {default:g}: in the recorded runs with such a shift the limit of {limit:+.0%} was kept from about"
            f" {enough:g} on, and below it by interpolation with the base model alone; set corpus.replayFraction to"
            " rely on none"
        )


def items_to_notice(limit_points: float, num_tasks: int) -> int:
    """Return the items a task with which a loss of twice the limit on it is noticed with a chance of `POWER`.

    n >= ((z + z') x sd / (2 x limit))^2, with z the standard errors from which a loss is real and z' those of the power
    (docs/evaluation.md).

    Args:
        limit_points: above 0.
        num_tasks: general tasks and probe sets.
    """
    errors = errors_that_are_real(num_tasks) + NormalDist().inv_cdf(POWER)
    return math.ceil((errors * USUAL_SPREAD_POINTS / (2.0 * limit_points)) ** 2)


def _items(spec: DomainAdaptationSpec, known: Mapping[str, int]) -> Iterator[str]:
    tasks, limit = spec.evaluation.general.tasks, spec.gates.max_general_score_drop
    most = spec.evaluation.limit
    if not tasks or limit <= 0:
        return
    num_tasks = len(tasks) + len(spec.evaluation.probes.general)
    needed = items_to_notice(limit, num_tasks)
    items = {
        task.name: min(most or known[task.name], known[task.name]) if task.name in known else most
        for task in tasks
    }
    few = {name: number for name, number in items.items() if number is not None and number < needed}
    if not few:
        return
    listed = ", ".join(
        f"{name} ({'' if name in known else 'at most '}{plural(number, 'item')})"
        for name, number in few.items()
    )
    yield (
        f"too few items of {listed}: with {plural(num_tasks, 'general task')} a loss of {2 * limit:g} points, twice"
        f" gates.maxGeneralScoreDrop, is noticed in four of five cases from {needed:,} items a task on; raise"
        " evaluation.limit, or use larger tasks"
    )


def _passes(tokens: int | None, trained_tokens: float, side: str) -> Iterator[str]:
    if not tokens or trained_tokens / tokens <= MOST_PASSES:
        return
    passes = trained_tokens / tokens
    yield (
        f"training reads the {count(tokens)} {side} tokens {passes:,.{0 if passes >= 100 else 1}f} times; beyond"
        f" {MOST_PASSES:g} times repeated text is worth little: use more text or a smaller budget"
    )
