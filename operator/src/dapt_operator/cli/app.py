"""The commands and their options. What they do is in the modules beside, imported when a command is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dapt_contract.version import PRODUCT_VERSION
from dapt_operator.cli.errors import EXIT_USAGE, UserError

app = typer.Typer(
    name="dapt",
    help=(
        "Adapt a language model to a domain, with forgetting measured, bounded and reported.\n\n"
        "Start with `dapt lint MANIFEST`, then `dapt plan MANIFEST` (what it will need; costs nothing), then"
        " `dapt run MANIFEST` (on this machine). A run that was interrupted goes on when it is started again."
    ),
    no_args_is_help=True,
    add_completion=False,
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
RunsDir = Annotated[
    Path,
    typer.Option("--runs-dir", metavar="FOLDER", help="Folder of local runs; each has its own folder there."),
]
RUNS = Path("runs")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dapt {PRODUCT_VERSION}")
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
) -> None:
    """Show what a manifest would need: tokens, steps, memory by its parts, GPU-hours. Starts nothing.

    Exits 1 when a run would be refused.
    """
    from dapt_operator.cli.commands.plan import plan as plan_for
    from dapt_operator.cli.inputs.manifests import read_request

    page = plan_for(read_request(manifest, profile), _number(parameters))
    typer.echo("\n".join(page.lines))
    if page.problems:
        raise UserError(page.problems)


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
    runs_dir: RunsDir = RUNS,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove what an earlier run of this name left, and begin anew.")
    ] = False,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Leave out the HTML page at the end.")
    ] = False,
) -> None:
    """Adapt a model on this machine. After any interruption the same command goes on where it was.

    Exits 0 when the model is at its destination, 1 when a person must act, 130 or 143 when it was stopped.
    """
    from dapt_operator.cli.commands.run import Options
    from dapt_operator.cli.commands.run import run as run_here
    from dapt_operator.cli.display.screen import make_console
    from dapt_operator.cli.inputs.manifests import read_request

    request = read_request(manifest, profile)
    options = Options(runs_dir, fresh=fresh, with_report=not no_report)
    raise typer.Exit(run_here(request, options, make_console()))


@app.command()
def status(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|FOLDER]", help="One run; left out: all.")
    ] = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Show where local runs stand: their stages, candidates, results, and what they wait for."""
    from dapt_operator.cli.commands.status import run_overview, runs_table
    from dapt_operator.cli.display.screen import make_console
    from dapt_operator.cli.run_folder import all_runs, find_run

    console = make_console()
    if name is not None:
        console.print(run_overview(find_run(name, runs_dir)))
        return
    found = all_runs(runs_dir)
    if not found:
        raise UserError(f"no run in {runs_dir}; start one with `dapt run MANIFEST`, or give --runs-dir")
    console.print(runs_table(found))


@app.command()
def report(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|FOLDER]", help="The run; left out: the only one there is.")
    ] = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Write the HTML page of a run again, also of one that has not finished."""
    from dapt_operator.cli.commands.report import rebuild

    typer.echo(f"wrote {rebuild(name, runs_dir)}")


@app.command()
def replay(
    run_name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FOLDER|FILE",
            help="A local run, or a file from `kubectl get domainadaptation NAME -o yaml`.",
        ),
    ],
    manifest: Manifest,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Judge the recorded numbers of a run by the gates and the selection of MANIFEST. Runs and changes nothing."""
    from dapt_operator.cli.commands.rejudge import judge_again
    from dapt_operator.cli.display.screen import make_console

    make_console().print(judge_again(run_name, manifest, runs_dir))


@app.command()
def lint(
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST...", help="Files to judge.")],
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Judge as the cluster does: files of this machine are refused.")
    ] = False,
) -> None:
    """Check manifests: every problem at once, with its line and what is accepted. Exits 1 if there is any."""
    from dapt_operator.cli.commands.lint import lint as judge_all

    problems, good = judge_all(manifests, cluster=cluster)
    for line in good:
        typer.echo(line)
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
            typer.echo(f"wrote {path}")
        return
    old = definitions.stale(out)
    if old:
        raise UserError([f"{path}: not what the models say; run `dapt crd --out {out}`" for path in old])
    typer.echo(f"{out}: up to date")


@app.command()
def operator(
    namespace: Annotated[
        list[str] | None,
        typer.Option(
            "--namespace",
            "-n",
            metavar="NAME",
            envvar="DAPT_NAMESPACES",
            help="Look after this namespace alone; may be given again. Default: the whole cluster.",
        ),
    ] = None,
    instance: Annotated[
        str | None,
        typer.Option(
            metavar="NAMESPACE/RELEASE",
            envvar="DAPT_INSTANCE",
            help="Who this operator is; adaptations of another one are left alone. Default: the lease's namespace"
            " and `dapt`.",
        ),
    ] = None,
    lease_namespace: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="DAPT_LEASE_NAMESPACE",
            help="Where the Lease is that lets one operator act. Default: the pod's own namespace.",
        ),
    ] = None,
    lease_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", envvar="DAPT_LEASE_NAME", help="Its name. Default: the instance's release."
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(metavar="PORT", envvar="DAPT_PORT", help="Of /healthz, /readyz and /metrics.")
    ] = 8080,
    workers: Annotated[
        int, typer.Option(metavar="N", envvar="DAPT_WORKERS", help="Adaptations worked on at once.")
    ] = 8,
    resync_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            envvar="DAPT_RESYNC_SECONDS",
            help="How often everything is listed anew, in case that a watch went silent.",
        ),
    ] = 60.0,
    log_format: Annotated[
        str, typer.Option(metavar="json|text", envvar="DAPT_LOG_FORMAT", help="Form of the log lines.")
    ] = "json",
    log_level: Annotated[
        str,
        typer.Option(
            metavar="debug|info|warning|error", envvar="DAPT_LOG_LEVEL", help="Least of what is logged."
        ),
    ] = "info",
) -> None:
    """Run the operator on Kubernetes: in a pod as its service account, elsewhere with the kubeconfig.

    Exits 0 after SIGTERM, 1 when another operator may act (the Lease was lost).
    """
    from dapt_operator.cli.commands.operator import run as run_operator

    run_operator(
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
