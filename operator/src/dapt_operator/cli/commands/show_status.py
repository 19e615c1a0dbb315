"""`dapt status` shows a table of all, or one with its stages, from folders of this machine or from a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dapt_operator.cli.display.screen import make_console
from dapt_operator.cli.display.status_json import state_json, states_json
from dapt_operator.cli.errors import UserError
from dapt_operator.cli.run_folder import all_runs, find_run, no_run_text
from dapt_operator.cli.terminal import write_line

if TYPE_CHECKING:
    from dapt_client.access import ClusterAccess


def show_local(name: str | None, runs: Path, *, as_json: bool) -> None:
    """Show one local run, or all.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    from dapt_operator.cli.commands.status import run_overview, runs_table

    if name is not None:
        run = find_run(name, runs)
        if as_json:
            write_line(state_json(run.read()))
            return
        console = make_console()
        console.print(run_overview(run))
        return
    existing = all_runs(runs)
    if as_json:
        write_line(states_json([run.read() for run in existing]))
        return
    if not existing:
        raise UserError(no_run_text(runs))
    console = make_console()
    console.print(runs_table(existing))


def show_cluster(access: ClusterAccess, name: str | None, *, all_namespaces: bool, as_json: bool) -> None:
    """Show one adaptation of a cluster, or all of a namespace or of the whole cluster.

    Raises:
        UserError: there is none, or the cluster refuses to show it.
    """
    from dapt_operator.cli.commands.cluster.overview import adaptation_overview, adaptations_table

    if name is not None:
        resource = access.adaptation(name)
        if as_json:
            write_line(state_json(resource))
            return
        console = make_console()
        console.print(adaptation_overview(resource))
        return
    resources = access.adaptations(all_namespaces=all_namespaces)
    if as_json:
        write_line(states_json(resources))
        return
    if not resources:
        where = "the cluster" if all_namespaces else f"namespace {access.namespace}"
        raise UserError(
            f"no adaptation in {where}; create one with `dapt submit MANIFEST`, or give --local for runs in folders of"
            " this machine"
        )
    console = make_console()
    console.print(adaptations_table(resources, with_namespace=all_namespaces))
