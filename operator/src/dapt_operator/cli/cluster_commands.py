"""Defines the commands that only a cluster has, with their options; `commands/cluster/` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dapt_operator.cli.errors import EXIT_USAGE, UserError
from dapt_operator.cli.terminal import write_line
from dapt_operator.cli.world import RUNS, Context, Local, Namespace, RunsDir, is_local, open_access

commands = typer.Typer()

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the DomainAdaptation.")]


@commands.command()
def submit(
    manifests: Annotated[
        list[Path], typer.Argument(metavar="MANIFEST...", help="Files with adaptations; - reads stdin.")
    ],
    namespace: Namespace = None,
    context: Context = None,
    watch_it: Annotated[
        bool, typer.Option("--watch", "-w", help="Then watch the adaptation, as `dapt watch` does.")
    ] = False,
) -> None:
    """Check manifests and create their adaptations in the cluster, or change them where they exist."""
    from dapt_operator.cli.commands.cluster.edits import submit as submit_all

    access = open_access(namespace, context)
    lines, names = submit_all(access, manifests)
    for line in lines:
        write_line(line)
    if watch_it:
        if len(names) != 1:
            raise UserError(
                f"--watch: the manifests have {len(names)} adaptations; watch one with `dapt watch NAME`"
            )
        watch(names[0], access.namespace, context)


@commands.command()
def watch(name: Name, namespace: Namespace = None, context: Context = None) -> None:
    """Follow an adaptation until it ends or needs its user. Ctrl-C ends the view and leaves the adaptation alone.

    Exits 0 when the model is published, 1 when user action is required, 130 or 143 when the view was stopped.
    """
    from dapt_client.resources import failure_sentence
    from dapt_operator.cli.commands.cluster.watch import watch as follow
    from dapt_operator.cli.display.screen import make_console, screen_for
    from dapt_operator.cli.signals import StopFlag

    access = open_access(namespace, context)
    with StopFlag() as flag:
        snapshot = follow(access, name, screen_for(make_console()), flag)
        if flag.is_set:
            raise typer.Exit(flag.exit_code)
    if problem := failure_sentence(f"{access.namespace}/{name}", snapshot.stalled or snapshot.finished):
        raise UserError(problem)


@commands.command()
def logs(
    name: Name,
    stage: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Kind of stage, such as pretrain. Default: the newest run."),
    ] = None,
    attempt: Annotated[int | None, typer.Option(metavar="N", help="Attempt of pretraining.")] = None,
    candidate: Annotated[str | None, typer.Option(metavar="ID", help="Candidate that is measured.")] = None,
    try_number: Annotated[
        int | None, typer.Option("--try", metavar="N", help="Number of the run of the stage.")
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Node rank: number of the pod in its gang, from 0. Default: all pods."
        ),
    ] = None,
    tail: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Show the last N lines of each pod. Default: all.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Show lines as they are written, of rank 0 unless --rank says."),
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
    local: Local = False,
    runs_dir: RunsDir = None,
) -> None:
    """Show the log of a stage; of failed pods that are gone, the last lines that the status has kept.

    A local run keeps the whole log of each run of a stage.
    """
    from dapt_contract.stages import KINDS
    from dapt_operator.cli.commands.cluster.logs import LogQuery, log_lines

    if stage is not None and stage not in KINDS:
        raise UserError(f"--stage {stage}: not a kind of stage; write one of {', '.join(KINDS)}", EXIT_USAGE)
    query = LogQuery(stage, attempt, candidate, try_number, rank, tail, follow)
    if is_local(local=local, runs_dir=runs_dir, cluster_options=(namespace, context), name=name):
        from dapt_operator.cli.commands.show_logs import local_log_lines
        from dapt_operator.cli.run_folder import find_run

        lines = local_log_lines(find_run(name, runs_dir or RUNS), query)
    else:
        lines = log_lines(open_access(namespace, context), name, query)
    for line in lines:
        write_line(line)


@commands.command()
def explain(name: Name, namespace: Namespace = None, context: Context = None) -> None:
    """Say why an adaptation waits, stalled or was rolled back, and what to do next."""
    from dapt_operator.cli.commands.cluster.explain import explain as sentences

    for line in sentences(open_access(namespace, context), name):
        write_line(line)


@commands.command()
def checkpoints(name: Name, namespace: Namespace = None, context: Context = None) -> None:
    """Show the measured candidates of an adaptation: perplexities, forgetting, gain and what the gates say."""
    from dapt_operator.cli.commands.cluster.overview import checkpoints_table
    from dapt_operator.cli.display.screen import make_console

    console = make_console()
    console.print(checkpoints_table(open_access(namespace, context).adaptation(name)))


@commands.command()
def pin(
    name: Name,
    candidate: Annotated[
        str | None, typer.Argument(metavar="[CANDIDATE]", help="Id of a candidate of `dapt checkpoints`.")
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the pin: the largest gain decides.")
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Choose the candidate to publish in place of the one with the largest gain. The gates still judge it."""
    from dapt_operator.cli.commands.cluster.edits import pin as set_pin

    if (candidate is None) != remove:
        raise UserError("give a candidate of `dapt checkpoints`, or --remove, and not both", EXIT_USAGE)
    write_line(set_pin(open_access(namespace, context), name, candidate))


@commands.command()
def suspend(name: Name, namespace: Namespace = None, context: Context = None) -> None:
    """Stop the running stage of an adaptation, which saves first, and start no new one."""
    from dapt_operator.cli.commands.cluster.edits import set_suspended

    write_line(set_suspended(open_access(namespace, context), name, suspend=True))


@commands.command()
def resume(name: Name, namespace: Namespace = None, context: Context = None) -> None:
    """Continue a suspended adaptation from its newest checkpoint."""
    from dapt_operator.cli.commands.cluster.edits import set_suspended

    write_line(set_suspended(open_access(namespace, context), name, suspend=False))
