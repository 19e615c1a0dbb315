"""Draws the page of an adaptation in a cluster from the resource alone, without the work volume."""

from __future__ import annotations

from pathlib import Path

from dapt_client.access import ClusterAccess
from dapt_client.errors import UserError


def write_report(access: ClusterAccess, name: str, out: Path) -> Path:
    """Write the page of an adaptation below a folder and return its path.

    Raises:
        UserError: there is no such adaptation, nothing to draw yet, or the page cannot be written.
    """
    resource = access.adaptation(name)
    from dapt_operator.report import ReportError, draw_report

    folder = out / name
    try:
        return draw_report(resource.get("status") or {}, resource, folder / "no-work-volume", folder)[0]
    except ReportError as error:
        raise UserError(str(error)) from None
