"""Checks a manifest: finds every problem at once, each as one sentence with its field, its value and the next step.

    documents = load(text, "manifest.yaml")
    model, problems = check(documents[0], local=True)

Types and ranges come from pydantic, rules between fields from the blocks' `RULES`, refusals from `unsupported`. To find
all problems in one pass a wrong value is replaced by an acceptable one and checking continues; what depends on a
replaced value is not checked, so no problem is a consequence of another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any, Final

from pydantic import ValidationError

from dapt_contract.inputs.harness import unknown_task_message
from dapt_operator.api.schema.manifest_schema import manifest_schema
from dapt_operator.api.v1alpha1.base import API_VERSION, SKIP_RULES, Base, camel_case
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.v1alpha1.spec_evaluation import Task
from dapt_operator.api.v1alpha1.texts.text_rules import TextRules, rules_of
from dapt_operator.api.validation import pod_template
from dapt_operator.api.validation.collect_problems import ProblemCollector
from dapt_operator.api.validation.hints.advice import Advice, Trial, schema_at, value_at
from dapt_operator.api.validation.hints.repeated_items import repetition_warnings
from dapt_operator.api.validation.hints.value_hints import IsPath, no_path
from dapt_operator.api.validation.hints.value_warnings import value_warnings
from dapt_operator.api.validation.problem import Problem, path_text, value_text
from dapt_operator.api.validation.unsupported import find_unsupported
from dapt_operator.api.validation.yaml_source import Path, YamlDocument

KINDS: Final[dict[str, type[DomainAdaptation] | type[AdaptationProfile]]] = {
    "DomainAdaptation": DomainAdaptation,
    "AdaptationProfile": AdaptationProfile,
}

_NO_SECRETS: Final = (
    "a manifest's file brings no credentials, and nothing of this document is used; remove it: a local run takes them"
    " from your environment, such as HF_TOKEN, and on a cluster the Secret is applied from a file of its own"
)

_MAX_ROUNDS: Final = 25
"""Validations of one document, each of which replaces what the one before found wrong."""
Checked = tuple[DomainAdaptation | AdaptationProfile | None, list[Problem]]


def check(document: YamlDocument, *, local: bool, is_path: IsPath = no_path) -> Checked:
    """Return the model of a document, or None, and every problem found, in the order of the lines.

    A `status` in the document is ignored, as the API server does. Never raises, whatever the document holds.

    Args:
        document: as the user wrote it.
        local: whether the run is on this machine; on a cluster file:// is refused.
        is_path: knows this machine's files, for what a message proposes.
    """
    return _check(document, local=local, is_accepted=_trial_of(document, local=local), is_path=is_path)


def warnings_of(document: YamlDocument) -> list[Problem]:
    """Return what a document without problems has that looks like a mistake all the same, in the order of the lines."""
    schema = manifest_schema(document.data["kind"])
    warnings = [*value_warnings(document, schema), *repetition_warnings(document, schema)]
    return sorted(warnings, key=lambda warning: warning.line)


def _trial_of(document: YamlDocument, *, local: bool) -> Trial:
    """Return the trial of changes of a document: whether they bring it no problem that it does not have already."""

    @cache
    def known() -> frozenset[tuple[str, str, str]]:
        return _problem_keys(document, local=local)

    def is_accepted(advice: Advice) -> bool:
        changed = YamlDocument(
            advice.applied(document.data), document.lines, document.filename, document.line
        )
        return _problem_keys(changed, local=local) <= known()

    return is_accepted


def _problem_keys(document: YamlDocument, *, local: bool) -> frozenset[tuple[str, str, str]]:
    _, problems = _check(document, local=local, is_accepted=None)
    return frozenset((problem.field, value_text(problem.value), problem.message) for problem in problems)


def _check(
    document: YamlDocument, *, local: bool, is_accepted: Trial | None, is_path: IsPath = no_path
) -> Checked:
    """Return what `check` does. is_accepted: tries what a message would propose; None: messages propose nothing."""
    problems = _kind_problems(document)
    if problems:
        return None, problems
    schema = manifest_schema(document.data["kind"])
    data = _without_nulls({key: value for key, value in document.data.items() if key != "status"}, schema)
    model_type = KINDS[data["kind"]]
    collector = ProblemCollector(document, schema, is_accepted, is_path)
    model = None
    for _ in range(_MAX_ROUNDS):
        try:
            # The rules are checked below, once for all: pydantic would stop at the first block that breaks one.
            model = model_type.model_validate(data, by_alias=True, by_name=False, context={SKIP_RULES: True})
            break
        except ValidationError as error:
            collector.collect(data, error)
    problems = list(collector.problems)
    if model is not None:
        problems += _rule_problems(model, data, document, collector)
        problems += _unsupported_problems(model, data, document)
        problems += _template_problems(model, document)
        problems += _text_problems(model, document, collector, local=local)
        problems += _task_problems(model, document, collector)
    problems.sort(key=lambda problem: (problem.line, problem.field))
    return (None if problems else model), problems


def _kind_problems(document: YamlDocument) -> list[Problem]:
    data = document.data
    if not isinstance(data, dict):
        return [
            Problem(
                "", data, "a document must be a block with apiVersion, kind, metadata and spec", document.line
            )
        ]
    problems = []
    kind, version = data.get("kind"), data.get("apiVersion")
    if kind == "Secret":
        # Whatever its apiVersion: to correct that would only lead to the next problem.
        return [_problem(document, ("kind",), kind, _NO_SECRETS)]
    if version != API_VERSION:
        message = f"missing, but required; write {API_VERSION}" if version is None else f"write {API_VERSION}"
        problems.append(_problem(document, ("apiVersion",), version, message))
    if not isinstance(kind, str) or kind not in KINDS:
        accepted = " or ".join(KINDS)
        nearest = get_close_matches(str(kind), KINDS, n=1)
        hint = f" (nearest: {nearest[0]})" if nearest else ""
        message = f"missing, but required; write {accepted}" if kind is None else f"write {accepted}{hint}"
        problems.append(_problem(document, ("kind",), kind, message))
    return problems


def _problem(document: YamlDocument, path: Path, value: object, message: str) -> Problem:
    return Problem(path_text(path), value, message, document.line_of(path), shows_value=value is not None)


def _without_nulls(value: Any, schema: dict[str, Any]) -> Any:
    """Return a copy without fields that are null: the API server drops them, too. Unknown ones stay, to be refused."""
    if isinstance(value, dict):
        known = schema.get("properties")
        return {
            key: _without_nulls(item, schema_at(schema, (key,)))
            for key, item in value.items()
            if item is not None or (known is not None and key not in known)
        }
    if isinstance(value, list):
        return [_without_nulls(item, schema.get("items", {})) for item in value]
    return value


def _blocks(block: Base, path: Path = ()) -> Iterator[tuple[Path, Base]]:
    """Yield every block of a model with its path, outer ones first."""
    yield path, block
    for name in type(block).model_fields:
        value = getattr(block, name)
        field = (*path, camel_case(name))
        if isinstance(value, Base):
            yield from _blocks(value, field)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, Base):
                    yield from _blocks(item, (*field, index))


def _scalar_at(data: Any, path: Path) -> str | int | float | None:
    """Return the text or number at a path; None when there is none, or a block or a list."""
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data if isinstance(data, str | int | float) else None


def _rule_problems(
    model: Base, data: dict[str, Any], document: YamlDocument, collector: ProblemCollector
) -> Iterator[Problem]:
    for path, block in _blocks(model):
        for rule in block.RULES:
            # A rule that reads a replaced value would report a problem of our making.
            inputs = [(*path, *name) for name in _fields_of(rule.cel)]
            if any(collector.is_affected(field) for field in inputs) or rule.holds(block):
                continue
            field = (*path, *rule.field.split(".")) if rule.field else path
            message = rule.message + _empty_text(inputs, document)
            yield _problem(document, field, _scalar_at(data, field), message)


def _empty_text(fields: Iterable[Path], document: YamlDocument) -> str:
    """Return what to write in the place of a block that a rule asks for and that has nothing in it."""
    schema = manifest_schema(document.data["kind"])
    for field in fields:
        block = schema_at(schema, field)
        if value_at(document.data, field) is None and field in document.lines and "properties" in block:
            what = f"the fields of {field[-1]}" if block.get("required") else f"{field[-1]}: {{}}"
            return f"; {field[-1]} has no fields here, which counts as left out: write {what}"
    return ""


def _fields_of(cel: str) -> Iterator[list[str]]:
    """Yield the fields that a rule reads, each as the names on the way to it."""
    for name, bracket in re.findall(r"self\.([A-Za-z0-9_.]+)(\(?)", cel):
        parts = name.split(".")
        yield parts[:-1] if bracket else parts  # what has a bracket is a function of the language


def _unsupported_problems(
    model: DomainAdaptation | AdaptationProfile, data: dict[str, Any], document: YamlDocument
) -> Iterator[Problem]:
    for entry in find_unsupported(model):
        path = tuple(entry.field.split("."))
        value = _scalar_at(data, path)
        yield Problem(entry.field, value, entry.instead, document.line_of(path), is_supported=False)


def _template_problems(
    model: DomainAdaptation | AdaptationProfile, document: YamlDocument
) -> Iterator[Problem]:
    if isinstance(model, AdaptationProfile) and model.spec.pod_template is not None:
        for path, value, message in pod_template.problems(model.spec.pod_template):
            yield _problem(document, ("spec", "podTemplate", *path), value, message)


def _task_problems(
    model: DomainAdaptation | AdaptationProfile, document: YamlDocument, collector: ProblemCollector
) -> Iterator[Problem]:
    """Yield tasks that the harness does not have, which would otherwise only show when prepare runs."""
    if isinstance(model, AdaptationProfile):
        return
    for path, block in _blocks(model.spec.evaluation, ("spec", "evaluation")):
        if not isinstance(block, Task) or block.source is not None:
            continue
        # A source that is written wrong was taken away: the task is the user's own all the same.
        if collector.is_affected((*path, "name")) or collector.is_affected((*path, "source")):
            continue
        if message := unknown_task_message(block.name):
            yield _problem(document, (*path, "name"), block.name, message)


@cache
def _text_rules(kind: type[Base]) -> tuple[tuple[str, TextRules], ...]:
    """Return the fields of a block that have rules of their own, with them."""
    rules = ((name, rules_of(field)) for name, field in kind.model_fields.items())
    return tuple((name, found) for name, found in rules if found is not None)


def _text_problems(
    model: Base, document: YamlDocument, collector: ProblemCollector, *, local: bool
) -> Iterator[Problem]:
    """Yield texts that break a rule of their own, such as addresses that lead out of the place that they name."""
    for path, block in _blocks(model):
        for name, rules in _text_rules(type(block)):
            value, place = getattr(block, name), (*path, camel_case(name))
            if not isinstance(value, str) or collector.is_affected(place):
                continue
            message = rules.broken(value, local=local)
            if message is not None:
                yield _problem(document, place, value, message)
