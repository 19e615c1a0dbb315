"""Writes the model card, YAML front matter and Markdown, from facts alone: it claims nothing that was not measured."""

from __future__ import annotations

import json
from collections.abc import Iterator

from dapt_contract.layout import MODEL
from dapt_contract.measure import Measure, Score
from dapt_contract.stages.publish import CardFacts, LearnedData, PublishConfig
from dapt_contract.untrusted.printable import printable_lines
from dapt_contract.version import PRODUCT_VERSION
from dapt_trainer.publishing.card_metadata import NOTHING_KNOWN, BaseCard, card_metadata, hub_name
from dapt_trainer.publishing.markdown import code, plain
from dapt_trainer.publishing.older_transformers import needed_version
from dapt_trainer.publishing.public_text import public_facts, shown_source


def model_card(
    config: PublishConfig, base_card: BaseCard = NOTHING_KNOWN, *, has_generation_config: bool = False
) -> str:
    """Return the README.md of the published model or adapter.

    Args:
        config: with the facts, which are all that the card says of the training.
        base_card: what it repeats of the base model's files.
        has_generation_config: whether generation_config.json lies beside it, which an adapter's reader must name.
    """
    facts = public_facts(config.card)
    parts = [
        f"# {plain(facts.adaptation)}",
        _summary(facts),
        "## Use",
        needed_version(base_card.model_type, base_card.transformers_version),
        _usage(facts, config.destination)
        if config.adapter is None
        else _adapter_usage(config, facts, has_generation_config=has_generation_config),
        "## Measurements",
        _perplexities(facts),
        _scores(facts),
        "## Training",
        _training(facts),
    ]
    if facts.warnings:
        parts += ["## Warnings", "\n".join(f"- {plain(warning)}" for warning in facts.warnings)]
    parts.append(f"Written by dapt {PRODUCT_VERSION} from run {code(config.run_digest)}.")
    text = "\n\n".join(part for part in parts if part) + "\n"
    metadata = card_metadata(facts, base_card, is_adapter=config.adapter is not None)
    return printable_lines(f"---\n{metadata.to_yaml()}\n---\n\n{text}")


def _usage(facts: CardFacts, destination: str) -> str:
    return (
        f"```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"{_name(destination)}\n"
        "tokenizer = AutoTokenizer.from_pretrained(name)\n"
        'model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")\n'
        f"{_generation(facts)}\n```"
    )


def _adapter_usage(config: PublishConfig, facts: CardFacts, *, has_generation_config: bool) -> str:
    """Return how the adapter is put on its base model."""
    base = hub_name(config.card.base_model, "hf://")
    place, remark = (
        (shown_source(facts.base_model), "  # the folder of the base model") if base is None else (base, "")
    )
    revision = "" if base is None else f", revision={json.dumps(facts.base_revision)}"
    # The adapter holds the rows of new tokens, and the base model has no place for them.
    resizing = (
        ""
        if config.model.origin == MODEL
        else "if len(tokenizer) > model.get_input_embeddings().num_embeddings:\n"
        "    model.resize_token_embeddings(len(tokenizer))\n"
    )
    imported = "AutoModelForCausalLM, AutoTokenizer" + (", GenerationConfig" if has_generation_config else "")
    ends = (
        "model.generation_config = GenerationConfig.from_pretrained(name)\n" if has_generation_config else ""
    )
    return (
        "This is an adapter: it is loaded on its base model.\n\n"
        f"```python\nfrom peft import PeftModel\nfrom transformers import {imported}\n\n"
        f"{_name(config.destination)}\n"
        f"base = {json.dumps(place)}{remark}\n"
        "tokenizer = AutoTokenizer.from_pretrained(name)\n"
        f'model = AutoModelForCausalLM.from_pretrained(base{revision}, dtype="auto")\n'
        f"{resizing}"
        "model = PeftModel.from_pretrained(model, name)\n"
        f"{ends}"
        f"{_generation(facts)}\n```"
    )


def _name(destination: str) -> str:
    scheme, _, rest = destination.partition("://")
    # Elsewhere than on the hub the folder is used where it lies, or where it was copied to: its own name always fits.
    folder = rest.rstrip("/").rsplit("/", 1)[-1]
    return (
        f"name = {json.dumps(rest)}"
        if scheme == "hf"
        else f"name = {json.dumps(f'./{folder}')}  # the folder of this file"
    )


def _generation(facts: CardFacts) -> str:
    call = (
        'messages = [{"role": "user", "content": "..."}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n)'
        if facts.fine_tuned or facts.dpo_pairs is not None
        else 'inputs = tokenizer("...", return_tensors="pt")'
    )
    return f"{call}\nprint(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))"


def _summary(facts: CardFacts) -> str:
    tuned = ", then supervised fine-tuning" if facts.fine_tuned else ""
    if facts.dpo_pairs is not None:
        tuned += ", then direct preference optimization"
    text = (
        f"{plain(shown_source(facts.base_model))} (revision {code(facts.base_revision)}) adapted to a domain by "
        f"continued pre-training ({plain(facts.method)}){tuned}. Chosen candidate: {code(facts.candidate)} "
        f"({plain(facts.selection_reason)})."
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
        # Not all held-out tokens: without a token that begins every text, the first one of a document is not scored.
        f"Scored: {facts.base.domain.both.tokens:,} domain and {facts.base.general.both.tokens:,} general tokens of "
        "text held out of training, counted with the base model's tokenizer."
        + (
            f" Each token has at most {context:,} tokens before it."
            if (context := facts.context_length_tokens)
            else ""
        )
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
        lines.append(
            f"| {plain(name)} ({kind}) | {side} | {items} | " + " | ".join(map(_cell, scores)) + " |"
        )
    lines.append("")
    lines.append("Right answers in percent, with the standard error.")
    return "\n".join(lines)


def _find(measure: Measure, side: str, kind: str, name: str) -> Score | None:
    for score in measure.scores:
        if (score.side, score.kind, score.name) == (side, kind, name):
            return score
    return None


def _cell(score: Score | None) -> str:
    return "not measured" if score is None else f"{100 * score.score:.1f} ± {100 * score.standard_error:.1f}"


def _training(facts: CardFacts) -> str:
    lines = [
        f"- Training tokens: {facts.training_tokens:,}",
        f"- Peak learning rate: {facts.learning_rate:g}",
        f"- Replay of general text: {facts.replay_fraction:.1%} of tokens",
        *(f"- Domain source: {code(shown_source(source))}" for source in facts.domain_sources),
        *(f"- General source: {code(shown_source(source))}" for source in facts.general_sources),
        *(f"- {line}" for data in facts.tuning_data for line in _learned_from(data)),
    ]
    if facts.sft_examples is not None:
        lines.append(f"- Fine-tuning: {facts.sft_examples:,} examples, the loss on responses alone")
    if facts.dpo_pairs is not None:
        beta = "" if facts.dpo_beta is None else f", beta {facts.dpo_beta:g}"
        lines.append(f"- Preference tuning (DPO): {facts.dpo_pairs:,} pairs{beta}")
    return "\n".join(lines)


def _learned_from(data: LearnedData) -> Iterator[str]:
    """Yield the sources of tuning data, then what was made of them."""
    name, unit = ("Fine-tuning", "examples") if data.kind == "instructions" else ("Preference", "pairs")
    for source in data.sources:
        yield f"{name} source: {code(shown_source(source))}"
    if data.records is not None and data.digest is not None:
        yield f"{name} data: {data.records:,} prepared {unit}, SHA-256 {code(f'{data.digest}...')}"
