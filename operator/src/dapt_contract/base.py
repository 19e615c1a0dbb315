"""Defines the base classes of every value in the contract: frozen, bounded, additive.

What a pod reports is untrusted, and goes into a status with bounds of its own. So every field of facts, messages and
readings has bounds: a count has a largest value, a text a length, and a float that is counted with is a finite number.
Losses may be infinite or no number, since that is what divergence is.
"""

import math
from typing import Annotated, ClassVar, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

JsonObject = dict[str, JsonValue]
"""A JSON object whose fields are not checked yet."""

LARGEST_COUNT: Final = 10**15
"""Of tokens, bytes, steps or documents. A thousand times as many still fit into the 64 bits of a Kubernetes integer."""

MAX_CHECKPOINTS: Final = 50
"""Checkpoints of one attempt at most. This bound and the next three hold in the API and in the stages."""
MAX_ATTEMPTS: Final = 16
"""Attempts of pretraining at most; the API allows fewer rollbacks."""
MAX_ADAPTERS: Final = 2 * MAX_ATTEMPTS
"""Adapters of one model at most: one for each attempt on the way to it."""
MAX_SEQUENCE_RANKS: Final = 1024
"""Ranks of one sequence at most."""

Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
PositiveCount = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
Amount = Annotated[float, Field(ge=0.0, le=1e15, allow_inf_nan=False)]
"""A measured quantity that is counted with: a time, a speed."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


def _no_gain(nats: float) -> float:
    if nats < 0.0:
        raise ValueError("must be 0 or more: a probability is at most 1")
    return nats


Loss = Annotated[float, Field(allow_inf_nan=True), AfterValidator(_no_gain)]
"""A negative log-likelihood in nats: infinite, or no number, where a model is broken."""
DigestText = Annotated[str, Field(max_length=128)]
ShortText = Annotated[str, Field(max_length=253)]
PathText = Annotated[str, Field(max_length=1024)]
"""A URI, or a path on the work volume."""


def _inside(path: str) -> str:
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise ValueError("must be a path below the work volume: relative, and without '..'")
    return path


WorkPath = Annotated[str, Field(max_length=1024), AfterValidator(_inside)]
"""A path below the root of the work volume. A pod reports some, and the pod of a later stage opens them, with more
rights than the first one had."""


class Contract(BaseModel):
    """Ignores unknown fields, so that an old reader can read a new file. Instances are frozen.

    Every new field needs a default, so that a new reader can read an old file.

    pydantic builds the validator of a class when it is first used: a process that imports all stages uses few of them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings", defer_build=True)


class Row(Contract):
    """Is written as a list in termination messages, because a message holds 3.75 KiB. Files keep the field names.

    The items stand in the order of the fields. A reader drops the items at the end that it does not know and takes
    defaults for missing ones, so rows are additive like everything else: append new fields, never insert them.
    """

    ABSENT_IF_NONE: ClassVar[frozenset[str]] = frozenset()
    """Fields that a file has only with a value, so that a signature of before the field still fits."""

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return {
                name: item for name, item in zip(cls.model_fields, value, strict=False) if item is not None
            }
        return value

    @model_serializer(mode="wrap")
    def _to_list(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> object:
        if info.context and info.context.get("compact"):
            names = type(self).model_fields
            values = [getattr(self, name) for name in names]
            # Only None at the end may go: the place of an item is its name.
            while values and values[-1] is None:
                values.pop()
            return [compact_number(value) for value in values]
        written = handler(self)
        if not self.ABSENT_IF_NONE or not isinstance(written, dict):
            return written
        return {
            name: value
            for name, value in written.items()
            if value is not None or name not in self.ABSENT_IF_NONE
        }


def compact_numbers(value: object) -> object:
    """Return a JSON value with all its floats as `compact_number` writes them."""
    if isinstance(value, dict):
        return {name: compact_numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [compact_numbers(item) for item in value]
    return compact_number(value)


def compact_number(value: object) -> object:
    """Round a float to six significant digits; return every other value unchanged."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        # JSON has no literal for these; pydantic reads them back from these names.
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return float(f"{value:.6g}")
