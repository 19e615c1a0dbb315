"""The commands and their options. What they do is in the modules beside, imported when a command is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dapt_contract.version import PRODUCT_VERSION
from dapt_operator.cli.errors import UserError

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
def lint(
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST...", help="Files to judge.")],
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Judge as the cluster does: files of this machine are refused.")
    ] = False,
) -> None:
    """Check manifests: every problem at once, with its line and what is accepted. Exits 1 if there is any."""
    from dapt_operator.cli.lint import lint as judge_all

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
    from dapt_operator.cli import crd as definitions

    if not check:
        for path in definitions.write(out):
            typer.echo(f"wrote {path}")
        return
    old = definitions.stale(out)
    if old:
        raise UserError([f"{path}: not what the models say; run `dapt crd --out {out}`" for path in old])
    typer.echo(f"{out}: up to date")
