"""Reads adaptations as they are stored: their status as a model, and whether they have ended."""

from __future__ import annotations

from dapt_client.next_steps import next_step
from dapt_operator.api.v1alpha1.conditions import FINISHED, PUBLISHED, STALLED, find_condition
from dapt_operator.api.v1alpha1.status import Condition, DomainAdaptationStatus
from dapt_operator.plan.stored_status import read_stored_status
from dapt_operator.stage_run import Manifest


def status_of(resource: Manifest) -> DomainAdaptationStatus:
    """Return the status of a resource as far as it can be read; an empty one before the first reconcile."""
    return read_stored_status(resource.get("status") or {}).model


def is_outdated(resource: Manifest, status: DomainAdaptationStatus) -> bool:
    """Return whether the spec was changed since the operator last acted on it."""
    generation, observed = resource["metadata"].get("generation"), status.observed_generation
    return generation is not None and observed is not None and observed < generation


def end_of(status: DomainAdaptationStatus) -> Condition | None:
    """Return the condition that says that user action is required or that it has finished; None while it runs."""
    for type_ in (STALLED, FINISHED):
        condition = find_condition(status.conditions, type_)
        if condition is not None and condition.status == "True":
            return condition
    return None


def failure_sentence(title: str, end: Condition | None) -> str:
    """Return why an adaptation has no published model; empty when it has one, or still runs."""
    if end is None or (end.type == FINISHED and end.reason == PUBLISHED):
        return ""
    step = next_step(end.reason)
    return f"{title}: {end.reason}: {end.message}" + (f"; next: {step}" if step else "")
