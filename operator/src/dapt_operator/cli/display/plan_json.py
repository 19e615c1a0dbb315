"""Writes an estimate as JSON for scripts: the numbers of the page with the API's way to spell names."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import BaseModel

from dapt_operator.api.v1alpha1.base import camel_case
from dapt_operator.plan.sizing.estimate import Estimate


def plan_json(
    name: str, profile: str, estimate: Estimate, problems: Sequence[str], warnings: Sequence[str]
) -> str:
    """Return the estimate as JSON text; `null` is a number that cannot be known yet.

    Args:
        name: of the adaptation.
        profile: its name.
        estimate: of the adaptation on the profile.
        problems: for which a run would be refused.
        warnings: of the manifest and the profile; the estimate has its own.
    """
    values = {field.name: getattr(estimate, field.name) for field in fields(estimate)}
    head = {
        "name": name,
        "profile": profile,
        "problems": [*problems],
        "warnings": [*warnings, *values.pop("warnings")],
    }
    values.pop("problems")  # they are among those of the head, with the file's name
    return json.dumps(head | {"estimate": _plain(values)}, indent=2)


def _plain(value: Any) -> Any:
    """Return a value as JSON can have it."""
    if isinstance(value, BaseModel):
        return _plain(value.model_dump())
    if is_dataclass(value) and not isinstance(value, type):
        return _plain({field.name: getattr(value, field.name) for field in fields(value)})
    if isinstance(value, Mapping):
        return {camel_case(str(name)): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)
