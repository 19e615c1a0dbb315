"""Defines what every block of the resources shares: a frozen base class, and rules between fields.

Python uses snake_case, YAML uses camelCase; the alias generator below is the only place that knows both.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    WithJsonSchema,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from dapt_contract.untrusted.printable import printable_values
from dapt_operator.api.v1alpha1.texts.field_docstrings import field_docstrings
from dapt_operator.api.v1alpha1.texts.text_rules import AmountRule, TextRule, TextRules, WholeOrText

API_GROUP = "dapt.dev"
API_VERSION: Final = "dapt.dev/v1alpha1"
VERSION = "v1alpha1"

SKIP_RULES = "skip_rules"
"""Validation-context key: when true, only types and ranges are checked (`validate.check` checks the rules
itself)."""

LARGEST_INTEGER: Final = 2**63 - 1
"""As the API server stores it."""
_SPECIAL_ALIASES = {"try_number": "try"}
_SPECIAL_WORDS = {"gib": "GiB", "mib": "MiB"}


@lru_cache(maxsize=2_000)
def camel_case(name: str) -> str:
    """Return the YAML name of a Python attribute: `memory_gib_per_gpu` -> `memoryGiBPerGpu`."""
    if name in _SPECIAL_ALIASES:
        return _SPECIAL_ALIASES[name]
    first, *rest = name.split("_")
    return first + "".join(_SPECIAL_WORDS.get(word, word[:1].upper() + word[1:]) for word in rest)


@dataclass(frozen=True)
class Rule:
    """A constraint between fields of a block, checked here in Python and by the API server in CEL.

    field: where the problem is shown, camelCase and relative to the block ('' is the block itself).
    holds: returns whether a validated block keeps the rule.
    cel: the same check, with `self` as the block.
    message: one sentence, the same from both.
    """

    field: str
    holds: Callable[[Any], bool]
    cel: str
    message: str


def _kubernetes_schema(schema: dict[str, Any], block: type[BaseModel]) -> None:
    """Add to a block's JSON schema what only the class knows: descriptions, rules, and the defaults of blocks.

    A block's default is written out in full, since the API server checks it by the block's rules before it fills in
    the defaults inside it.
    """
    for name, text in field_docstrings(block).items():
        if name in block.model_fields:
            schema["properties"][camel_case(name)]["description"] = text
    for name, field in block.model_fields.items():
        if isinstance(field.default, Base):
            schema["properties"][camel_case(name)]["default"] = field.default.to_dict()
    rules = getattr(block, "RULES", ())
    if rules:
        schema["x-kubernetes-validations"] = [
            {"rule": rule.cel, "message": rule.message}
            | ({"fieldPath": f".{rule.field}"} if rule.field else {})
            for rule in rules
        ]


class Base(BaseModel):
    """A block of a resource: frozen, strict about types, closed to unknown fields.

    pydantic builds the validator of a block when it is first used, so a command builds those that it uses.
    """

    model_config = ConfigDict(
        alias_generator=camel_case,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        defer_build=True,
        json_schema_extra=_kubernetes_schema,
    )

    RULES: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _rules_hold(self, info: ValidationInfo) -> Self:
        if info.context and info.context.get(SKIP_RULES):
            return self
        broken = [rule.message for rule in self.RULES if not rule.holds(self)]
        if broken:
            raise PydanticCustomError("rule", "{text}", {"text": "; ".join(broken)})
        return self

    def with_values(self, **values: object) -> Self:
        """Return a copy with these fields changed, validated as if the block were read again.

        `model_copy(update=...)` checks neither names nor types, so a misspelled field would be lost in silence.

        Raises:
            TypeError: a name is not a field of the block.
            pydantic.ValidationError: a value does not fit its field, or the fields do not fit together.
        """
        unknown = values.keys() - type(self).model_fields.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}")
        return type(self).model_validate({**self.__dict__, **values})

    def to_dict(self, *, only_set: bool = False) -> dict[str, Any]:
        """Return the block as YAML has it: camelCase, JSON types, absent fields left out.

        only_set: also leave out fields that were not set, and so have their defaults.
        """
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=only_set)


class LeanBase(Base):
    """A block that is written without empty lists and maps, and without absent fields."""

    @model_serializer(mode="wrap")
    def _lean(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value not in ({}, [], ())}


def _integral(value: Any) -> Any:
    """Return a float without a fraction as an integer, since people write two billion tokens as `2e9`."""
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(whole, int) and abs(whole) > LARGEST_INTEGER:
        raise ValueError("it does not fit into 64 bits")
    return whole


Integer = Annotated[int, BeforeValidator(_integral)]


def _existing_time(text: str) -> str:
    """Return the text of a time that exists: the pattern lets the 99th of February through."""
    datetime.fromisoformat(text)
    return text


FreeForm = Annotated[
    Mapping[str, Any],
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]
"""An object that Kubernetes itself defines (part of a pod, part of a claim), passed on unread."""

NAME_PATTERN = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
HOST_PATTERN = r"^[a-z]([a-z0-9-]*[a-z0-9])?$"
LABEL_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$"
_NO_SPACE = r"[^ \t\n\v\f\r]"
"""As Go reads `\\S`, for which Python has more spaces: the API server and lint must agree."""
SOURCE_PATTERN = rf"^(hf|s3|gs|pvc|file)://{_NO_SPACE}(.*{_NO_SPACE})?$"
MODEL_PATTERN = rf"^(hf|s3|gs|pvc|file|adaptation)://{_NO_SPACE}(.*{_NO_SPACE})?$"
DESTINATION_PATTERN = rf"^(s3|gs|pvc|hf|file)://{_NO_SPACE}(.*{_NO_SPACE})?$"
QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
_IMAGE_PART = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
IMAGE_PATTERN = (
    rf"^(([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(:[0-9]+)?/)?{_IMAGE_PART}(/{_IMAGE_PART})*"
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@[a-z0-9]+([+._-][a-z0-9]+)*:[0-9a-fA-F]{32,})?$"
)
"""As container runtimes read the name of an image; whatever else is written, no node can pull."""
TASK_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
LICENSE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9.+-]*$"
LANGUAGE_PATTERN = r"^([a-z]{2,3}|code|multilingual)$"
CANDIDATE_PATTERN = r"^a[1-9][0-9]*-(s[0-9]+|avg[0-9]+)(-i(0\.[0-9]+|1\.0))?$"
TIME_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"

PATTERNS = {
    NAME_PATTERN: "a Kubernetes name (lower-case letters, digits, '-' and '.')",
    HOST_PATTERN: "a name for hosts (lower-case letters, digits and '-', a letter first)",
    LABEL_PATTERN: "a Kubernetes label value (letters, digits, '-', '_' and '.')",
    SOURCE_PATTERN: (
        "hf://datasets/ORG/NAME@REVISION/FILES, s3://BUCKET/FILES, gs://BUCKET/FILES, pvc://CLAIM/FILES or file://FILES"
    ),
    MODEL_PATTERN: (
        "hf://ORG/NAME@REVISION, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, pvc://CLAIM/FOLDER, file://PATH"
        " or adaptation://NAME"
    ),
    DESTINATION_PATTERN: (
        "s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, pvc://CLAIM/FOLDER, hf://ORG/NAME or file://PATH"
    ),
    QUANTITY_PATTERN: "a Kubernetes quantity in quotes, such as '8', '500m' or '64Gi'",
    IMAGE_PATTERN: "the name of an image, such as registry.example/team/dapt-trainer:0.1.0",
    TASK_PATTERN: "a task's name (letters, digits, '-', '_' and '.')",
    LICENSE_PATTERN: "the id of a licence, such as apache-2.0, cc-by-4.0, llama3.1 or other",
    LANGUAGE_PATTERN: "a language's code of ISO 639, such as en, de or zho, multilingual or code",
    CANDIDATE_PATTERN: "a candidate's id, such as a1-s4560, a1-avg3 or a1-s4560-i0.8",
    TIME_PATTERN: "a time in UTC, such as 2026-01-31T12:00:00Z",
}
"""What each pattern accepts, as text for messages about a value that does not match."""

MAX_IMAGE: Final = 512
"""Characters of an image's name."""
MAX_TEXT: Final = 1024
"""Characters of a sentence in a list or block of the status, and of an Event's message."""
MAX_MESSAGE: Final = 4096
"""Characters of a message about a stage or candidate."""

Name = Annotated[str, Field(pattern=NAME_PATTERN, min_length=1, max_length=63)]
SecretName = Annotated[str, Field(pattern=NAME_PATTERN, min_length=1, max_length=253)]
_NO_NODE_HAS_IT = TextRule(
    "^([0-9]+([.][0-9]+)?(P|E|Pi|Ei)|[0-9]{4,}([.][0-9]+)?(T|Ti)|[0-9]{7,}([.][0-9]+)?(G|Gi)"
    "|[0-9]{10,}([.][0-9]+)?(M|Mi)|[0-9]{13,}([.][0-9]+)?(k|Ki)|[0-9]{16,}([.][0-9]+)?m?)$",
    "is a petabyte or more, which no node has; write what a pod needs, such as 64Gi",
)
_IS_ZERO: Final = (
    "is zero, which Kubernetes takes for no limit at all; write what a pod needs, such as 64Gi of memory or 8 CPUs, or"
    " leave the field out"
)
_NO_LIMIT = TextRule("^0+([.]0+)?[A-Za-z]*$", _IS_ZERO)
_NO_NODE_HAS_SO_MANY = AmountRule(
    "is more CPUs than any node has; write what a pod needs, such as 8 or 500m", below="1000Ti"
)
_NO_LIMIT_OF_CPUS = AmountRule(_IS_ZERO, above="0")
Quantity = Annotated[
    str, Field(pattern=QUANTITY_PATTERN, max_length=32), TextRules(_NO_NODE_HAS_IT, _NO_LIMIT)
]


def _whole_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Cpus = Annotated[
    str,
    Field(pattern=QUANTITY_PATTERN, max_length=32),
    BeforeValidator(_whole_as_text),
    WholeOrText(),
    TextRules(_NO_NODE_HAS_SO_MANY, _NO_LIMIT_OF_CPUS),
]
"""A quantity that is also taken as a whole number: most people write `cpu: 8`."""
Glob = Annotated[str, Field(min_length=1, max_length=1024)]
Cleaned = BeforeValidator(printable_values)
"""Cleans a text of a status, which comes from pods, controllers and tenants, of what would steer a terminal. Before the
check of its type, which half of a surrogate pair would fail."""
Text = Annotated[str, Field(max_length=MAX_TEXT), Cleaned]
ShortText = Annotated[str, Field(max_length=253), Cleaned]
Message = Annotated[str, Field(max_length=MAX_MESSAGE), Cleaned]
Time = Annotated[str, Field(pattern=TIME_PATTERN, max_length=20), AfterValidator(_existing_time)]
Digest = Annotated[str, Field(max_length=128)]


def exactly_one(*fields: str) -> str:
    """Return a CEL expression that holds when exactly one of these fields is present."""
    return f"[{', '.join(f'has(self.{field})' for field in fields)}].filter(present, present).size() == 1"


def count_set(block: BaseModel, *attributes: str) -> int:
    """Return how many of these optional attributes have a value."""
    return sum(getattr(block, attribute) is not None for attribute in attributes)
