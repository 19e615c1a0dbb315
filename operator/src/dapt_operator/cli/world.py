"""Decides whether a command is about a cluster or about folders of this machine, and defines the options for both."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dapt_operator.cli.errors import EXIT_USAGE, UserError

if TYPE_CHECKING:
    from dapt_client.access import ClusterAccess
    from dapt_operator.api.v1alpha1.spec import DomainAdaptation

    Judge = Callable[[DomainAdaptation], tuple[list[str], list[str]]]

RUNS: Final = Path("runs")

Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        "-n",
        metavar="NAME",
        help="Namespace in the cluster. Default: the kubeconfig context's, else `default`.",
    ),
]
Context = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Context of the kubeconfig. Default: the current one."),
]
Local = Annotated[
    bool,
    typer.Option(
        "--local", help="Runs in folders of this machine. The default where there is no kubeconfig."
    ),
]
RunsDir = Annotated[
    Path | None,
    typer.Option(
        "--runs-dir", metavar="FOLDER", help="Folder of local runs, `runs` by default; implies --local."
    ),
]
Output = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        metavar="text|json",
        help="Format of what is shown. Default: text.",
        show_default=False,
    ),
]


def is_local(
    *,
    local: bool,
    runs_dir: Path | None,
    cluster_options: tuple[str | bool | None, ...],
    name: str | None = None,
) -> bool:
    """Return whether a command is about local runs.

    Args:
        local: whether --local is given.
        runs_dir: value of --runs-dir; None: not given.
        cluster_options: values of the options that name a cluster or a namespace.
        name: of the run or adaptation; one with a separator is a folder.

    Raises:
        UserError: options of both worlds are given.
    """
    wants_local = local or runs_dir is not None
    if any(cluster_options):
        if wants_local:
            raise UserError(
                "--local and --runs-dir are about folders of this machine, --namespace, --all-namespaces and --context"
                " about a cluster; give options of one of them",
                EXIT_USAGE,
            )
        return False
    if wants_local or (name is not None and os.sep in name):
        return True
    from dapt_operator.cluster.kubernetes.kubeconfig import has_kubeconfig

    return not has_kubeconfig()


def open_access(namespace: str | None, context: str | None) -> ClusterAccess:
    """Return the access to the cluster.

    Raises:
        UserError: there is none that can be used.
    """
    from dapt_client.access import ClusterOptions, open_cluster

    return open_cluster(ClusterOptions(namespace, context))


def profile_judge(namespace: str | None, context: str | None) -> Judge | None:
    """Return what knows the profiles in the cluster; None without a kubeconfig where none is asked for.

    Raises:
        UserError: a cluster is named that cannot be used.
    """
    from dapt_operator.cluster.kubernetes.kubeconfig import has_kubeconfig

    if not (namespace or context or has_kubeconfig()):
        return None
    access = open_access(namespace, context)
    from dapt_operator.cli.commands.cluster.profiles import profile_problems

    return partial(profile_problems, access)


def is_json(output: str) -> bool:
    """Return whether --output asks for JSON.

    Raises:
        UserError: it asks for a format that there is not.
    """
    if output not in ("text", "json"):
        raise UserError(f"--output {output}: not a format; write text or json", EXIT_USAGE)
    return output == "json"
