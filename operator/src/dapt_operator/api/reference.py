"""Generates the reference pages: every field of the resources, and every word of the status.

`render()` returns text and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from dapt_operator.api.schema.crd import structural
from dapt_operator.api.schema.immutable import FROZEN_BY, FROZEN_BY_SUCCESS
from dapt_operator.api.v1alpha1.conditions import CONDITION_TYPES, PHASES, REASONS
from dapt_operator.api.v1alpha1.events import EVENTS
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.stored.resource import StoredAdaptation
from dapt_operator.api.validation.problem import accepted_text
from dapt_operator.api.validation.unsupported import ADAPTATION, PROFILE, Unsupported

API_PAGE: Final = "api.md"
CONDITIONS_PAGE: Final = "conditions.md"

_NOTE: Final = "<!-- Generated from the models in dapt_operator.api. Do not edit. -->\n"


def render() -> dict[str, str]:
    """Return file name in docs/reference -> Markdown text. Deterministic; writes nothing."""
    return {API_PAGE: _api_page(), CONDITIONS_PAGE: _conditions_page()}


def _api_page() -> str:
    adaptation, profile = structural(StoredAdaptation), structural(AdaptationProfile)
    frozen = [f"| `spec.{block}` | {stage} starts |" for block, stage in FROZEN_BY.items()]
    frozen += [f"| `spec.{block}` | {stage} succeeds |" for block, stage in FROZEN_BY_SUCCESS.items()]
    lines = [
        _NOTE,
        "# The API: every field",
        "",
        "Group `dapt.dev`, version `v1alpha1`. Required fields are marked; any other may be left out. Unknown fields"
        " are refused.",
        "",
        "## DomainAdaptation",
        *_tables(adaptation["properties"]["spec"], "spec"),
        "",
        "### Frozen blocks",
        "",
        "A block may change until the stage that reads it starts; `output` until the model is published."
        " `finetuning` and `preference` may change again once their stage has failed for good.",
        "",
        "| block | frozen when |",
        "| --- | --- |",
        *frozen,
        "",
        "### Not supported yet",
        "",
        "This version refuses these fields; it never ignores them.",
        "",
        *_unsupported_lines(ADAPTATION),
        "",
        "## DomainAdaptation status",
        "",
        "Only the operator writes the status.",
        *_tables(adaptation["properties"]["status"], "status"),
        "",
        "## AdaptationProfile",
        *_tables(profile["properties"]["spec"], "spec"),
        "",
        "### Not supported yet in a profile",
        "",
        *_unsupported_lines(PROFILE),
    ]
    return "\n".join(lines) + "\n"


def _unsupported_lines(table: tuple[Unsupported, ...]) -> Iterator[str]:
    yield "| field | today |"
    yield "| --- | --- |"
    for entry in table:
        yield f"| `{entry.field}` | {entry.instead} |"


def _tables(node: dict[str, Any], path: str) -> Iterator[str]:
    """Yield the lines of one table per block, outer blocks first."""
    yield ""
    yield f"### {path}"
    yield ""
    if node.get("description"):
        yield node["description"]
        yield ""
    for rule in node.get("x-kubernetes-validations", ()):
        yield f"- Rule: {rule['message']}."
    if "x-kubernetes-validations" in node:
        yield ""
    properties = node.get("properties", {})
    if not properties:
        yield "No fields: write `{}`."
        return
    required = node.get("required", ())
    yield "| field | accepts | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for name, child in properties.items():
        yield (
            f"| `{name}` | {_accepts(child)} | {_default(child, name in required)}"
            f" | {_cell(child.get('description', ''))} |"
        )
    for name, child in properties.items():
        if child.get("properties") is not None:
            yield from _tables(child, f"{path}.{name}")
        elif child.get("items", {}).get("properties"):
            yield from _tables(child["items"], f"{path}.{name}[]")
        elif child.get("additionalProperties", {}).get("properties"):
            yield from _tables(child["additionalProperties"], f"{path}.{name}.NAME")


def _accepts(node: dict[str, Any]) -> str:
    if node.get("x-kubernetes-preserve-unknown-fields"):
        return "a block that Kubernetes defines"
    if node.get("type") == "object":
        return "a block by name" if "additionalProperties" in node else "a block"
    if node.get("type") == "array":
        items = node["items"]
        each = "" if items.get("type") == "object" else f"; each {_accepts(items)}"
        return _cell(f"{accepted_text(node)}{each}")
    return _cell(accepted_text(node))


def _default(node: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    default = node.get("default")
    if default is None or isinstance(default, dict):
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`".replace("'", "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _conditions_page() -> str:
    lines = [
        _NOTE,
        "# Conditions, reasons and phases",
        "",
        "Conditions follow kstatus. `kubectl wait --for=condition=Finished` waits for the end, whatever the result.",
    ]
    for title, table in (
        ("Condition types", CONDITION_TYPES),
        ("Reasons", REASONS),
        ("Phases", PHASES),
    ):
        lines += [
            "",
            f"## {title}",
            "",
            "| word | meaning |",
            "| --- | --- |",
            *(f"| `{word}` | {meaning} |" for word, meaning in table.items()),
        ]
    lines += [
        "",
        "## Events",
        "",
        "An Event is written once for each change of state; the status has all details. No other reasons occur.",
        "",
        "| reason | type | meaning |",
        "| --- | --- | --- |",
        *(f"| `{reason}` | {type_} | {meaning} |" for reason, (type_, meaning) in EVENTS.items()),
    ]
    return "\n".join(lines) + "\n"
