"""Writes the model card, YAML front matter and Markdown, from facts alone: it claims nothing that was not measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dapt_contract.measure import Measure, Score
from dapt_contract.stages.publish import CardFacts, PublishConfig
from dapt_contract.version import PRODUCT_VERSION
from dapt_trainer.data.base_model.files import CARD
from dapt_trainer.publishing.older_transformers import OLDEST_TRANSFORMERS


@dataclass(frozen=True)
class BaseCard:
    """Holds what the base model's own card says and the published model's card repeats."""

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: str | list[str] | None = None


def read_base_card(folder: Path) -> BaseCard:
    """Return the licence and language of the base model by the card in its folder; nothing where it has none."""
    try:
        data = ModelCard.load(folder / CARD, ignore_metadata_errors=True).data
    except (OSError, ValueError):
        return BaseCard()
    return BaseCard(data.license, data.license_name, data.license_link, data.language)


def model_card(config: PublishConfig, base_card: BaseCard | None = None) -> str:
    """Return the README.md of the published model.

    Args:
        config: with the facts, which are all that the card says of the training.
        base_card: what it repeats of the base model's card.
    """
    facts = config.card
    parts = [
        f"# {facts.adaptation}",
        _summary(facts),
        "## Use",
        _usage(config),
        "## Measurements",
        _perplexities(facts),
        _scores(facts),
        "## Training",
        _training(facts),
    ]
    if facts.warnings:
        parts += ["## Warnings", "\n".join(f"- {warning}" for warning in facts.warnings)]
    parts.append(f"Written by dapt {PRODUCT_VERSION} from run `{config.run_digest}`.")
    text = "\n\n".join(part for part in parts if part) + "\n"
    # The hub's own classes write the metadata, so that no value that a user wrote can break out of it.
    return f"---\n{_metadata(facts, base_card or BaseCard()).to_yaml()}\n---\n\n{text}"


def _metadata(facts: CardFacts, base_card: BaseCard) -> ModelCardData:
    tags = ["domain-adaptation", "continued-pretraining"]
    tags += ["sft"] if facts.fine_tuned else []
    tags += ["dpo"] if facts.dpo_pairs is not None else []
    sources = (*facts.domain_sources, *facts.general_sources, *facts.tuning_sources)
    datasets = sorted({name for source in sources if (name := _hub_name(source, "hf://datasets/"))})
    return ModelCardData(
        model_name=facts.adaptation,
        base_model=_hub_name(facts.base_model, "hf://"),
        license=base_card.license,
        license_name=base_card.license_name,
        license_link=base_card.license_link,
        language=base_card.language,
        datasets=datasets or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=tags,
        eval_results=_results(facts),
    )


def _results(facts: CardFacts) -> list[EvalResult]:
    """Return what was measured on this model, or on the chosen candidate where nothing came after it."""
    measure = facts.final or facts.chosen
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=f"held-out-{side}",  # the hub takes results of one type as those of one data set
            dataset_name=f"held-out {side} text",
            metric_type="perplexity",
            metric_value=round(value.both.perplexity, 3),
        )
        for side, value in (("domain", measure.domain), ("general", measure.general))
    ]
    return results + [
        EvalResult(
            task_type="text-generation",
            dataset_type=f"{score.side}-{score.name}",
            dataset_name=f"{score.name} ({score.side})",
            metric_type="accuracy",
            metric_value=round(score.score, 4),
        )
        for score in measure.scores
    ]


def _usage(config: PublishConfig) -> str:
    facts = config.card
    scheme, _, rest = config.destination.partition("://")
    name = rest if scheme == "hf" else f"./{facts.adaptation}"
    call = (
        'messages = [{"role": "user", "content": "..."}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n)'
        if facts.fine_tuned or facts.dpo_pairs is not None
        else 'inputs = tokenizer("...", return_tensors="pt")'
    )
    return (
        f"Needs transformers {OLDEST_TRANSFORMERS} or later, and at least the version that its base model needs.\n\n"
        f"```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\nname = {json.dumps(name)}\n"
        "tokenizer = AutoTokenizer.from_pretrained(name)\n"
        'model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")\n'
        f"{call}\n"
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))\n```"
    )


def _hub_name(source: str, prefix: str) -> str | None:
    """Return `org/name` of a source of the hub; None for other sources, which the hub cannot resolve."""
    if not source.startswith(prefix):
        return None
    parts = source.removeprefix(prefix).split("/")
    return f"{parts[0]}/{parts[1].partition('@')[0]}" if len(parts) > 1 else None


def shown_source(source: str) -> str:
    """Return a source as the public sees it: of paths, claims and buckets only the last name."""
    scheme, _, path = source.partition("://")
    return source if scheme == "hf" else path.rstrip("/").rsplit("/", 1)[-1]


def _summary(facts: CardFacts) -> str:
    tuned = ", then supervised fine-tuning" if facts.fine_tuned else ""
    if facts.dpo_pairs is not None:
        tuned += ", then direct preference optimization"
    text = (
        f"{shown_source(facts.base_model)} (revision `{facts.base_revision}`) adapted to a domain by continued "
        f"pre-training ({facts.method}){tuned}. Chosen candidate: `{facts.candidate}` ({facts.selection_reason})."
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
        *(f"- Domain source: `{shown_source(source)}`" for source in facts.domain_sources),
        *(f"- General source: `{shown_source(source)}`" for source in facts.general_sources),
        *(f"- Tuning source: `{shown_source(source)}`" for source in facts.tuning_sources),
    ]
    if facts.sft_examples is not None:
        lines.append(f"- Fine-tuning: {facts.sft_examples:,} examples, the loss on responses alone")
    if facts.dpo_pairs is not None:
        beta = "" if facts.dpo_beta is None else f", beta {facts.dpo_beta:g}"
        lines.append(f"- Preference tuning (DPO): {facts.dpo_pairs:,} pairs{beta}")
    return "\n".join(lines)
