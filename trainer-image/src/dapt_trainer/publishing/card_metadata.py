"""Writes the metadata of the model card with the hub's own classes, so that no value can break out of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml
from huggingface_hub import EvalResult, ModelCardData

from dapt_contract.stages.publish import CardFacts
from dapt_contract.untrusted.printable import printable
from dapt_contract.untrusted.regular_files import open_regular
from dapt_trainer.data.base_model.files import CARD
from dapt_trainer.publishing.public_text import without_paths

_OTHER: Final = "other"
_IDENTIFIERS: Final = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
eupl-1.1 gemma gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3
llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql
unknown unlicense wtfpl zlib
"""
_LICENSES: Final = frozenset(_IDENTIFIERS.split())
"""Identifiers that the hub takes (huggingface.co/docs/hub/repositories-licenses); it refuses a card with another."""
_WORD: Final = re.compile(r"[\w.+-]{1,64}")
_LANGUAGE: Final = re.compile(r"[a-z]{2,3}|code|multilingual")
"""What the hub takes as a language; it refuses a card with another."""
_MAX_FRONT_MATTER_BYTES: Final = 256 * 1024
"""Of the base model's card: far more than licence, languages and a table of results take."""
_MAX_TEXT: Final = 1024
_NULL: Final = "tag:yaml.org,2002:null"


@dataclass(frozen=True)
class BaseCard:
    """Holds what the base model's own files say and the published model's card repeats."""

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    model_type: str | None = None
    """Architecture, as transformers names it in config.json."""
    transformers_version: str | None = None
    """Version of transformers that wrote config.json."""


NOTHING_KNOWN: Final = BaseCard()


def read_base_card(folder: Path) -> BaseCard:
    """Return licence, language and architecture of the base model; nothing where its files name none."""
    data = _front_matter(folder)
    config = _read_config(folder / "config.json")
    return BaseCard(
        _text(data.get("license")),
        _text(data.get("license_name")),
        _text(data.get("license_link")),
        tuple(_texts(data.get("language"))),
        _word(config.get("model_type")),
        _word(config.get("transformers_version")),
    )


def _front_matter(folder: Path) -> dict[str, yaml.Node]:
    """Return the fields before the text of the base model's card; none where they cannot be read.

    The card comes from anybody, and publication reads it after everything is paid for. So no value is constructed: an
    alias stays one node, however often it stands for itself.
    """
    try:
        with os.fdopen(open_regular(folder, CARD), "rb") as file:
            first, *lines = file.read(_MAX_FRONT_MATTER_BYTES).decode(errors="replace").split("\n")
        # What stands behind the end is the text of the card.
        end = [line.rstrip() for line in lines].index("---")
        root = (
            yaml.compose("\n".join(lines[:end]), Loader=yaml.SafeLoader) if first.rstrip() == "---" else None
        )
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    if not isinstance(root, yaml.MappingNode):
        return {}
    return {key.value: value for key, value in root.value if isinstance(key, yaml.ScalarNode)}


def _texts(node: yaml.Node | None) -> Iterator[str]:
    """Yield the texts of a list of texts, or of one text."""
    for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if text := _text(item):
            yield text


def _text(node: yaml.Node | None) -> str | None:
    """Return a text as it is written, such as `no` for Norwegian; None for anything else."""
    if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL or len(node.value) > _MAX_TEXT:
        return None
    return printable(node.value) or None


def card_metadata(facts: CardFacts, base_card: BaseCard, *, is_adapter: bool = False) -> ModelCardData:
    """Return the metadata of the published model.

    Args:
        facts: of the card.
        base_card: what licence and language are taken from where the facts have none.
        is_adapter: whether an adapter is published, not a whole model.
    """
    tags = ["domain-adaptation", "continued-pretraining"]
    tags += ["lora"] if is_adapter else []
    tags += ["sft"] if facts.fine_tuned else []
    tags += ["dpo"] if facts.dpo_pairs is not None else []
    sources = [*facts.domain_sources, *facts.general_sources]
    sources += [source for data in facts.tuning_data for source in data.sources]
    datasets = sorted({name for source in sources if (name := hub_name(source, "hf://datasets/"))})
    languages = [name for name in facts.language or base_card.language if _LANGUAGE.fullmatch(name)]
    return ModelCardData(
        model_name=facts.adaptation,
        base_model=hub_name(facts.base_model, "hf://"),
        **_license(facts.license, base_card),
        language=languages or None,
        datasets=datasets or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=tags,
        eval_results=_results(facts),
    )


def hub_name(source: str, prefix: str) -> str | None:
    """Return `org/name` of a source of the hub; None for other sources, which the hub cannot resolve."""
    if not source.startswith(prefix):
        return None
    parts = source.removeprefix(prefix).split("/")
    return f"{parts[0]}/{parts[1].partition('@')[0]}" if len(parts) > 1 else None


def _license(wanted: str | None, base_card: BaseCard) -> dict[str, str | None]:
    """Return the fields of the licence: the wanted one, else the base model's."""
    # SPDX writes capitals where the hub has none.
    is_of_base = wanted is None or wanted.lower() == (base_card.license or "").lower()
    if is_of_base and base_card.license is not None:
        name, link = base_card.license_name, base_card.license_link
        return {
            "license": base_card.license,
            "license_name": None if name is None else without_paths(name),
            "license_link": None if link is None else without_paths(link),
        }
    if wanted is None or wanted.lower() in _LICENSES:
        return {"license": None if wanted is None else wanted.lower()}
    return {"license": _OTHER, "license_name": wanted}


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


def _read_config(path: Path) -> dict[str, object]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _word(value: object) -> str | None:
    """Return a name that stands in the text of the card; None for anything that could be more than a name."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None
