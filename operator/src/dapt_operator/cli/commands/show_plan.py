"""`dapt plan` shows the page of an estimate, or its numbers as JSON."""

from __future__ import annotations

from dapt_operator.cli.commands.plan import plan
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.inputs.machine import built_in_profile
from dapt_operator.cli.inputs.manifests import Request
from dapt_operator.cli.terminal import write_line


def show_plan(
    request: Request, parameters: float | None, *, as_json: bool, namespace: str = "default"
) -> None:
    """Show what an adaptation would need.

    Raises:
        UserError: a run would be refused; the page is shown before.
    """
    page = plan(request, parameters, namespace=namespace)
    if as_json:
        from dapt_operator.cli.display.plan_json import plan_json

        profile = request.profile or built_in_profile(request.adaptation)
        names = (request.adaptation.metadata.name, profile.metadata.name)
        write_line(plan_json(*names, page.estimate, page.problems, request.warnings))
    else:
        write_line("\n".join(page.lines))
    if page.problems:
        raise UserError(page.problems)
