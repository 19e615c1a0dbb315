"""The base of every value in the contract: frozen, bounded, additive."""

from __future__ import annotations

import math
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)


class Contract(BaseModel):
    """A frozen value that ignores unknown fields, so that an old reader can read a new file.

    New fields come with a default, so that a new reader can read an old file.
    """

    model_config = ConfigDict(
        frozen=True, extra="ignore", use_attribute_docstrings=True, ser_json_inf_nan="strings"
    )


class Row(Contract):
    """A value that messages spell as a list, because pods have 3.5 KiB to say everything.

    In the order of the fields; a reader drops what it does not know at the end and takes defaults for what is missing,
    so rows are additive like everything else. Files keep the field names.
    """

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return {
                name: item for name, item in zip(cls.model_fields, value, strict=False) if item is not None
            }
        return value

    @model_serializer(mode="wrap")
    def _to_list(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
        if info.context and info.context.get("compact"):
            names = type(self).model_fields
            values = [getattr(self, name) for name in names]
            while values and values[-1] is None:
                values.pop()
            return [compact_number(value) for value in values]
        return handler(self)


def compact_number(value: Any) -> Any:
    """Floats at six significant digits, what is no number by name (JSON has no other way); all else as it is."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return float(f"{value:.6g}")
