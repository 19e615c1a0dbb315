"""Turns pydantic's errors into problems, and replaces wrong values so that the rest of a document can be checked.

pydantic stops at a block that has a wrong type, so one validation cannot find everything. The collector replaces each
wrong value by one that the schema accepts; validating again then finds what lies behind it.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Final

from pydantic import ValidationError

from dapt_operator.api.v1alpha1.base import (
    CANDIDATE_PATTERN,
    DESTINATION_PATTERN,
    MODEL_PATTERN,
    PATTERNS,
    QUANTITY_PATTERN,
    TIME_PATTERN,
)
from dapt_operator.api.validation.hints.advice import Trial, schema_at
from dapt_operator.api.validation.hints.unknown_fields import UnknownField, message, nearest_sibling, proposal
from dapt_operator.api.validation.hints.value_hints import IsPath, nearest_choice, no_path, replacement
from dapt_operator.api.validation.problem import Problem, accepted_text, path_text, value_text
from dapt_operator.api.validation.yaml_source import COMMA_ADVICE, Path, YamlDocument, is_rest_of_number

PROFILE_FIELDS: Final = frozenset(
    {
        "affinity",
        "automountServiceAccountToken",
        "command",
        "containers",
        "env",
        "envFrom",
        "environment",
        "hostNetwork",
        "image",
        "imagePullSecrets",
        "initContainers",
        "nodeSelector",
        "podSpec",
        "podTemplate",
        "runtimeClassName",
        "securityContext",
        "serviceAccount",
        "serviceAccountName",
        "tolerations",
        "trainerImage",
        "volumeMounts",
        "volumes",
    }
)
"""Names from pod templates. In a DomainAdaptation they are refused as fields of the profile, not as misspelled ones."""

OTHER_WAYS: Final[dict[str, str]] = {
    "gradientAccumulationSteps": (
        "follows from globalBatchSize, microBatchSize and the number of ranks; remove it, and set globalBatchSize"
    ),
    "warmupSteps": "the warm-up is a share of all steps; remove it, and set schedule.warmupFraction",
    "saveSteps": "checkpoints are spread over the training; remove it, and set checkpoints.count",
    "everySteps": "checkpoints are spread over the training; remove it, and set checkpoints.count",
}
"""Names that other tools have for what is set in another way here; a value cannot be taken over."""

_NAMES_OF_PRETRAINING: Final = ("pretrain", "pretraining", "train", "training", "trainer")

REQUIRED_BECAUSE: Final[dict[str, str]] = {
    "spec.corpus.general": "without general text forgetting cannot be measured",
    "spec.output.destination": "the finished model has to go somewhere",
}
"""Why a field is required, where the field's name does not say it."""

_EXAMPLES: Final = {
    MODEL_PATTERN: "hf://org/name",
    DESTINATION_PATTERN: "s3://bucket/folder",
    QUANTITY_PATTERN: "1",
    CANDIDATE_PATTERN: "a1-s1",
    TIME_PATTERN: "2026-01-01T00:00:00Z",
}


_MOST_PROPOSALS: Final = 50
"""Problems of one document that get a proposal."""
_MOST_PROBLEMS: Final = 500
"""Problems of one document after which further unknown fields are not listed."""
_MOST_ERRORS_WITH_PROPOSALS: Final = 500
"""Errors of one validation above which no problem gets one: each change that is tried is validated again."""


class ProblemCollector:
    """Collects the problems of one document over several validations.

    Attributes:
        problems: what was found so far, in no order.
    """

    def __init__(
        self,
        document: YamlDocument,
        schema: dict[str, Any],
        is_accepted: Trial | None = None,
        is_path: IsPath = no_path,
    ) -> None:
        """Start with no problem.

        Args:
            document: as the user wrote it.
            schema: of the resource, structural.
            is_accepted: tries what a message would propose; None: messages propose nothing.
            is_path: knows this machine's files, where they matter.
        """
        self.problems: list[Problem] = []
        self._replaced: set[Path] = set()
        self._around_replaced: set[Path] = set()
        """Blocks that a replaced field lies in."""
        self._document = document
        self._schema = schema
        self._is_accepted = is_accepted
        self._is_path = is_path

    def is_affected(self, path: Path) -> bool:
        """Return whether a field, something in it or a block around it was replaced, so that it cannot be checked."""
        return self._is_within_replaced(path) or path in self._around_replaced

    def collect(self, data: dict[str, Any], error: ValidationError) -> None:
        """Record the problems of one validation, and change `data` in place so that the next one finds the rest.

        Within one list wrong items are replaced, never removed, so that the indices of the others stay.
        """
        if error.error_count() > _MOST_ERRORS_WITH_PROPOSALS:
            self._is_accepted = None
        details = error.errors(include_url=False, include_context=False, include_input=False)
        # Unknown names first: a required field that is missing because its name is misspelled is one problem, not two.
        for detail in sorted(details, key=lambda detail: detail["type"] != "extra_forbidden"):
            path: Path = detail["loc"]
            schema = schema_at(self._schema, path)
            if detail["type"] == "extra_forbidden":
                self._collect_unknown_field(data, path)
            elif detail["type"] == "missing":
                self._collect_missing_field(data, path, schema)
            elif not _counts_only_good_items(detail["type"], _value_at(data, path), schema):
                self._collect_wrong_value(data, path, schema)

    def _is_within_replaced(self, path: Path) -> bool:
        """Return whether a field lies in a replaced value: then its problem is of our making."""
        return any(path[:length] in self._replaced for length in range(len(path) + 1))

    def _mark_replaced(self, path: Path) -> None:
        self._replaced.add(path)
        self._around_replaced.update(path[:length] for length in range(len(path)))

    def _collect_unknown_field(self, data: dict[str, Any], path: Path) -> None:
        value = _value_at(data, path[:-1]).pop(str(path[-1]))
        if len(self.problems) >= _MOST_PROBLEMS:
            return  # that many are no misspellings, and finding the nearest name of each takes milliseconds
        field = UnknownField(self._document, self._schema, path)
        nearest = nearest_sibling(field)
        if nearest is not None:
            self._mark_replaced((*path[:-1], nearest))
        if not self._is_within_replaced(path):
            refusal, trial = _refusal(field), self._trial()
            advice = None if refusal or trial is None else proposal(field, trial)
            text = refusal or message(field, advice)
            line = self._document.line_of(path)
            self.problems.append(Problem(path_text(path), value, text, line, advice=advice))
            # What a rule misses at the proposed place is no second problem.
            for place, _ in advice.added if advice is not None else ():
                self._mark_replaced(place)

    def _trial(self) -> Trial | None:
        # Each change that is tried is a validation of the document, so a document full of mistakes gets proposals for
        # the first of them alone.
        return self._is_accepted if len(self.problems) < _MOST_PROPOSALS else None

    def _collect_missing_field(self, data: dict[str, Any], path: Path, schema: dict[str, Any]) -> None:
        if not self.is_affected(path):
            field = path_text(path)
            reason = f": {REQUIRED_BECAUSE[field]}" if field in REQUIRED_BECAUSE else ""
            text = f"missing, but required{reason}; add it: {accepted_text(schema)}"
            self.problems.append(Problem(field, None, text, self._document.line_of(path)))
        _value_at(data, path[:-1])[path[-1]] = _example(schema)
        self._mark_replaced(path)

    def _collect_wrong_value(self, data: dict[str, Any], path: Path, schema: dict[str, Any]) -> None:
        parent, key = _value_at(data, path[:-1]), path[-1]
        value, is_required = parent[key], _is_required(self._schema, path)
        if not self._is_within_replaced(path):
            field = path_text(path)
            text = f"write {accepted_text(schema, value)}{nearest_choice(value, schema)}"
            if not isinstance(key, int) and not is_required:
                text += _default_text(schema)
            if field in REQUIRED_BECAUSE and isinstance(value, list) and not value:
                text += f": {REQUIRED_BECAUSE[field]}"
            trial = self._trial()
            advice = None if trial is None else replacement(path, value, schema, trial, self._is_path)
            text += f"; {advice.text}" if advice is not None else ""
            line = self._document.line_of(path)
            self.problems.append(Problem(field, value, text, line, shows_value=True, advice=advice))
        self._mark_replaced(path)
        if isinstance(key, int) or is_required:
            parent[key] = _example(schema)
        else:
            del parent[key]


def _counts_only_good_items(error_type: str, value: Any, schema: dict[str, Any]) -> bool:
    """Return whether a list is called too short only because pydantic does not count its wrong items."""
    return error_type == "too_short" and isinstance(value, list) and len(value) >= schema.get("minItems", 0)


def _refusal(field: UnknownField) -> str:
    """Return the sentence about a field that belongs elsewhere on purpose; empty for one that is only unknown."""
    if is_rest_of_number(field.name) and field.value is None:
        return COMMA_ADVICE
    is_adaptation = "suspend" in field.schema["properties"]["spec"]["properties"]
    if not is_adaptation or field.parent[:1] != ("spec",):
        return ""
    if field.name in PROFILE_FIELDS:
        return (
            "belongs to the profile, which the platform team writes; remove it here and ask for it in the"
            " AdaptationProfile"
        )
    if sentence := OTHER_WAYS.get(field.name):
        return sentence
    if field.name == "namespace":
        return "belongs to metadata.namespace; move it there"
    if field.parent[:2] == ("spec", "stageResources"):
        stage = str(field.parent[-1])
        if stage == "stageResources" and field.name.lower() in _NAMES_OF_PRETRAINING:
            return "pretraining runs on all of spec.resources; set nodes, gpusPerNode, cpu and memory there"
        if field.name == "gpus" and stage in ("prepare", "publish"):
            return f"{stage} takes no GPU; remove it"
    return ""


def _default_text(schema: dict[str, Any]) -> str:
    """Return what leaving out an optional field means."""
    default = schema.get("default")
    if default is None or isinstance(default, dict | list):
        return ", or leave the field out"
    return f", or leave the field out for {default if isinstance(default, str) else value_text(default)}"


def _is_required(whole_schema: dict[str, Any], path: Path) -> bool:
    return path[-1] in schema_at(whole_schema, path[:-1]).get("required", ())


def _value_at(data: Any, path: Path) -> Any:
    for part in path:
        data = data[part]
    return data


def _example(schema: dict[str, Any]) -> Any:
    """Return some value that the schema accepts, so that the rest of a document can be checked. It is never shown."""
    if "default" in schema:
        return deepcopy(schema["default"])
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        return {name: _example(schema["properties"][name]) for name in schema.get("required", ())}
    if kind == "array":
        return [_example(schema.get("items", {})) for _ in range(schema.get("minItems", 0))]
    if kind == "integer":
        return max(1, schema.get("minimum", 1))
    if kind == "number":
        low, high = schema.get("minimum", 0), schema.get("maximum", 1)
        return (low + high) / 2
    if kind == "boolean":
        return False
    if schema.get("pattern") in PATTERNS:
        return _EXAMPLES.get(schema["pattern"], "s3://bucket/x" if "s3" in schema["pattern"] else "x")
    return "x"
