"""Builds the conditions of an adaptation on which the operator itself fails: a fault, or a status that it cannot read.

They are computed from the stored conditions as they are, without any model, since the stored status may be what cannot
be read. The next reconcile that works replaces them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from dapt_contract.sentences import shortened
from dapt_operator.api.v1alpha1 import conditions as api
from dapt_operator.api.v1alpha1.base import MAX_MESSAGE
from dapt_operator.api.v1alpha1.conditions import set_condition
from dapt_operator.api.v1alpha1.status import Condition
from dapt_operator.plan.status.conditions import NOT_READY, NOT_STALLED, ConditionValue, refusal_conditions
from dapt_operator.stage_run import JsonObject, Manifest

_MAX_ERROR_CHARACTERS: Final = 400
_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")


def error_message(error: Exception, version: str, instance: str) -> str:
    """Return what users report: the error, the version, and where the log with the traceback is.

    Equal for the same error, so that it is written once: addresses of objects in memory are left out.
    """
    text = _ADDRESS.sub("", " ".join(str(error).split()))
    return (
        f"the operator fails on this adaptation: {type(error).__name__}: {shortened(text, _MAX_ERROR_CHARACTERS)};"
        f" it tries again by itself; if this stays, report it with this message, version {version} and the log of the"
        f" operator {instance}"
    )


def internal_error_conditions(resource: Manifest, message: str, now: datetime) -> Sequence[JsonObject] | None:
    """Return all conditions of an adaptation on which the operator fails; None when they say so already.

    Args:
        resource: as stored.
        message: what to report.
        now: aware, UTC.
    """
    metadata, status = resource.get("metadata") or {}, resource.get("status")
    stored = _readable(status.get("conditions") if isinstance(status, Mapping) else None)
    generation = int(metadata.get("generation") or 1)
    spec = resource.get("spec")
    is_suspended = isinstance(spec, Mapping) and spec.get("suspend") is True
    message = shortened(message, MAX_MESSAGE)
    reported = ConditionValue("True", api.INTERNAL_ERROR, message)
    old_stalled = stored.get(api.STALLED)
    if old_stalled is not None and (old_stalled.status, old_stalled.reason, old_stalled.message) == reported:
        return None
    # Types that the status does not have get the values of an adaptation that was not worked on.
    values = refusal_conditions(api.INTERNAL_ERROR, message, is_suspended=is_suspended)
    values[api.ACCEPTED] = ConditionValue("Unknown", api.INTERNAL_ERROR, "the spec could not be judged")
    values |= {
        type_: ConditionValue(condition.status, condition.reason, condition.message)
        for type_, condition in stored.items()
        if type_ != api.STALLED
    }
    # Of Ready, Reconciling and Stalled at most one may be True.
    values[api.RECONCILING] = ConditionValue(
        "False", api.INTERNAL_ERROR, "the operator tries again by itself"
    )
    if values[api.READY].status == "True":
        values[api.READY] = ConditionValue("False", api.INTERNAL_ERROR, message)
    conditions: tuple[Condition, ...] = ()
    for type_ in api.CONDITION_TYPES:
        value, old = values[type_], stored.get(type_)
        conditions += set_condition(
            (old,) if old is not None else (),
            type_,
            value.status,
            value.reason,
            value.message,
            now=now,
            observed_generation=generation,
        )
    return [condition.to_dict() for condition in conditions]


def healed_conditions(conditions: tuple[Condition, ...], now: datetime) -> tuple[Condition, ...]:
    """Return the conditions of a finished adaptation without the report of an internal error that has passed.

    Only a finished one needs this: all conditions of any other are decided again at each reconcile. How it ended is in
    its condition Finished.
    """
    stalled = api.find_condition(conditions, api.STALLED)
    finished = api.find_condition(conditions, api.FINISHED)
    if stalled is None or finished is None or stalled.reason != api.INTERNAL_ERROR:
        return conditions
    end = ConditionValue(finished.status, finished.reason, finished.message)
    values = {
        api.READY: end if finished.reason == api.PUBLISHED else NOT_READY,
        api.RECONCILING: ConditionValue("False", finished.reason, "no work is left to do"),
        api.STALLED: NOT_STALLED if finished.reason == api.PUBLISHED else end,
    }
    for type_, value in values.items():
        conditions = set_condition(
            conditions,
            type_,
            value.status,
            value.reason,
            value.message,
            now=now,
            observed_generation=finished.observed_generation,
        )
    return conditions


def _readable(conditions: Any) -> dict[str, Condition]:
    """Return the conditions that are whole and of a known type and reason, by type."""
    found: dict[str, Condition] = {}
    for item in conditions if isinstance(conditions, list) else ():
        try:
            condition = Condition.model_validate(item)
        except ValueError:
            continue
        if condition.type in api.CONDITION_TYPES and condition.reason in api.REASONS:
            found[condition.type] = condition
    return found
