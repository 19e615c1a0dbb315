"""Warnings before the money is spent, each with its numbers (docs/training.md, data guidance)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec, has_scores
from dapt_operator.plan.sizing.resolve import replay_by_shift

MILLION, BILLION = 1_000_000, 1_000_000_000
MOST_PASSES = 4.0
"""Beyond about four passes repeated tokens are worth little (Muennighoff et al. 2023)."""


MUCH_LESS = 0.6
"""A replay fraction up to this share of what the measured shift asks for is warned about."""


def count(tokens: float) -> str:
    """`1.2 B`, `60 M`, `61 k`, `940`."""
    for size, unit in ((BILLION, "B"), (MILLION, "M"), (1000, "k")):
        if tokens >= size:
            return f"{tokens / size:.3g} {unit}"
    return f"{tokens:.0f}"


def expectation(domain_tokens: int | None) -> str:
    """What a corpus of this size may bring, as published; empty where nothing was."""
    if domain_tokens is None or domain_tokens < 100 * MILLION or domain_tokens > 10 * BILLION:
        return ""
    points = "8 to 15" if domain_tokens < BILLION else "15 to 25"
    return (
        f"with {count(domain_tokens)} domain tokens, {points} points on domain benchmarks are what published"
        " adaptations of such size report"
    )


def warnings(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    *,
    model: ModelFacts | None,
    domain_tokens: int | None,
    general_tokens: int | None,
    total_tokens: int | None,
    replay_fraction: float | None,
    shift: float | None = None,
) -> tuple[str, ...]:
    """One sentence each; what is not known is not warned about. `shift` is in nats a token (`resolve.shift_nats`)."""
    found = [*_model(model), *_corpus(spec, domain_tokens), *_replay(spec, shift)]
    if total_tokens is not None and replay_fraction is not None:
        found += _passes(domain_tokens, total_tokens * (1.0 - replay_fraction), "domain")
        found += _passes(general_tokens, total_tokens * replay_fraction, "general")
    if spec.finetuning is None:
        found.append(
            "no finetuning is asked for: a model after continued pre-training alone is not for deployment"
        )
    if spec.resources.nodes > 1 and not _many_nodes_can_mount(profile):
        found.append(
            f"{spec.resources.nodes} nodes need a work volume that many nodes can mount: give the profile's"
            " claimTemplate the access mode ReadWriteMany"
        )
    return tuple(found)


def told_by_prepare(
    spec: DomainAdaptationSpec, model: ModelFacts | None, domain_tokens: int | None
) -> tuple[str, ...]:
    """Those of `warnings` that prepare says in its own words, from the data itself."""
    small = domain_tokens is not None and domain_tokens < 100 * MILLION
    return (*_model(model), *(_corpus(spec, domain_tokens) if small else ()))


def _model(model: ModelFacts | None) -> Iterable[str]:
    if model is not None and model.has_chat_template:
        yield (
            "the base model has a chat template, so it was tuned on instructions: continued pre-training costs it"
            " much of its chat ability (MT-Bench 7.9 to about 1 in FinDAP); prefer the base model of the same family"
        )


def _corpus(spec: DomainAdaptationSpec, domain_tokens: int | None) -> Iterable[str]:
    if domain_tokens is None:
        return
    full = spec.pretraining.method.lora is None
    if domain_tokens < 100 * MILLION:
        also = ", and train with lora instead of full" if full else ""
        yield (
            f"the domain corpus has {count(domain_tokens)} tokens, under 100 M: consider retrieval or fine-tuning"
            f" instead{also}"
        )
    elif domain_tokens < BILLION and full:
        yield (
            f"the domain corpus has {count(domain_tokens)} tokens, under 1 B: full training forgets more than lora"
            " on so little; watch the general perplexity"
        )
    elif domain_tokens >= BILLION and not full:
        yield (
            f"the domain corpus has {count(domain_tokens)} tokens, over 1 B: full training learns more from so much"
            " than lora (Biderman et al. 2024); lora forgets less"
        )
    if domain_tokens > 10 * BILLION:
        yield f"the domain corpus has {count(domain_tokens)} tokens, over 10 B: watch for repeated text"


def _replay(spec: DomainAdaptationSpec, shift: float | None) -> Iterable[str]:
    if spec.corpus.general_use == "measure":
        if spec.pretraining.regularization is None:
            yield (
                "no general text is trained on and no regularization is asked for, so nothing holds what the base model"
                " knows: add pretraining.regularization, or write generalUse: train, which holds it better"
            )
        return
    asked = spec.corpus.replay_fraction
    if asked is None or shift is None:
        return
    wanted = replay_by_shift(shift)
    if asked <= MUCH_LESS * wanted:
        yield (
            f"replayFraction is {asked:g}, and the base model predicts the domain {shift:.2f} nats a token worse than"
            f" general text: {wanted:g} is what such a shift asks for; raise it, or leave it out"
        )


def _passes(tokens: int | None, trained: float, side: str) -> Iterable[str]:
    if not tokens or trained / tokens <= MOST_PASSES:
        return
    yield (
        f"training reads the {count(tokens)} {side} tokens {trained / tokens:.1f} times; beyond {MOST_PASSES:g} times"
        " repeated text is worth little: use more text or a smaller budget"
    )


def _many_nodes_can_mount(profile: AdaptationProfileSpec) -> bool:
    template: Mapping[str, Any] | None = profile.storage.claim_template
    return template is None or "ReadWriteMany" in (template.get("accessModes") or ())


MANY_NODES: Final = frozenset({"ReadWriteMany", "ReadOnlyMany"})


def shares_volume(profile: AdaptationProfileSpec) -> bool:
    """Whether pods on several nodes can mount the work volume. Of a claim that is there already nothing is known."""
    claim = profile.storage.claim_template
    modes = claim.get("accessModes") if claim is not None else None
    return not modes or any(mode in MANY_NODES for mode in modes)


def most_at_once(profile: AdaptationProfileSpec) -> int:
    """Evaluations at the same time; one where a volume is on one node alone."""
    return profile.evaluation.concurrency if shares_volume(profile) else 1


def volume_warnings(spec: DomainAdaptationSpec, profile: AdaptationProfileSpec) -> tuple[str, ...]:
    """What to know about evaluations before the run."""
    if spec.evaluation.when == "end" or not has_scores(spec) or shares_volume(profile):
        return ()
    claim = profile.storage.claim_template or {}
    modes = ", ".join(str(mode) for mode in claim.get("accessModes") or ())
    return (
        f"the profile's work volume ({modes}) can be mounted by one node alone: evaluations run after pretraining, one"
        " at a time, not beside it; a ReadWriteMany volume lets them run beside it",
    )
