"""Writes the model card, YAML front matter and Markdown, from facts alone: it claims nothing that was not measured."""

from __future__ import annotations

import json

from dapt_contract.measure import Measure, Score
from dapt_contract.stages.publish import CardFacts, PublishConfig
from dapt_contract.version import PRODUCT_VERSION


def model_card(config: PublishConfig) -> str:
    """Return the README.md of the published model."""
    facts = config.card
    parts = [
        _front_matter(facts),
        f"# {facts.adaptation}",
        _summary(facts),
        "## Measurements",
        _perplexities(facts),
        _scores(facts),
        "## Training",
        _training(facts),
    ]
    if facts.warnings:
        parts += ["## Warnings", "\n".join(f"- {warning}" for warning in facts.warnings)]
    parts.append(f"Written by dapt {PRODUCT_VERSION} from run `{config.run_digest}`.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(facts: CardFacts) -> str:
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if (base := _hub_name(facts.base_model)) is not None:
        # A JSON string is a YAML string, so no value that a user wrote can break out of the front matter.
        lines.append(f"base_model: {json.dumps(base)}")
    lines += ["tags:", "- domain-adaptation", "- continued-pretraining"]
    if facts.fine_tuned:
        lines.append("- sft")
    if facts.dpo_pairs is not None:
        lines.append("- dpo")
    return "\n".join([*lines, "---"])


def _hub_name(base_model: str) -> str | None:
    """Return `org/name` of an hf:// source; None for other sources, which the hub cannot resolve."""
    if not base_model.startswith("hf://"):
        return None
    return base_model.removeprefix("hf://").partition("@")[0]


def _summary(facts: CardFacts) -> str:
    tuned = ", then supervised fine-tuning" if facts.fine_tuned else ""
    if facts.dpo_pairs is not None:
        tuned += ", then direct preference optimization"
    text = (
        f"{facts.base_model} (revision `{facts.base_revision}`) adapted to a domain by continued pre-training "
        f"({facts.method}){tuned}. Chosen candidate: `{facts.candidate}` ({facts.selection_reason})."
    )
    if not facts.fine_tuned and facts.dpo_pairs is None:
        text += "\n\nThis model has had continued pre-training alone: it is a base model, not meant for deployment."
    return text


def _columns(facts: CardFacts) -> list[tuple[str, Measure]]:
    columns = [("base", facts.base), ("chosen candidate", facts.chosen)]
    return [*columns, ("this model", facts.final)] if facts.final else columns


def _perplexities(facts: CardFacts) -> str:
    columns = _columns(facts)
    lines = [
        "| held-out text | " + " | ".join(name for name, _ in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    for side in ("domain", "general"):
        both = [(measure.domain if side == "domain" else measure.general).both for _, measure in columns]
        lines.append(
            f"| {side} perplexity | " + " | ".join(f"{value.perplexity:.3f}" for value in both) + " |"
        )
        lines.append(
            f"| {side} bits per byte | " + " | ".join(f"{value.bits_per_byte:.4f}" for value in both) + " |"
        )
    lines.append("")
    lines.append(
        f"Held out of training: {facts.base.domain.both.tokens:,} domain and {facts.base.general.both.tokens:,} "
        "general tokens, counted with the base model's tokenizer."
    )
    return "\n".join(lines)


def _scores(facts: CardFacts) -> str:
    columns = _columns(facts)
    names = [(score.side, score.kind, score.name) for score in facts.base.scores]
    if not names:
        return ""
    lines = [
        "| task or probe set | side | items | " + " | ".join(name for name, _ in columns) + " |",
        "| --- | --- | ---: |" + " ---: |" * len(columns),
    ]
    for side, kind, name in names:
        scores = [_find(measure, side, kind, name) for _, measure in columns]
        items = next(score.items for score in scores if score is not None)
        lines.append(f"| {name} ({kind}) | {side} | {items} | " + " | ".join(map(_cell, scores)) + " |")
    lines.append("")
    lines.append("Share of right answers, with its standard error.")
    return "\n".join(lines)


def _find(measure: Measure, side: str, kind: str, name: str) -> Score | None:
    for score in measure.scores:
        if (score.side, score.kind, score.name) == (side, kind, name):
            return score
    return None


def _cell(score: Score | None) -> str:
    return "not measured" if score is None else f"{score.score:.3f} ± {score.standard_error:.3f}"


def _training(facts: CardFacts) -> str:
    lines = [
        f"- Training tokens: {facts.training_tokens:,}",
        f"- Peak learning rate: {facts.learning_rate:g}",
        f"- Replay of general text: {facts.replay_fraction:.1%} of tokens",
        *(f"- Domain source: `{source}`" for source in facts.domain_sources),
        *(f"- General source: `{source}`" for source in facts.general_sources),
    ]
    if facts.sft_examples is not None:
        lines.append(f"- Fine-tuning: {facts.sft_examples:,} examples, the loss on responses alone")
    if facts.dpo_pairs is not None:
        beta = "" if facts.dpo_beta is None else f", beta {facts.dpo_beta:g}"
        lines.append(f"- Preference tuning (DPO): {facts.dpo_pairs:,} pairs{beta}")
    return "\n".join(lines)
