"""`dapt status` and `dapt checkpoints` on a cluster: what the resources themselves say, without any volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dapt_client.resources import status_of
from dapt_operator.api.v1alpha1.conditions import FINISHED, RECONCILING, STALLED, find_condition
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.cli.commands.status import last_progress, reason_of_end, result_cells
from dapt_operator.cli.display.live_view import render
from dapt_operator.cli.display.results import attempts_table, candidates_table
from dapt_operator.cli.display.stage_rows import PLANNED, Snapshot
from dapt_operator.cli.errors import UserError
from dapt_operator.number_format import duration
from dapt_operator.plan.stage_parts.stage_plan import stage_kinds
from dapt_operator.stage_run import Manifest

NOT_SEEN: Final = (
    "no operator has reconciled it yet; ask the cluster's administrators whether dapt's operator runs and watches this"
    " namespace"
)


def snapshot_of(resource: Manifest, now: datetime, elapsed_seconds: float | None = None) -> Snapshot:
    """Return what the live view shows of a resource."""
    status = status_of(resource)
    return Snapshot(
        str(resource["metadata"]["name"]),
        status,
        _planned(resource.get("spec")),
        last_progress(status),
        now,
        elapsed_seconds,
    )


def _planned(spec: Mapping[str, Any] | None) -> tuple[str, ...]:
    try:
        return stage_kinds(DomainAdaptationSpec.model_validate(spec))
    except ValidationError:  # another version wrote it, or the operator refuses it as well
        return PLANNED


def adaptations_table(resources: Sequence[Manifest], *, with_namespace: bool) -> Table:
    """Return one line for each adaptation."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    headings = ("NAME", "PHASE", "REASON", "LEFT", "PROGRESS", "FORGETTING", "GAIN", "SELECTED")
    for heading in ("NAMESPACE", *headings) if with_namespace else headings:
        table.add_column(heading)
    for resource in resources:
        status, metadata = status_of(resource), resource["metadata"]
        left = status.progress.eta_seconds if status.progress else None
        cells = (
            str(metadata["name"]),
            status.phase or "Pending",
            _reason(status),
            "–" if left is None else duration(left),
            *result_cells(status),
        )
        table.add_row(*((str(metadata.get("namespace", "")), *cells) if with_namespace else cells))
    return table


def _reason(status: DomainAdaptationStatus) -> str:
    """Return the reason of the condition that says most about the present state."""
    for type_ in (STALLED, FINISHED, RECONCILING):
        condition = find_condition(status.conditions, type_)
        if condition is not None and condition.status == "True":
            return condition.reason
    return "–"


def adaptation_overview(resource: Manifest) -> RenderableType:
    """Return the stages, the reason why it waits or ended, and the tables of results."""
    snapshot = snapshot_of(resource, datetime.now(UTC))
    status = snapshot.status
    parts: list[RenderableType] = [render(snapshot)]
    sentence = reason_of_end(status) or _work_sentence(status)
    if sentence:
        parts += [Text(), Text(sentence)]
    for table in (attempts_table(status), candidates_table(status)):
        if table is not None:
            parts += [Text(), table]
    return Group(*parts)


def _work_sentence(status: DomainAdaptationStatus) -> str:
    condition = find_condition(status.conditions, RECONCILING)
    if condition is None:
        return NOT_SEEN
    return f"{condition.reason}: {condition.message}" if condition.status == "True" else ""


def checkpoints_table(resource: Manifest) -> Table:
    """Return the candidates that were measured.

    Raises:
        UserError: there is none so far.
    """
    table = candidates_table(status_of(resource))
    if table is None:
        raise UserError(
            f"{resource['metadata']['name']}: no candidate is measured yet; `dapt watch` shows how far it is"
        )
    return table
