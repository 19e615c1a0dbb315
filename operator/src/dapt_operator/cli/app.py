"""Defines the commands and their options; a module in `commands/` does the work and is imported when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dapt_contract.version import PRODUCT_VERSION
from dapt_operator.cli.cluster_commands import commands as cluster_commands
from dapt_operator.cli.errors import EXIT_USAGE, UserError
from dapt_operator.cli.terminal import write_line
from dapt_operator.cli.world import (
    RUNS,
    Context,
    Local,
    Namespace,
    Output,
    RunsDir,
    is_json,
    is_local,
    open_access,
    profile_judge,
)

app = typer.Typer(
    name="dapt",
    help=(
        "Adapt a language model to a domain, with forgetting measured, bounded and reported.\n\n"
        "Start with `dapt lint MANIFEST`, then `dapt plan MANIFEST` (what it will need; costs nothing), then"
        " `dapt run MANIFEST` (on this machine) or `dapt submit MANIFEST` (in a cluster). Starting an interrupted run"
        " again continues it."
    ),
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Manifest = Annotated[Path, typer.Argument(metavar="MANIFEST", help="YAML file with one DomainAdaptation.")]
Profile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        "-p",
        metavar="FILE",
        help="File with an AdaptationProfile, or `local` for this machine's own. Default: a profile in the"
        " manifest's file, else `local`.",
    ),
]
LocalRuns = Annotated[
    Path,
    typer.Option("--runs-dir", metavar="FOLDER", help="Folder of local runs; each has its own folder there."),
]


def _show_version(is_requested: bool) -> None:
    if is_requested:
        write_line(f"dapt {PRODUCT_VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


@app.command()
def plan(
    manifest: Manifest,
    profile: Profile = None,
    parameters: Annotated[
        str | None,
        typer.Option(
            "--parameters",
            metavar="NUMBER",
            help="Parameters of the base model, such as 8e9, when it is not at hand.",
        ),
    ] = None,
    cluster: Annotated[
        bool,
        typer.Option(
            "--cluster", help="Check as the cluster does, and take the profile with its limits from there."
        ),
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
    output: Output = "text",
) -> None:
    """Show what a manifest would need: tokens, steps, memory by its parts, GPU-hours. Starts nothing.

    Exits 1 when a run would be refused.
    """
    from dapt_operator.cli.commands.show_plan import show_plan
    from dapt_operator.cli.inputs.manifests import read_request

    as_json, number = is_json(output), _number(parameters)
    if not (cluster or namespace or context):
        show_plan(read_request(manifest, profile), number, as_json=as_json)
        return
    if profile is not None:
        raise UserError(
            "--profile gives a profile, and --cluster takes the cluster's; give one of them", EXIT_USAGE
        )
    from dapt_operator.cli.commands.cluster.profiles import request_with_profile

    access = open_access(namespace, context)
    show_plan(request_with_profile(access, manifest), number, as_json=as_json, namespace=access.namespace)


def _number(text: str | None) -> float | None:
    try:
        value = None if text is None else float(text.replace("_", ""))
    except ValueError:
        value = -1.0
    if value is not None and not 1e3 <= value <= 1e14:
        raise UserError(f"--parameters {text}: not a number of parameters; write for example 8e9", EXIT_USAGE)
    return value


@app.command()
def run(
    manifest: Manifest,
    profile: Profile = None,
    runs_dir: LocalRuns = RUNS,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove what an earlier run of this name left, and start over.")
    ] = False,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Leave out the HTML page at the end.")
    ] = False,
) -> None:
    """Adapt a model on this machine. After any interruption the same command continues the run.

    Exits 0 when the model is at its destination, 1 when user action is required, 130 or 143 when it was stopped.
    """
    from dapt_operator.cli.commands.run import Options
    from dapt_operator.cli.commands.run import run as run_here
    from dapt_operator.cli.display.screen import make_console
    from dapt_operator.cli.inputs.manifests import read_request

    if str(manifest) == "-":
        raise UserError(
            "-: a run is continued from its manifest's file; save it and give its path", EXIT_USAGE
        )
    request = read_request(manifest, profile)
    options = Options(runs_dir, fresh=fresh, with_report=not no_report)
    raise typer.Exit(run_here(request, options, make_console()))


@app.command()
def status(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME|FOLDER]", help="One adaptation or local run; left out: all."),
    ] = None,
    namespace: Namespace = None,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="Adaptations of all namespaces.")
    ] = False,
    context: Context = None,
    local: Local = False,
    runs_dir: RunsDir = None,
    output: Output = "text",
) -> None:
    """Show the state of adaptations or local runs: stages, candidates, results, and what they wait for."""
    from dapt_operator.cli.commands import show_status

    as_json = is_json(output)
    cluster_options = (namespace, all_namespaces, context)
    if is_local(local=local, runs_dir=runs_dir, cluster_options=cluster_options, name=name):
        show_status.show_local(name, runs_dir or RUNS, as_json=as_json)
    else:
        access = open_access(namespace, context)
        show_status.show_cluster(access, name, all_namespaces=all_namespaces, as_json=as_json)


@app.command()
def report(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME|FOLDER]", help="Adaptation or local run; left out: the only local run."
        ),
    ] = None,
    namespace: Namespace = None,
    context: Context = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", help="Where FOLDER/NAME/report.html is written. Default: `reports`."
        ),
    ] = None,
    local: Local = False,
    runs_dir: RunsDir = None,
) -> None:
    """Write the HTML page of an adaptation, from its resource alone, or of a local run; also before it has ended."""
    cluster_options = (namespace, context, None if out is None else str(out))
    if is_local(local=local, runs_dir=runs_dir, cluster_options=cluster_options, name=name):
        from dapt_operator.cli.commands.report import rebuild

        write_line(f"wrote {rebuild(name, runs_dir or RUNS)}")
        return
    if name is None:
        raise UserError("name the adaptation to report on; `dapt status` lists them", EXIT_USAGE)
    from dapt_client.pages import write_report

    write_line(f"wrote {write_report(open_access(namespace, context), name, out or Path('reports'))}")


@app.command()
def rejudge(
    run_name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FOLDER|FILE",
            help="An adaptation, a local run, or a file from `kubectl get domainadaptation NAME -o yaml`.",
        ),
    ],
    manifest: Manifest,
    namespace: Namespace = None,
    context: Context = None,
    local: Local = False,
    runs_dir: RunsDir = None,
) -> None:
    """Apply the gates and the selection of MANIFEST to the recorded numbers of a run. Changes nothing."""
    from dapt_operator.cli.commands.rejudge import rejudge_run, rejudged
    from dapt_operator.cli.display.screen import make_console

    cluster_options = (namespace, context)
    is_file = Path(run_name).is_file()
    console = make_console()
    if is_file or is_local(local=local, runs_dir=runs_dir, cluster_options=cluster_options, name=run_name):
        console.print(rejudge_run(run_name, manifest, runs_dir or RUNS))
        return
    from dapt_client.resources import status_of

    status = status_of(open_access(namespace, context).adaptation(run_name))
    console.print(rejudged(run_name, status, manifest, local=False))


@app.command()
def lint(
    manifests: Annotated[
        list[Path], typer.Argument(metavar="MANIFEST...", help="Files or folders to check; - reads stdin.")
    ],
    cluster: Annotated[
        bool,
        typer.Option(
            "--cluster",
            help="Check as the cluster does: files of this machine are refused, and with a kubeconfig the limits of"
            " the profile in the cluster count.",
        ),
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Check manifests: every problem at once, with its line and what is accepted. Exits 1 if there is any."""
    from dapt_operator.cli.commands.lint import lint as check_all

    cluster = cluster or bool(namespace or context)
    problems, accepted = check_all(
        manifests, cluster=cluster, judge=profile_judge(namespace, context) if cluster else None
    )
    for line in accepted:
        write_line(line)
    if problems:
        raise UserError(problems)


@app.command()
def crd(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the files are written.")] = Path(
        "crds"
    ),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 when a file differs from the models.")
    ] = False,
) -> None:
    """Write the CustomResourceDefinitions of DomainAdaptation and AdaptationProfile."""
    from dapt_operator.cli.commands import crd as definitions

    if not check:
        for path in definitions.write(out):
            write_line(f"wrote {path}")
        return
    stale = definitions.stale(out)
    if stale:
        raise UserError([f"{path}: differs from the models; run `dapt crd --out {out}`" for path in stale])
    write_line(f"{out}: up to date")


@app.command()
def operator(
    namespace: Annotated[
        list[str] | None,
        typer.Option(
            "--namespace",
            "-n",
            metavar="NAME",
            envvar="DAPT_NAMESPACES",
            help="Watch this namespace only; can be repeated. Default: the whole cluster.",
        ),
    ] = None,
    instance: Annotated[
        str | None,
        typer.Option(
            metavar="NAMESPACE/RELEASE",
            envvar="DAPT_INSTANCE",
            help="Name of this operator; it ignores the adaptations of another one. Default: the lease's namespace"
            " and `dapt`.",
        ),
    ] = None,
    lease_namespace: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="DAPT_LEASE_NAMESPACE",
            help="Namespace of the Lease, whose holder alone acts. Default: the pod's own namespace.",
        ),
    ] = None,
    lease_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="DAPT_LEASE_NAME",
            help="Name of the Lease. Default: the instance's release.",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(metavar="PORT", envvar="DAPT_PORT", help="Port of /healthz, /readyz and /metrics.")
    ] = 8080,
    workers: Annotated[
        int, typer.Option(metavar="N", envvar="DAPT_WORKERS", help="Adaptations reconciled at once.")
    ] = 8,
    resync_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            envvar="DAPT_RESYNC_SECONDS",
            help="How often everything is listed again, in case a watch has missed something.",
        ),
    ] = 600.0,
    log_format: Annotated[
        str, typer.Option(metavar="json|text", envvar="DAPT_LOG_FORMAT", help="Format of the log lines.")
    ] = "json",
    log_level: Annotated[
        str,
        typer.Option(
            metavar="debug|info|warning|error", envvar="DAPT_LOG_LEVEL", help="Lowest level that is logged."
        ),
    ] = "info",
) -> None:
    """Run the operator on Kubernetes: in a pod as its service account, elsewhere with the kubeconfig.

    Exits 0 after SIGTERM, 1 when another operator may act (the Lease was lost).
    """
    from dapt_operator.cli.commands.operator import run as run_operator
    from dapt_operator.runtime.settings import Options as OperatorOptions

    options = OperatorOptions(
        namespaces=namespace or (),
        instance=instance,
        lease_namespace=lease_namespace,
        lease_name=lease_name,
        port=port,
        workers=workers,
        resync_seconds=resync_seconds,
        log_format=log_format,
        log_level=log_level,
    )
    run_operator(options)


app.add_typer(cluster_commands)
