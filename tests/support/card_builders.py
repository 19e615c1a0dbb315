"""Builds configurations of publish with a card of plausible numbers."""

from __future__ import annotations

from typing import Any

from dapt_contract.measure import Measure, Perplexity, Score, SidePerplexity
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.publish import CardFacts, PublishConfig


def measure(nats: float, score: float) -> Measure:
    """The same loss on both sides, and one task."""
    half = Perplexity(nll_nats=nats * 100, tokens=100, bytes=400)
    side = SidePerplexity(a=half, b=half)
    codes = Score(name="codes", side="domain", items=50, score=score, standard_error=0.07)
    return Measure(digest="0", domain=side, general=side, scores=(codes,))


def publish_config(destination: str, **changes: Any) -> PublishConfig:
    """The model as it is, published by a run without fine-tuning."""
    card = CardFacts(
        adaptation="clinical",
        base_model="hf://org/base@abc",
        base_revision="abc",
        method="LoRA of rank 4",
        learning_rate=2e-4,
        replay_fraction=0.05,
        training_tokens=745,
        domain_sources=("file:///data/notes.jsonl",),
        general_sources=("file:///data/web.jsonl",),
        candidate="a1-s6",
        selection_reason="largest gain of 3 candidates",
        fine_tuned=False,
        base=measure(3.0, 0.3),
        chosen=measure(2.5, 0.5),
        warnings=("the domain has 745 tokens",),
    )
    defaults: dict[str, Any] = {
        "model": ModelReference(weights="model"),
        "destination": destination,
        "run_digest": "sha256:" + "1" * 64,
        "card": card,
    }
    return PublishConfig(**(defaults | changes))
